"""One run on several processes, started by torchrun: data parallel, weights equal on all of them.

Each process takes its share of every batch (see Batches); gradients are averaged over processes
right before an optimiser steps, whatever the model and however many optimisers it has, which is
what DistributedDataParallel does for a single forward and backward. Without torchrun everything
here is a no-op for one process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class PeerError(RuntimeError):
    """Another process of the same run has ended, so that this one cannot go on."""


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, within the context: (rank, number of processes).

    gloo between CPUs, nccl between GPUs; on a machine with several GPUs this process takes its own.
    Raises ValueError where the device cannot be shared so.
    """
    if "RANK" not in os.environ:
        yield 0, 1
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: several processes run on cpu or cuda, not on '{device.type}'")
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"--nproc_per_node: {local + 1} or more processes, but {there} GPUs")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield dist.get_rank(), dist.get_world_size()
    # Not after an error: nccl would wait for the others, who wait for this one. The exit of this
    # process closes its connections and so ends them.
    dist.destroy_process_group()


def rank_label() -> str:
    """ "rank 1: " in front of what one of several processes says, else nothing."""
    return f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""


def wait_for_all() -> None:
    """Return when every process has come here. Raises PeerError if one never will."""
    agree(0)


def agree(value: int | None) -> int | None:
    """The largest value that any process brings here (None is less), the same on all of them."""
    if not dist.is_initialized():
        return value
    brought = torch.tensor(0 if value is None else value)
    _collective(dist.all_reduce, brought, dist.ReduceOp.MAX)
    return int(brought) or None


def average(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each term's mean over processes, which must bring the same names; no sync with a GPU."""
    if not dist.is_initialized():
        return terms
    values = torch.stack([term.float() for term in terms.values()])
    _collective(dist.all_reduce, values.div_(dist.get_world_size()))
    return dict(zip(terms, values.unbind(), strict=True))


def synchronise(model: nn.Module) -> None:
    """Give every process the weights of rank 0, and let its optimisers see averaged gradients.

    A module with an attribute `over_processes` gets the mean of a value over all processes there.
    """
    if not dist.is_initialized():
        return
    for tensor in model.state_dict().values():
        whole = tensor.contiguous()  # channels_last weights are not
        _collective(dist.broadcast, whole, 0)
        tensor.copy_(whole)
    for module in model.modules():
        if hasattr(module, "over_processes"):
            module.over_processes = lambda value: average({"value": value})["value"]
    for optimizer in model.optimizers.values():
        optimizer.register_step_pre_hook(_average_gradients)


def _average_gradients(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Hook before a step: one reduction over all gradients that the optimiser is about to use."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _collective(dist.all_reduce, flat.div_(dist.get_world_size()))
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def _collective(operation: Callable[..., object], tensor: Tensor, *arguments: object) -> None:
    try:
        operation(tensor, *arguments)
    except RuntimeError as error:  # what gloo raises when a connection closes
        raise PeerError(f"another process of this run has ended ({error})") from error
