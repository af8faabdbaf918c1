"""What tests/test_parallel.py runs on two processes: torchrun parallel_worker.py TASK FOLDER."""

import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import nn

from models import build_model
from training import Batches, Log, process_group, synchronise, train
from training.parallel import average

CPU = torch.device("cpu")
MODELS = {
    "vae": ({"name": "vae"}, {"name": "beta_vae", "beta": 4.0}),
    "controlled": ({"name": "vae"}, {"name": "controlled_vae"}),
    "infogan": ({"name": "infogan"}, None),
}


class Linear(nn.Module):
    """A model whose step is a plain function of its images; `draws` are its random numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16))
        self.optimizers = {"sgd": torch.optim.SGD(self.parameters(), lr=0.01)}
        self.draws = []

    def train_step(self, x, step):
        self.draws.append(torch.rand(()).item())
        loss = (x.flatten(1) @ self.weight).square().mean()
        self.optimizers["sgd"].zero_grad()
        loss.backward()
        self.optimizers["sgd"].step()
        return {"loss": loss.detach()}


def linear_steps(batches):
    """Three steps on images of 4x4 pixels."""
    images = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Linear()
    synchronise(model)
    losses = [average(model.train_step(images[batches[i]], i))["loss"].item() for i in range(3)]
    return {"weight": model.weight.detach(), "loss": losses}


def train_models(rank, processes):
    """Three steps of each model from weights that differ by rank; what the process ends with."""
    images = (torch.rand(32, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    found = {}
    for name, (model, objective) in MODELS.items():
        torch.manual_seed(rank)
        built, batches = build_model((1, 64, 64), model, objective), Batches(32, 8, 0, rank, 2)
        synchronise(built)
        terms = []
        for step in range(3):
            torch.manual_seed(100 * step + rank)
            terms.append(average(built.train_step(images[batches[step]], step)))
        numbers = [{key: value.item() for key, value in row.items()} for row in terms]
        state = {key: value.clone() for key, value in built.state_dict().items()}
        found[name] = {"state": state, "terms": numbers, "index": batches[0].tolist()}
    return found


def main(task, folder):
    with process_group(CPU) as (rank, processes):
        if task == "train":
            result = train_models(rank, processes)
        elif task == "linear":
            result = linear_steps(Batches(64, 8, 0, rank, processes))
        elif task == "noise":
            result = draws_in_training(Batches(64, 8, 0, rank, processes), folder)
        else:
            result = None
            lose_a_peer(rank, processes, folder, raises=task == "fail")
        torch.save(result, Path(folder) / f"rank{rank}.pt")


def draws_in_training(batches, folder):
    """The random numbers of three steps of the training loop."""
    model, images = Linear(), torch.rand(64, 1, 4, 4)
    every = {"log_every": 10, "draw_every": 10, "save_every": 10}
    train(
        model,
        images.__getitem__,
        batches,
        Path(folder) / "checkpoint.pt",
        Log(Path(folder), 0) if batches.rank == 0 else None,
        start={"step": 0},
        steps=3,
        seed=0,
        draw=lambda step: None,
        **every,
    )
    return model.draws


def lose_a_peer(rank, processes, folder, raises):
    """Train for long, with one process that raises or closes its connections in its fifth step."""
    model = Linear()
    synchronise(model)
    images = torch.rand(64, 1, 4, 4)

    def batch(index):
        calls.append(1)
        if rank == 1 and len(calls) == 5:
            if raises:
                raise ValueError("deliberate")
            dist.destroy_process_group()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)  # until torchrun, when the other has ended, ends this one
        return images[index]

    calls = []
    every = {"log_every": 10**6, "draw_every": 10**6, "save_every": 10**6}
    train(
        model,
        batch,
        Batches(64, 8, 0, rank, processes),
        Path(folder) / "checkpoint.pt",
        None,
        start={"step": 0},
        steps=10**6,
        seed=0,
        draw=lambda step: None,
        **every,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
