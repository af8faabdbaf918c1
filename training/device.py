"""Where and in which precision a run computes."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is cuda, else mps, else cpu. ValueError if it is not here."""
    available = ["auto", "cpu"]
    if torch.backends.mps.is_available():
        available.insert(1, "mps")
    if torch.cuda.is_available():
        available.insert(1, "cuda")
    if name not in available:
        allowed = ", ".join(available)
        raise ValueError(f"train.device: '{name}' is not available here; allowed: {allowed}")
    return torch.device(available[1] if name == "auto" else name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of the convolutions: "auto" is bf16 where the hardware computes in it, else fp32."""
    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bfloat16 (emulated products are slower)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()  # the user may forbid these units
    if limit not in ("", "ALL", "DEFAULT") and not re.search("BF16|AMX|FP16|AVX10", limit):
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_cpuinfo("flags|Features").split()))


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, "" if there is none."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    match = re.search(rf"^(?:{key})\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def hardware(device: torch.device) -> dict[str, Any]:
    """What a measured number depends on: processor, threads, device and versions."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_units": has_bf16(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the CPU or the GPU is used up."""
    texts = "can't allocate memory|not enough memory|Storage size calculation overflowed"
    is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_known or bool(re.search(texts, str(error)))
