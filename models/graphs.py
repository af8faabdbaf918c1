"""Training steps as CUDA graphs: one launch in place of hundreds of small kernels.

A graph repeats kernels. The Python code of a step runs only while the graph is recorded, where the
step is a `Step` and not a number: comparisons with it select the graph, and `scheduled` gives a
tensor that is filled before every replay.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import operator
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Terms = dict[str, Tensor]
Schedule = Callable[[int], float]
WARM_UP = 3  # usual steps before a graph: they create the states of optimisers and libraries


@dataclass
class Branch:
    """The steps at which all comparisons have the same answers: they share a graph."""

    answers: list[tuple[Callable[[int], bool], bool]] = field(default_factory=list)
    steps: int = 0  # so far
    replay: Callable[[], None] | None = None
    terms: Terms = field(default_factory=dict)  # the tensors that the graph writes to

    def includes(self, step: int) -> bool:
        return all(compare(step) == answer for compare, answer in self.answers)


class GraphedStep:
    """A model's train_step as a function of (index, step), replayed as a graph where possible.

    The graph gathers the batch too. Its random numbers are those of a usual step, as a replay reads
    the seed of the default generator.

    Args:
        batch: returns the images (B, C, H, W) at an index (B,) that is on the device, for a step.
        recorder: records the graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Callable[[Tensor, Any], Tensor],
        recorder: "CudaRecorder",
        device: torch.device,
    ):
        self.model, self.batch, self.recorder, self.device = model, batch, recorder, device
        self.index: Tensor | None = None
        self.schedules: dict[str, tuple[Schedule, Tensor]] = {}
        self.branches: list[Branch] = []
        self.obstacle = ""  # why there are no graphs

    def __call__(self, index: Tensor, step: int) -> Terms:
        if self.obstacle:
            return self.model.train_step(self.batch(index, step), step)
        self._fill(index, step)
        branch = next((branch for branch in self.branches if branch.includes(step)), None)
        if branch is None:
            branch = Branch()
            self.branches.append(branch)
        branch.steps += 1
        if branch.steps <= WARM_UP:
            terms, waited = self.recorder.run(lambda: self._trace(branch, step))
            if waited and branch.steps == WARM_UP:  # before, libraries start
                self.obstacle = "the CPU waits for the GPU in a step"
            if self.obstacle:
                print(f"warning: no CUDA graphs, as {self.obstacle}", file=sys.stderr)
        else:
            if branch.replay is None:
                self._record(branch, step)
            branch.replay()
            terms = branch.terms
        self.model.step = step  # a trace leaves a Step there
        return terms

    def _fill(self, index: Tensor, step: int) -> None:
        """Give the tensors that graphs read their values of this step."""
        if self.index is None:
            self.index = torch.empty_like(index, device=self.device)
        if self.index.is_cuda:
            index = index.pin_memory()  # so that the copy does not wait for queued work
        self.index.copy_(index, non_blocking=True)
        for schedule, value in self.schedules.values():
            value.fill_(schedule(step))

    def _trace(self, branch: Branch, step: int) -> Terms:
        branch.answers = []
        traced = Step(step, branch, self)
        return self.model.train_step(self.batch(self.index, traced), traced)

    def _record(self, branch: Branch, step: int) -> None:
        optimizers = self.model.optimizers.values()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        adams = [group for group in groups if "capturable" in group]
        for optimizer in optimizers:
            optimizer.zero_grad()  # the graph has gradients of its own
        for group in adams:
            group["capturable"] = True  # Adam insists on it, though its fused step is the same
        branch.replay, branch.terms = self.recorder.record(lambda: self._trace(branch, step))
        for group in adams:
            group["capturable"] = False


def _comparison(compare: Callable[[int, int], bool]) -> Callable[["Step", int], bool]:
    def method(self: "Step", other: int) -> bool:
        answer = compare(self.value, other)
        self.branch.answers.append((lambda step: compare(self.of(step), other), answer))
        return answer

    return method


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[["Step", Any], Any]:
    return lambda self, other: function(self._number(), other)


class Step:
    """A step, or a function `of` a step, whose comparisons hold throughout a graph.

    Arithmetic gives a number, which no graph could change, so that there will be no graphs.
    """

    def __init__(
        self, step: int, branch: Branch, graphs: GraphedStep, of: Callable[[int], int] = int
    ):
        self.step, self.branch, self.graphs, self.of = step, branch, graphs, of
        self.value = of(step)

    def scheduled(self, name: str, schedule: Schedule, dtype: torch.dtype) -> Tensor:
        """A 0-d tensor that holds schedule(step) at every step."""
        if name not in self.graphs.schedules:
            value = torch.full((), schedule(self.step), dtype=dtype, device=self.graphs.device)
            self.graphs.schedules[name] = schedule, value
        return self.graphs.schedules[name][1]

    def _number(self) -> int:
        self.graphs.obstacle = "the loss computes with the step (docs/extend.md shows a way)"
        return self.value

    def __mod__(self, other: int) -> "Step":
        return Step(self.step, self.branch, self.graphs, lambda step: self.of(step) % other)

    def __bool__(self) -> bool:
        return self != 0  # the inverse of __eq__

    def __float__(self) -> float:
        return float(self._number())

    __lt__, __le__, __gt__ = map(_comparison, (operator.lt, operator.le, operator.gt))
    __ge__, __eq__ = map(_comparison, (operator.ge, operator.eq))
    __hash__ = __int__ = __index__ = _number
    __add__, __sub__, __mul__ = map(_arithmetic, (operator.add, operator.sub, operator.mul))
    __radd__, __rmul__ = __add__, __mul__
    __truediv__, __floordiv__ = map(_arithmetic, (operator.truediv, operator.floordiv))


def scheduled(name: str, schedule: Schedule, step: int | Step, like: Tensor) -> Tensor:
    """schedule(step) as a 0-d tensor like another one; no two schedules of a model share a name."""
    if isinstance(step, Step):
        return step.scheduled(name, schedule, like.dtype)
    return like.new_full((), schedule(step))


class CudaRecorder:
    """Runs and records work on one side stream of the GPU."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def run(self, work: Callable[[], Terms]) -> tuple[Terms, bool]:
        """Do the work; returns its result and whether the CPU has waited for the GPU."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self.stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            terms = work()
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self.stream)
        return terms, any("called a synchronizing" in str(w.message) for w in caught)

    def record(self, work: Callable[[], Terms]) -> tuple[Callable[[], None], Terms]:
        """Record the work without doing it; returns its replay and the tensors that it writes."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            terms = work()
        return graph.replay, terms
