"""The folder of a run: who may write to it, what it was started with."""

import difflib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from training.checkpoint import write_atomically


class RunFolderError(ValueError):
    """The folder belongs to another configuration or another process."""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


class RunFolder:
    """`runs/<name>/seed<k>/`: a context; open to one process at a time, for one configuration only.

    `config_text` is the resolved configuration as YAML; a folder that holds another one is refused
    with the difference (only train.steps may grow). Nothing is written before `take`, so that what
    is refused later, by the data or the networks, leaves the folder to its run. `resolve` gives the
    configuration of a config.yaml, or where that is lost of the checkpoint beside it, in the same
    form: keys that the project has learned since get their defaults. Raises RunFolderError.
    """

    def __init__(self, path: Path, config_text: str, resolve: Callable[[Path], str] = _text):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(f"another process is training in {self.path}") from error
        for left in self.path.glob(".checkpoint.pt.*"):  # of a process killed while it saved
            left.unlink()
        self._text = config_text
        refuse_another(self.path, config_text, resolve)

    def take(self) -> None:
        """Write config.yaml: from here on the folder is this configuration's."""
        config = self.path / "config.yaml"
        write_atomically(config, lambda file: file.write_text(self._text, encoding="utf-8"))

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        """Let other processes in."""
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def describe(
        self, *, start: dict[str, Any] | None = None, anew: bool = False, **facts: Any
    ) -> None:
        """Write run.json: `facts` of the run, and an entry of `starts` each time it is started.

        anew: the first start; what an attempt without a checkpoint has left there goes.
        """
        path = self.path / "run.json"
        known = {"starts": []} if anew or not path.exists() else read_record(path)
        if start:
            known["starts"].append(start)
        text = json.dumps(known | facts, indent=2) + "\n"
        write_atomically(path, lambda file: file.write_text(text))


def refuse_another(path: Path, config_text: str, resolve: Callable[[Path], str] = _text) -> None:
    """Raise RunFolderError where `path` holds a run with another configuration.

    resolve: as for RunFolder.
    """
    if not (path / "checkpoint.pt").exists():
        return  # nothing would be lost
    texts = resolve(path / "config.yaml"), config_text
    old, new = map(yaml.safe_load, texts)
    steps = old["train"].pop("steps"), new["train"].pop("steps")
    if old != new or steps[0] > steps[1]:
        lines = difflib.unified_diff(*(text.splitlines() for text in texts), n=0, lineterm="")
        changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        difference = "\n".join(changed)
        raise RunFolderError(
            f"{path} holds a run with another configuration (- its, + yours):\n"
            f"{difference}\nGive yours another name (name=...) or seed (seed=...), "
            "or remove that folder."
        )


def read_record(path: Path) -> dict[str, Any]:
    """What a run.json holds. Raises RunFolderError where that is none."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record["starts"], list):
            raise TypeError
        for start in record["starts"]:
            start["command"]
        float(record.get("train_seconds", 0))
    except (ValueError, LookupError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: remove it, the run goes on without") from error
    return record


def provenance() -> dict[str, Any]:
    """The command that was typed and the commit it ran (with '+' where files were changed)."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        try:
            result = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return result.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit else ""
    return {
        "command": shlex.join([os.path.basename(sys.executable), *sys.argv]),
        "commit": commit + ("+" if changed else "") if commit else None,
    }
