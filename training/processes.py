"""One run on several processes started by torchrun; everything is a no-op for one process.

Each process takes its share of every batch; gradients are averaged right before an optimiser steps.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class PeerError(RuntimeError):
    """Another process of the same run has ended."""


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started: (rank, number of processes)."""
    if "RANK" not in os.environ:
        yield 0, 1
        return
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"--nproc_per_node: {local + 1} or more processes, but {gpus} GPUs")
        torch.cuda.set_device(local)
    # Imported later (optimisers do), its default arguments hold the group, whose threads then
    # outlive destroy_process_group and can abort the process at its exit.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()  # not after an error: nccl would wait for the other processes


def all_reduce_max(value: int | None) -> int | None:
    """Maximum of `value` over all processes; None is the smallest."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value or 0)
    _collective(dist.all_reduce, tensor, dist.ReduceOp.MAX)
    return int(tensor) or None


def average(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of every term over all processes, without waiting for a GPU."""
    if not dist.is_initialized():
        return terms
    values = torch.stack([term.float() for term in terms.values()])
    _collective(dist.all_reduce, values.div_(dist.get_world_size()))
    return dict(zip(terms, values.unbind(), strict=True))


def synchronise(model: nn.Module) -> None:
    """Give all processes the weights of rank 0 and make its optimisers average gradients."""
    if not dist.is_initialized():
        return
    for tensor in model.state_dict().values():
        contiguous = tensor.contiguous()  # channels_last weights are not
        _collective(dist.broadcast, contiguous, 0)
        tensor.copy_(contiguous)
    for module in model.modules():
        if hasattr(module, "over_processes"):  # a function that averages a tensor
            module.over_processes = lambda value: average({"value": value})["value"]
    for optimizer in model.optimizers.values():
        optimizer.register_step_pre_hook(_average_gradients)


def _average_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Average all gradients that this optimiser is about to use, in one all-reduce."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _collective(dist.all_reduce, flat.div_(dist.get_world_size()))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def _collective(operation, tensor: Tensor, *arguments: object) -> None:
    try:
        operation(tensor, *arguments)
    except RuntimeError as error:  # gloo's answer to a closed connection
        raise PeerError(f"another process of this run has ended ({error})") from error
