"""train.compile: compiled networks are the plain ones, in one piece, on a CPU too."""

import shutil

import pytest
import torch

import train
from models import InfoGAN, build_model
from models.gan_networks import GAN_NETWORKS
from models.networks import DECODERS

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler g++")


def make_vae(network, dtype=torch.float32):
    torch.manual_seed(0)
    vae = build_model((1, 64, 64), {"name": "vae", "network": network}, {"name": "beta_vae"})
    vae = vae.to(memory_format=torch.channels_last)
    vae.dtype = dtype
    return vae


def images(n=8):
    return (torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.05).float()


def gradients(vae, x, **settings):
    """Logits of an x that is its own noise-free code, and the gradients of all weights."""
    if settings:
        vae.encoder.compile(**settings)
        vae.decoder.compile(**settings)
    with vae.autocast(x):
        logits = vae.decoder(vae.encoder(x)[0]).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x)
    return logits, torch.autograd.grad(loss, [*vae.encoder.parameters(), *vae.decoder.parameters()])


@pytest.mark.parametrize("network", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vae_is_traced_in_one_piece_and_stays_itself(network, dtype):
    plain = gradients(make_vae(network, dtype), images())
    traced = gradients(make_vae(network, dtype), images(), backend="aot_eager", fullgraph=True)
    tolerance = {"rtol": 0.05, "atol": 0.01} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(traced, plain, **tolerance)


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_vae_is_the_plain_one(dtype):
    plain = gradients(make_vae("seed", dtype), images())
    compiled = gradients(make_vae("seed", dtype), images(), fullgraph=True)
    tolerance = {"rtol": 0.05, "atol": 0.01} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(compiled, plain, **tolerance)


@pytest.mark.parametrize("network", GAN_NETWORKS)
def test_the_networks_of_infogan_are_traced_in_one_piece_and_stay_themselves(network):
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model((1, 64, 64), {"name": "infogan", "network": network}, None)
        if compiled:
            model.compile(backend="aot_eager", fullgraph=True)
        model.train()
        for step in range(2):
            torch.manual_seed(step)
            terms = model.train_step(images(), step)
        runs.append(terms)
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-3, atol=1e-3)


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
    monkeypatch.setattr(InfoGAN, "compile", lambda self: compile_networks(self, backend=backend))
    monkeypatch.setattr(train.Frames, "add", uncompiled_only(train.Frames.add))
    monkeypatch.setattr(train, "draw_run", uncompiled_only(train.draw_run))
    arguments = command("config/twoD_infogan_sn.yaml", "train.compile=true", steps=2)
    assert train.main([*arguments, "train.draw_every=1"]) == 0
    assert drawn == [True] * 3


def test_on_a_cpu_without_a_compiler_train_compile_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    command = ["--config", "config/twoD_vae.yaml", "--runs", str(tmp_path)]
    assert train.main([*command, "train.compile=true", "train.device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "train.compile: true is not allowed" in error
    assert "'no-such-compiler'" in error
    assert list(tmp_path.iterdir()) == []
