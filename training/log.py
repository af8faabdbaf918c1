"""The log of a run: means of the loss terms, written to a list of sinks."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import files


class Window:
    """Sums of all terms since the last row of the log, kept on the device."""

    def __init__(self, device: torch.device):
        self.names, self.count, self.sum = [], 0, torch.zeros((), device=device)

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.names, self.count = state["names"], state["count"]
        self.sum = state["sum"].to(self.sum.device)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of one step; their names must be the same at every step."""
        if self.names and list(terms) != self.names:
            raise ValueError(f"the terms of a step changed from {self.names} to {list(terms)}")
        self.names, self.count = list(terms), self.count + 1
        self.sum = self.sum + torch.stack([term.float() for term in terms.values()])

    def mean(self) -> dict[str, float]:
        """Mean of every term since the last reset."""
        if not self.count:
            return {}
        return dict(zip(self.names, (self.sum / self.count).tolist(), strict=True))  # device sync

    def reset(self) -> None:
        """Start the next row."""
        self.count, self.sum = 0, torch.zeros_like(self.sum)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"names": self.names, "count": self.count, "sum": self.sum.cpu()}


def new_warnings(model: nn.Module, terms: dict[str, float], earlier: set[str]) -> list[str]:
    """Warnings of the model about its terms, each kind once; `earlier` holds the kinds so far."""
    texts = model.warnings(terms) if hasattr(model, "warnings") else []
    new = [text for text in texts if text.partition(":")[0] not in earlier]  # a number follows
    earlier.update(text.partition(":")[0] for text in new)
    return new


class CsvSink:
    """A CSV file with one row a call. Rows after `last_step` are dropped when it is opened.

    Args:
        complete: refuse a file whose rows end before `last_step`.
    """

    def __init__(self, path: Path, last_step: int, complete: bool = True):
        self.path = path
        if last_step == 0 or not path.exists():
            path.unlink(missing_ok=True)
            if complete and last_step:
                print(f"warning: {path} is missing; it restarts here", file=sys.stderr)
            return
        log = read_log(path)
        if complete and (log.empty or log["step"].max() < last_step):
            raise ValueError(
                f"{path} ends before step {last_step:,}, which the checkpoint has reached; "
                "delete it to resume without its rows"
            )
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        count = int((log["step"] <= last_step).sum()) if len(log) else 0
        files.write(path, "".join(lines[: count + 1]) if count else "")

    def row(self, step: int, terms: dict[str, float]) -> None:
        """Append a row; the first one also writes the header."""
        texts = [f"{v:.9g}" if isinstance(v, float) else str(v) for v in terms.values()]
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                if file.tell() == 0:
                    file.write(",".join(["step", *terms]) + "\n")
                file.write(",".join([str(step), *texts]) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())


class TensorBoardSink:
    """TensorBoard event files."""

    def __init__(self, folder: Path, last_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", purge_step=last_step + 1)
        self.sync = self.writer.flush

    def row(self, step: int, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self.writer.add_scalar(name, value, step)


class WandbSink:
    """A run of Weights & Biases; a resumed training continues the same one."""

    def __init__(self, folder: Path, mode: str, config: dict[str, Any]):
        import wandb

        name = f"{config['name']}-seed{config['seed']}"
        options = {"project": "disentanglement", "resume": "allow", "mode": mode, "dir": folder}
        options["settings"] = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(name=name, id=name, config=config, **options)
        self.sync = lambda: None  # wandb writes in a process of its own

    def row(self, step: int, terms: dict[str, float]) -> None:
        self.run.log(terms, step=step)


def open_sinks(folder: Path, last_step: int, config: dict[str, Any]) -> list[Any]:
    """The sinks of a configuration, each with the methods row(step, terms) and sync()."""
    settings = config["train"]
    sinks: list[Any] = [CsvSink(folder / "log.csv", last_step)]
    if settings["tensorboard"]:
        sinks.append(TensorBoardSink(folder, last_step))
    if settings["wandb"] != "disabled":
        sinks.append(WandbSink(folder, settings["wandb"], config))
    return sinks


def read_log(path: Path) -> pd.DataFrame:
    """The complete rows of log.csv or scores.csv, all numbers. ValueError if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]  # a crash may tear the last row
        log = pd.read_csv(io.StringIO(complete)) if complete else pd.DataFrame()
        if len(log) and ("step" not in log or log.select_dtypes("number").shape != log.shape):
            raise ValueError("there is text in it")
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete it to continue without it") from error
    return log
