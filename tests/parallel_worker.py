"""What tests/test_parallel.py runs on two processes: torchrun parallel_worker.py TASK FOLDER ..."""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import train
from data import Batches
from models import build_model
from models.objectives import OBJECTIVES, vae_elbo
from training.processes import average, process_group, synchronise

MODELS = {
    "vae": ({"name": "vae"}, {"name": "beta_vae", "beta": 4.0}),
    "controlled": ({"name": "vae"}, {"name": "controlled_vae"}),
    "infogan": ({"name": "infogan"}, None),
}


class Linear(nn.Module):
    """A model whose step is a plain function of its images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16))
        self.optimizers = {"sgd": torch.optim.SGD(self.parameters(), lr=0.01)}

    def train_step(self, x, step):
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


def train_models(rank):
    """Three steps of each model from weights that differ by rank."""
    images = (torch.rand(32, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    result = {}
    for name, (model, objective) in MODELS.items():
        torch.manual_seed(rank)
        built, batches = build_model((1, 64, 64), model, objective), Batches(32, 8, 0, rank, 2)
        synchronise(built)
        rows = []
        for step in range(3):
            torch.manual_seed(100 * step + rank)
            rows.append(average(built.train_step(images[batches[step]], step)))
        terms = [{key: value.item() for key, value in row.items()} for row in rows]
        state = {key: value.clone() for key, value in built.state_dict().items()}
        result[name] = {"state": state, "terms": terms, "index": batches[0].tolist()}
    return result


def run_with_objective(task, folder, arguments):
    """train.py with an objective that notes its random numbers, fails, or leaves its peer."""
    rank, draws = int(os.environ["RANK"]), []

    def objective(vae, x, step):
        draws.append(torch.rand(()).item())
        if rank == 1 and step == 4 and task == "fail":
            raise ValueError("deliberate")
        if rank == 1 and step == 4 and task == "leave":
            os.closerange(3, 4096)  # closes the connections, as the end of a process does
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)  # torchrun ends this process once the other one has ended
        return vae_elbo(vae, x, step)

    OBJECTIVES["vae"] = objective
    code = train.main(arguments)
    torch.save(draws, Path(folder) / f"rank{rank}.pt")
    return code


if __name__ == "__main__":
    task, folder, *arguments = sys.argv[1:]
    if arguments:
        sys.exit(run_with_objective(task, folder, arguments))
    with process_group(torch.device("cpu")) as (rank, processes):
        if task == "linear":
            result = linear_steps(Batches(64, 8, 0, rank, processes))
        else:
            result = train_models(rank)
        torch.save(result, Path(folder) / f"rank{rank}.pt")
