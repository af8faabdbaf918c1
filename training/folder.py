"""The folder of a run: one process at a time, and a record of how the run was started."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import files
from training.device import hardware


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if need be; ValueError if another has it."""
    if (folder / "frames").is_symlink():
        raise ValueError(f"{folder / 'frames'} is a link; frames need a folder of their own")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another process is training in {folder}") from error
    try:
        for part in (folder, folder / "frames"):
            files.remove_stale(part)
        yield
    finally:
        lock.release()


def read_record(folder: Path) -> dict[str, Any]:
    """The content of run.json; {"starts": []} if there is none."""
    path = folder / "run.json"
    if not path.exists():
        return {"starts": []}
    try:
        return {"starts": []} | json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged; delete it to resume without it") from error


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json."""
    files.write(folder / "run.json", json.dumps(record, indent=2) + "\n")


def record_start(
    folder: Path, step: int, dtype: torch.dtype, device: torch.device, processes: int
) -> dict[str, Any]:
    """Add a start at `step` to run.json; returns the record. Another precision is a warning."""
    record = read_record(folder) if step else {"starts": []}
    precision = str(dtype).removeprefix("torch.")
    before = record["starts"][-1].get("precision", precision) if record["starts"] else precision
    if before != precision:
        print(f"warning: trained in {before} so far, resumes in {precision}", file=sys.stderr)
    facts = {"from_step": step, "precision": precision, "processes": processes}
    record["starts"].append(provenance() | facts | {"hardware": hardware(device)})
    write_record(folder, record)
    return record


def provenance() -> dict[str, Any]:
    """The command that was typed and the commit of the code, with "+" if files were changed."""
    command = shlex.join([os.path.basename(sys.executable), *sys.argv])
    git = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    root = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(git, cwd=root, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return {"command": command, "commit": commit or None}
