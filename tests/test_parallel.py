"""One run on two processes: the same weights on both, exact resume, no process left behind."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_equal
from parallel_worker import MODELS, linear_steps

from data import Batches
from training.checkpoint import load_checkpoint

WORKER = Path(__file__).with_name("parallel_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@contextlib.contextmanager
def started(*arguments):
    """A torchrun that leaves no process behind, whatever happens in the context."""
    command = [*TORCHRUN, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()  # not kill: torchrun ends its workers first
        process.communicate(timeout=60)


def torchrun(*arguments):
    with started(*arguments) as process:
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error


@pytest.mark.parametrize("name", ["twoD", "twoD_infogan"])
def test_a_straight_run_equals_an_interrupted_one_on_two_processes(command, tmp_path, name):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for root, steps in ((straight, 4), (broken, 2), (broken, 4)):
        arguments = command(f"config/{name}.yaml", runs=root, steps=steps)
        code, _, error = torchrun("train.py", *arguments)
        assert code == 0, error
    a, b = folders = [root / "small/seed0" for root in (straight, broken)]
    ours, theirs = (load_checkpoint(folder)[0] | {"seconds": 0} for folder in folders)
    assert_equal(ours, theirs)
    assert (a / "log.csv").read_bytes() == (b / "log.csv").read_bytes()
    record = json.loads((a / "run.json").read_text())
    assert record["starts"][0]["processes"] == 2


def test_no_thread_of_a_process_group_is_left_to_abort_its_process(monkeypatch):
    words = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}
    for name, value in words.items():
        monkeypatch.setenv(name, str(value))
    code = """
from pathlib import Path
import torch
from training.processes import average, process_group
with process_group(torch.device("cpu")):
    torch.optim.Adam([torch.ones(2)])
    average({"value": torch.ones(2)})
print([path.read_text() for path in Path("/proc/self/task").glob("*/comm")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "python" in result.stdout
    assert "gloo" not in result.stdout


def test_weights_and_logged_terms_are_equal_on_both_processes(tmp_path):
    code, _, error = torchrun(WORKER, "train", tmp_path)
    assert code == 0, error
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name in MODELS:
        ours, theirs = (rank[name] for rank in ranks)
        weights = [key for key in ours["state"] if "running" not in key]  # each its own batch norm
        assert weights
        assert all(torch.equal(ours["state"][key], theirs["state"][key]) for key in weights)
        assert ours["terms"] == theirs["terms"]
        assert ours["index"] != theirs["index"]  # of other images


def test_two_processes_step_as_one_on_the_whole_batch(tmp_path):
    code, _, error = torchrun(WORKER, "linear", tmp_path)
    assert code == 0, error
    two = torch.load(tmp_path / "rank0.pt")
    one = linear_steps(Batches(64, 8, seed=0))
    torch.testing.assert_close(two["weight"], one["weight"], rtol=1e-5, atol=1e-6)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_each_process_draws_noise_of_its_own(command, tmp_path):
    arguments = command("config/twoD_vae.yaml")
    code, _, error = torchrun(WORKER, "noise", tmp_path, *arguments)
    assert code == 0, error
    ours, theirs = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len({*ours, *theirs}) == 8


@pytest.mark.parametrize(
    ("task", "part"),
    [("fail", "rank 1: deliberate"), ("leave", "another process of this run has ended")],
)
def test_a_process_that_ends_ends_the_others_and_says_why(command, tmp_path, task, part):
    began = time.monotonic()
    arguments = command("config/twoD_vae.yaml", "train.log_every=100", steps=10**6)
    code, _, error = torchrun(WORKER, task, tmp_path, *arguments)
    assert code != 0
    assert part in error
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("objective.betta=1", r"train.py: rank [01]: unknown key .* did you mean 'beta'\?"),
        ("train.batch_size=7", "train.batch_size: 7 is not divisible by .*2 processes"),
    ],
)
def test_bad_input_is_one_sentence_a_process(command, override, part):
    code, _, error = torchrun("train.py", *command("config/twoD.yaml", override))
    assert code != 0
    assert re.search(part, error)


def test_an_interruption_saves_on_two_processes(command, tmp_path):
    arguments = command("config/twoD.yaml", steps=100_000)
    log = tmp_path / "runs/small/seed0/log.csv"
    deadline = time.monotonic() + 120
    with started("train.py", *arguments) as process:
        while not log.exists() or log.read_text().count("\n") < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "The same command resumes" in out
    assert load_checkpoint(tmp_path / "runs/small/seed0")[0]["step"] >= 4
