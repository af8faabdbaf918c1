"""The training loop: where it computes, logs, draws, saves and syncs can be read off `train`."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException as CompileError
from tqdm import tqdm

from training.batches import Batches, mix
from training.checkpoint import save_checkpoint
from training.logs import Log
from training.parallel import agree, average


class NonFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite; a checkpoint from before it was kept."""


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM is noted in `signal`; a second one kills.

    Under torchrun a second one is noted too: a scheduler's signal comes directly and from torchrun,
    which kills by itself what does not end in 30 s.
    """

    signal: int | None = None

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if "RANK" not in os.environ:
            signal.signal(number, signal.SIG_DFL)


class _Window:
    """Sum of every term since the last row of the log, on the device: no sync until `mean`."""

    def __init__(
        self, state: dict[str, Any] | None, device: torch.device, names: Sequence[str] = ()
    ):
        self.names, self.sum, self.count = list(names), None, 0
        if state:
            self.names, self.count = state["names"], state["count"]
            self.sum = state["sum"].to(device)

    def add(self, terms: dict[str, Tensor]) -> None:
        if self.names and list(terms) != self.names:
            raise ValueError(
                "the terms of a step must stay the same: there were "
                f"{', '.join(self.names)}, now there are {', '.join(terms)}"
            )
        values = torch.stack([term.float() for term in terms.values()])
        self.sum = values if self.count == 0 else self.sum + values
        self.names, self.count = list(terms), self.count + 1

    def mean(self) -> dict[str, float]:
        if self.count == 0:
            return {}
        return dict(zip(self.names, (self.sum / self.count).tolist(), strict=True))  # device sync

    def state(self) -> dict[str, Any] | None:
        if self.count == 0:
            return None
        return {"names": self.names, "count": self.count, "sum": self.sum.cpu()}


def train(
    model: nn.Module,
    batch: Callable[[Tensor], Tensor],
    batches: Batches,
    checkpoint: Path,
    log: Log | None,
    *,
    start: dict[str, Any],
    steps: int,
    seed: int,
    log_every: int,
    draw_every: int,
    save_every: int,
    draw: Callable[[int], None],
) -> int | None:
    """Train from `start["step"]` to `steps`; returns the signal that interrupted it, or None.

    model: see models (its contract); batch(index) -> x (B, C, H, W) in [0, 1] on the model's
    device; start: the state to go on from, which is also what every checkpoint repeats beside
    weights and optimisers (config, image_shape); draw(step) is called with the model in eval mode.
    Of several processes rank 0 alone logs (log), draws and saves.

    Raises NonFiniteError (a NaN or infinite term or weight) and OSError (a checkpoint or log that
    cannot be written), the last good checkpoint being intact.
    """
    rank, size = batches.rank, batches.batch_size
    device = next(model.parameters()).device
    window = _Window(start.get("window"), device)
    warned: set[str] = set()
    main = rank == 0
    last_row, bar = (time.perf_counter(), start["step"]), _bar(start["step"], steps, size, main)

    def save(step: int) -> None:
        _refuse_non_finite(step, window.mean(), model)
        optimizers = {name: opt.state_dict() for name, opt in model.optimizers.items()}
        state = {"step": step, "model": model.state_dict(), "optimizers": optimizers}
        if main:
            save_checkpoint(checkpoint, start | state | {"window": window.state()})

    model.train()
    with Interrupt() as interrupt, bar:
        for step in range(start["step"], steps):
            torch.manual_seed(mix(seed, step, rank))
            with _compiling(interrupt):
                terms = model.train_step(batch(batches[step]), step)
            window.add(average(terms))
            done, found = step + 1, []
            stop = agree(interrupt.signal)  # once a step: what it decides below must agree
            if done % log_every == 0 or done == steps:
                terms = window.mean()
                _refuse_non_finite(done, terms)
                now = time.perf_counter()
                if main:
                    speed = (done - last_row[1]) * size / (now - last_row[0])
                    log.row(done, done * size, terms, speed)
                last_row = now, done
                if done % log_every == 0:  # else the row is provisional: a longer run redoes it
                    window = _Window(None, device, window.names)
                found = _new_warnings(model, terms, warned) if main else []
                bar.set_description(f"step {done:,}/{steps:,}", refresh=False)
                shown = {n: f"{v:.4g}" for n, v in terms.items() if n in SHOWN}
                bar.set_postfix(shown, refresh=False)
            if main and (done % draw_every == 0 or done == steps):
                with uncompiled():
                    model.eval()
                    draw(done)
                    model.train()
            if done % save_every == 0 or done == steps or stop:
                save(done)
            try:
                for warning in found:
                    bar.write(f"warning at step {done:,}: {warning}", file=sys.stderr)
                bar.update(size)
            except BrokenPipeError:  # Ctrl-C has ended what reads it (| tee), or nobody does
                save(done)
                raise
            if stop and done < steps:
                return stop
    return None


@contextmanager
def _compiling(interrupt: Interrupt) -> Iterator[None]:
    """A context for what may compile: Ctrl-C, which the compiler gets too, is no failure of it."""
    try:
        yield
    except CompileError:
        if interrupt.signal:
            raise KeyboardInterrupt from None  # half a step is not worth saving
        raise


def uncompiled() -> AbstractContextManager[None]:
    """A context for pictures: of other batch sizes, each of which would be compiled for minutes."""
    return torch.compiler.set_stance("force_eager")


def _new_warnings(model: nn.Module, terms: dict[str, float], warned: set[str]) -> list[str]:
    """What the model finds wrong with its terms and had not found at the last row."""
    found = model.warnings(terms) if hasattr(model, "warnings") else []
    kinds = {text.partition(":")[0]: text for text in found}  # numbers behind the colon change
    new = [text for kind, text in kinds.items() if kind not in warned]
    warned.clear()
    warned.update(kinds)
    return new


SHOWN = ("recon", "kl", "d_loss", "g_loss", "mi")  # terms on the progress bar


def redraw_s() -> float:
    """Seconds between two updates of a progress bar: a log file gets few lines."""
    return 0.5 if sys.stderr.isatty() else 30


def _bar(step: int, steps: int, batch_size: int, shown: bool) -> tqdm:
    return tqdm(
        disable=not shown,
        total=steps * batch_size,
        initial=step * batch_size,
        desc=f"step {step:,}/{steps:,}",
        unit=" images",
        unit_scale=True,
        smoothing=0.05,
        mininterval=redraw_s(),
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
    )


def _refuse_non_finite(step: int, terms: dict[str, float], model: nn.Module | None = None) -> None:
    bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
    if model is not None and not bad:
        state = [t for t in model.state_dict().values() if t.is_floating_point()]
        norms = torch.stack([tensor.float().norm() for tensor in state])
        if not bool(norms.isfinite().all()):
            bad = {"weights": math.nan}
    if bad:
        shown = ", ".join(f"{name} = {value}" for name, value in bad.items())
        rest = ", ".join(f"{n} = {v:.4g}" for n, v in terms.items() if n not in bad)
        raise NonFiniteError(
            f"not finite at step {step}: {shown}"
            + (f" (others: {rest})" if rest else "")
            + "; an earlier checkpoint, if there is one, was kept. A lower learning rate may help."
        )
