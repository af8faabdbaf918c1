"""train.compile: compiled networks are the plain ones, in one piece, on a CPU too."""

import shutil
import signal
import sys

import pytest
import torch
from conftest import CONFIGS

import sweep
import train
from data import load_dataset
from models import MODELS, VAE, InfoGAN, build_model
from models.networks import DECODERS
from training import load_checkpoint, need_compiler

# From 20,000 on all has begun; before, networks differ only where something begins later.
STEPS = [(path, 20_000) for path in CONFIGS]
STEPS += [(p, 0) for p in CONFIGS if any(k in p.read_text() for k in ("draw_from:", "cr_start:"))]
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler g++")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def make_vae(network, dtype=torch.float32):
    torch.manual_seed(0)
    vae = build_model((1, 64, 64), {"name": "vae", "network": network}, {"name": "beta_vae"})
    vae = vae.to(memory_format=torch.channels_last)
    vae.dtype = dtype
    return vae


def images(n=8):
    return (torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.05).float()


def gradients(vae, x, **settings):
    """Logits of x by its mean codes, without noise, and the gradients of all weights."""
    if settings:
        vae.encoder.compile(**settings)
        vae.decoder.compile(**settings)
    with vae.autocast(x):
        logits = vae.decoder(vae.encoder(x)[0]).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x)
    return logits, torch.autograd.grad(loss, [*vae.encoder.parameters(), *vae.decoder.parameters()])


def assert_stays_itself(network, dtype, **settings):
    plain = gradients(make_vae(network, dtype), images())
    compiled = gradients(make_vae(network, dtype), images(), fullgraph=True, **settings)
    tolerance = {"rtol": 0.05, "atol": 0.01} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(compiled, plain, **tolerance)


def test_a_model_that_cannot_be_compiled_is_refused(monkeypatch, squares):
    class Plain(torch.nn.Module):
        latent_dim, optimizers = 2, {}

        def __init__(self, image_shape):
            super().__init__()

    monkeypatch.setitem(MODELS, "plain", Plain)
    values = {"seed": 0, "model": {"name": "plain"}, "objective": None}
    values["train"] = {"precision": "fp32", "compile": True}
    data = load_dataset("npz", path=str(squares))
    with pytest.raises(ValueError, match="'plain' has no forward or compile of its own"):
        train.make_model(values, data, torch.device("cpu"))


@pytest.mark.parametrize("network", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vae_is_traced_in_one_piece_and_stays_itself(network, dtype):
    assert_stays_itself(network, dtype, backend="aot_eager")


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_vae_is_the_plain_one(dtype):
    assert_stays_itself("seed", dtype)


@pytest.mark.parametrize(("path", "first"), STEPS, ids=lambda value: getattr(value, "stem", value))
def test_every_configuration_is_traced_in_one_piece_and_stays_itself(path, first):
    values = train.resolve(path, ["train.device=cpu"])
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model((1, 64, 64), values["model"], values["objective"], 1000)
        if compiled:
            model.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        model.train()
        runs.append(model.train_step(images(), first))
        assert all(term.isfinite() for term in model.train_step(images(), first + 1).values())
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-3, atol=1e-3)


@compiler
def test_a_compiled_run_goes_on_bit_for_bit(command, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for runs, steps in ((straight, 4), (broken, 2), (broken, 4)):
        arguments = command("config/twoD.yaml", "train.compile=true", runs=runs, steps=steps)
        assert train.main(arguments) == 0
    logs = [(runs / "small/seed0/log.csv").read_text() for runs in (straight, broken)]
    assert logs[0] == logs[1]
    states = [load_checkpoint(runs / "small/seed0")["model"] for runs in (straight, broken)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_a_compiler_says_is_told_in_a_sentence(command, monkeypatch, capsys, interrupted):
    def backend(graph, inputs):
        if interrupted:
            signal.raise_signal(signal.SIGINT)  # which a compiler gets too
        raise RuntimeError("no room for a library")

    compile_vae = VAE.compile
    monkeypatch.setattr(VAE, "compile", lambda self, **_: compile_vae(self, backend=backend))
    found = train.main(command("config/twoD.yaml", "train.compile=true"))
    error = capsys.readouterr().err.splitlines()[-1]
    assert found == (130 if interrupted else 1)
    assert ("stopped; the same command" if interrupted else "no room for a library") in error


def test_pictures_are_drawn_without_compiling_for_their_shapes(command, monkeypatch):
    graphs, drawn = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def uncompiled_only(function):
        def wrapped(*arguments, **settings):
            before = len(graphs)
            function(*arguments, **settings)
            drawn.append(before > 0 and len(graphs) == before)

        return wrapped

    compile_networks = InfoGAN.compile
    monkeypatch.setattr(
        InfoGAN, "compile", lambda self, **_: compile_networks(self, backend=backend)
    )
    monkeypatch.setattr(train.Frames, "add", uncompiled_only(train.Frames.add))
    monkeypatch.setattr(train, "draw_run", uncompiled_only(train.draw_run))
    arguments = command("config/twoD_infogan_sn.yaml", "train.compile=true", steps=2)
    assert train.main([*arguments, "train.draw_every=1"]) == 0
    assert drawn == [True] * 3


def test_without_a_compiler_train_compile_is_refused(command, tmp_path, monkeypatch, capsys):
    assert train.main(command("config/twoD.yaml")) == 0  # complete: needs none
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert train.main(command("config/twoD.yaml", "name=other", "train.compile=true")) == 2
    error = capsys.readouterr().err
    assert "train.compile: true is not allowed without a compiler (no-such-compiler is" in error
    assert not (tmp_path / "runs/other").exists()
    arguments = ["--config", "config/twoD.yaml", "--runs", str(tmp_path / "swept"), "--dry-run"]
    assert sweep.main([*arguments, "train.compile=true", "train.device=cpu", "seed=0-1"]) == 2
    assert "train.compile: true is not allowed" in capsys.readouterr().err


def test_which_compiler_is_needed(monkeypatch):
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, f"{sys.executable} -O1")
    for kind in ("cpu", "cuda", "mps"):
        need_compiler(torch.device(kind))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ValueError, match="a compiler or its path in CC"):
        need_compiler(torch.device("cuda"))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="a compiler or its path in CXX"):
        need_compiler(torch.device("cpu"))
