"""Where and in which precision a run computes, and what to write down about it."""

import os
import platform
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch


def choose_device(name: str) -> torch.device:
    """'auto' (cuda, else mps, else cpu) or the named device; ValueError where there is none."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there.get(name):
        available = ", ".join(device for device, yes in there.items() if yes)
        raise ValueError(f"device: '{name}' is not available here; available: auto, {available}")
    return torch.device(name)


def need_compiler(device: torch.device) -> None:
    """ValueError where torch.compile finds no compiler: of C++ for a CPU, of C for a GPU."""
    standard = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    variable, found = ("CXX", [standard]) if device.type == "cpu" else ("CC", ["gcc", "clang"])
    try:
        command = shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise ValueError(f"{variable} is no command: {error}") from error
    found = command[:1] or found
    if device.type != "mps" and not any(map(shutil.which, found)):
        raise ValueError(
            f"train.compile: true is not allowed without a compiler ({' or '.join(found)} is not "
            f"there); allowed: false, or true with a compiler or its path in {variable}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of the GPU, of the CPU (RuntimeError), or of Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return any(text in str(error) for text in said)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 where the hardware computes in it, float32 elsewhere."""
    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on units of their own (emulated ones are slower)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "ALL", "DEFAULT") and not re.search("BF16|AMX|FP16|AVX10", limit):
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def hardware(device: torch.device) -> dict[str, Any]:
    """What a number measured here depends on: processor, threads, device, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    found = None
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return {
        "cpu": found.group(1) if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_units": has_bf16(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
