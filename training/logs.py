"""log.csv: one row every `log_every` steps, the mean of every term over those steps.

Times go to speed.csv, so that log.csv of the same run is the same file whenever it is made.
"""

import csv
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.checkpoint import write_atomically


class Log:
    """Appends rows to log.csv and speed.csv of a run folder: every `every` steps and at `last`.

    The run goes on from `step`. Rows after it (written between the last checkpoint and a crash) and
    a provisional row (at the end of a run that now goes on) are dropped first: the run is about to
    make them again.
    """

    def __init__(
        self, folder: Path, step: int, every: int = 1, last: int = 0, tensorboard: bool = False
    ):
        self.folder = Path(folder)
        for name in ("log.csv", "speed.csv"):
            _keep_rows(self.folder / name, step, every, last)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)

    def row(self, step: int, images: int, terms: dict[str, float], images_per_s: float) -> None:
        """One row: step and images seen so far, the terms, and the speed since the last row."""
        numbers = {name: f"{value:.9g}" for name, value in terms.items()}
        append_row(self.folder / "log.csv", {"step": step, "images": images} | numbers)
        append_row(self.folder / "speed.csv", {"step": step, "images_per_s": f"{images_per_s:.6g}"})
        if self._board is not None:
            for name, value in terms.items():
                self._board.add_scalar(name, value, step)
            self._board.add_scalar("images_per_s", images_per_s, step)

    def seconds(self) -> float | None:
        """Time that the run has taken so far, over all interruptions, from speed.csv.

        None where a file of the log is lost.
        """
        rows = speeds(self.folder)
        if not rows or not (self.folder / "log.csv").exists():
            return None
        with open(self.folder / "log.csv", newline="") as file:
            first = next(csv.DictReader(file))
        batch_size, seconds, last = int(first["images"]) // int(first["step"]), 0.0, 0
        for step, speed in rows:
            seconds, last = seconds + (step - last) * batch_size / speed, step
        return seconds

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()


def need_tensorboard() -> None:
    """ValueError where the package that train.tensorboard writes with is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "train.tensorboard: true is not allowed without the package tensorboard; "
            "install it (pip install tensorboard) or set it to false"
        )


def speeds(folder: Path) -> list[tuple[int, float]]:
    """(step, images/s since the row before) of every row of speed.csv; empty without the file."""
    path = Path(folder) / "speed.csv"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [line.split(",") for line in lines[1:] if line.endswith("\n")]  # the last may be torn
    with _readable(path):
        return [(int(step), float(speed)) for step, speed in rows]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context whose ValueError says that a file of the log is damaged."""
    try:
        yield
    except ValueError as error:
        remedy = "remove it, the run goes on without"
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a row to a CSV file, which opens with its keys. Raises ValueError for another's."""
    need_columns(path, row)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def need_columns(path: Path, columns: Iterable[str]) -> None:
    """Raise ValueError where a CSV file, if there is one, has other columns."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header = file.readline().rstrip("\n")
    if header and header != (wanted := ",".join(columns)):
        raise ValueError(f"{path} has the columns {header}, not {wanted}")


def _keep_rows(path: Path, step: int, every: int, last: int) -> None:
    if not path.exists():
        return
    header, *rows = path.read_text().splitlines(keepends=True) or [""]
    if not header.endswith("\n"):  # torn before the first row
        path.unlink()
        return
    with _readable(path):
        steps = [int(row.split(",", 1)[0]) if row.endswith("\n") else step + 1 for row in rows]
    regular = [s <= step and (s % every == 0 or s == last) for s in steps]
    kept = [row for row, keep in zip(rows, regular, strict=True) if keep]
    if not kept:  # whatever comes next may have other columns
        path.unlink()
        return
    write_atomically(path, lambda file: file.write_text(header + "".join(kept)))
