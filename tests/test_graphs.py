"""Steps replayed as graphs equal usual ones; without a GPU, a tape stands in for a CUDA graph."""

from unittest import mock

import pytest
import torch
from conftest import CONFIGS, assert_equal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import runs
import train
from models import graphs, rotation
from models.objectives import OBJECTIVES, vae_elbo
from training.checkpoint import load_checkpoint, state_of
from training.log import Window

BRANCHES = {  # configuration -> steps of each graph; the average of a generator starts at step 0
    "twoD_vae": [10],
    "twoD_affine": [4, 6],
    "twoD_infogan_cr": [1, 3, 2, 4],  # a penalty every fourth step, and from step 4 contrasts
}
PHASES = {"draw_from": 4, "category_from": 6, "cr_start": 4, "muon_from": 4, "lr_decay_steps": 8}


class Tape(TorchDispatchMode):
    """Like a CUDA graph, the operations of some work with their arguments and memory.

    No Python code of the work runs in a replay. Recording leaves all tensors as they were.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.own, self.before = [], set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default  # a GPU would wait
        inputs = fixed((args, kwargs or {}))
        for tensor in tensors(inputs):
            if address(tensor) not in self.own:  # it was there before
                self.before.setdefault(address(tensor), (tensor, tensor.clone()))
        result = function(*args, **kwargs or {})
        self.own |= {address(tensor) for tensor in tensors(result)} - self.before.keys()
        aliases = [out.alias_info for out in function._schema.returns]
        is_view = any(alias and not alias.is_write for alias in aliases)
        if not is_view and torch.Tag.inplace_view not in function.tags:
            self.calls.append((function, inputs, fixed(result)))
        return result

    def replay(self):
        for function, (args, kwargs), result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def fixed(value):
    """The same memory with its present shape, which an operation in place may change."""
    return tree_map_only(Tensor, Tensor.detach, value)


def address(tensor):
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """CudaRecorder on a CPU."""

    def __init__(self):
        self.records = 0

    def run(self, work):
        cpu, waits = Tensor.cpu, []  # the CPU would wait for a GPU there
        with mock.patch.object(Tensor, "cpu", lambda tensor: waits.append(1) or cpu(tensor)):
            return work(), bool(waits)

    def record(self, work):
        self.records += 1
        state, tape = torch.get_rng_state(), Tape()
        with tape:
            terms = work()
        torch.set_rng_state(state)
        for tensor, before in tape.before.values():
            tensor.copy_(before)
        return tape.replay, terms


def ten_steps(path, squares, monkeypatch, recorder, later=()):
    """The state after ten steps of a configuration, and the function that took them."""
    monkeypatch.setattr(runs, "choose_recorder", lambda device: recorder)
    values = runs.resolve(path, [f"dataset={{name: npz, path: {squares}}}", *later])
    data, model = runs.build(values, torch.device("cpu"))
    train_step, window = runs.train_step(model, data, graphs=True), Window(torch.device("cpu"))
    model.train()
    for step in range(10):
        torch.manual_seed(step)
        window.add(train_step(data.random_index(8, step), step))
    return state_of(model, window), train_step


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(graphs, "WARM_UP", 1)
    monkeypatch.setattr(rotation, "ACTIVE_KL", 0.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_graphed_steps_equal_usual_ones_bit_for_bit(squares, monkeypatch, path):
    text = path.read_text()
    later = [f"model.{key}={value}" for key, value in PHASES.items() if f"{key}: " in text]
    usual, _ = ten_steps(path, squares, monkeypatch, None, later)
    graphed, train_step = ten_steps(path, squares, monkeypatch, Recorder(), later)
    assert_equal(usual, graphed)
    steps = [branch.steps for branch in train_step.branches]
    assert steps == BRANCHES.get(path.stem, steps)


EVENTS = ["model.muon_from=4", "model.rotate_at=[2, 5]", "model.lr_decay=0.1"]
EVENTS += ["model.lr_decay_steps=8", "objective={name: beta_vae, beta: {0: 1, 5: 8, 9: 2}}"]


@pytest.mark.parametrize(
    ("name", "later"), [("twoD", EVENTS), ("twoD_infogan_cr", ["model.cr_start=4"])]
)
def test_a_graphed_run_resumes_within_a_phase(command, tmp_path, monkeypatch, name, later):
    def run(kind, steps):
        settings = [*later, "train.log_every=5", "train.draw_every=4", "train.cuda_graphs=true"]
        arguments = command(f"config/{name}.yaml", *settings, runs=tmp_path / kind, steps=steps)
        assert train.main(arguments) == 0
        return tmp_path / kind / "small/seed0"

    monkeypatch.setattr(train, "draw", lambda *_: None)
    usual, recorder = run("usual", 12), Recorder()
    monkeypatch.setattr(runs, "choose_recorder", lambda device: recorder)
    run("graphed", 7)
    graphed = run("graphed", 12)
    assert recorder.records >= 3
    assert_equal(*(load_checkpoint(folder)[0] | {"seconds": 0} for folder in (usual, graphed)))
    assert (usual / "log.csv").read_bytes() == (graphed / "log.csv").read_bytes()


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_that_no_graph_can_repeat_is_taken_as_usual(squares, monkeypatch, capsys, waits):
    def objective(vae, x, step):
        loss, terms = vae_elbo(vae, x, step)
        return loss * float(x.cpu().mean()) if waits else min(step / 4, 1.0) * loss, terms

    monkeypatch.setitem(OBJECTIVES, "vae", objective)
    states = []
    for recorder in (None, Recorder()):
        states.append(ten_steps("config/twoD_vae.yaml", squares, monkeypatch, recorder)[0])
    assert_equal(*states)
    assert recorder.records == 0
    assert capsys.readouterr().err.count("warning: no CUDA graphs") == 1
