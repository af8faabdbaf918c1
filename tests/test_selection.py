"""Held-out and correlated factors: what is trained on, and what is scored on each part."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_equal
from scipy.stats import chisquare
from test_parallel import torchrun

import codes
import evaluate
import results
import runs
import train
from data import Batches, FactorGrid, FactorTable, ImageData, restrict
from data.dsprites import GRID
from models import rotation
from training.checkpoint import load_checkpoint

NAMES, SIZES = ("shape", "angle", "x"), (3, 8, 6)
HELD_OUT = "dataset.keep=not (size == 2 and posX < 2)"
CORRELATED = "dataset.correlate={factors: [posX, posY], sigma: 0.3}"


@pytest.fixture(scope="module")
def data():
    return ImageData("own", torch.ones(144, 1, 8, 8, dtype=torch.uint8), FactorGrid(NAMES, SIZES))


def stream(data, steps, batch_size=12, seed=3, **how):
    how |= {"kept": data.kept, "cumulative": data.cumulative}
    batches = Batches(data.num_training, batch_size, seed, **how)
    return torch.cat([batches[step] for step in range(steps)])


SHAPE, ANGLE, X = FactorGrid(NAMES, SIZES).factors(np.arange(144)).T


@pytest.mark.parametrize(
    ("keep", "mask"),
    [
        ("not (shape == 2 and angle < 4)", (SHAPE != 2) | (ANGLE >= 4)),
        ("1 <= angle < 3 or x in [0, 5]", ((ANGLE >= 1) & (ANGLE < 3)) | (X == 0) | (X == 5)),
        ({"composition": ["angle", "x"]}, (ANGLE < 4) | (X < 3)),
        ({"composition": ["shape", "angle", "x"]}, 0 + (SHAPE == 2) + (ANGLE > 3) + (X > 2) <= 1),
        ({"interpolation": ["shape", "angle", "x"]}, ~np.isin(ANGLE, [2, 6]) & (X != 2)),
        ({"extrapolation": ["angle", "x"]}, (ANGLE < 6) & (X < 4)),
    ],
)
def test_an_epoch_draws_exactly_what_is_kept(data, keep, mask):
    part = restrict(data, keep=keep)
    assert part.kept.tolist() == np.flatnonzero(mask).tolist()
    assert part.parts["held_out"].tolist() == np.flatnonzero(~mask).tolist()
    epochs = stream(part, 3 * part.num_training, batch_size=1).view(3, -1)
    assert all(sorted(epoch.tolist()) == part.kept.tolist() for epoch in epochs)
    assert set(part.training_index(5000, seed=1).tolist()) == set(part.kept.tolist())
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_a_random_share_is_the_same_for_all_seeds(data):
    part = restrict(data, keep={"random": 0.25})
    assert part.num_training == 36
    assert part.kept.tolist() == restrict(data, keep={"random": 0.25}).kept.tolist()
    assert set(stream(part, 3, seed=1).tolist()) == set(stream(part, 3, seed=2).tolist())
    unlabelled = ImageData("own", data.images, None)
    assert restrict(unlabelled, keep={"random": 0.25}).kept.tolist() == part.kept.tolist()


def test_a_split_takes_the_order_of_measured_factors():
    values = np.array([[0.1, 3.0], [0.1, 7.0], [0.4, 3.0], [0.4, 7.0]])
    measured = ImageData("own", torch.ones(4, 1, 8, 8).byte(), FactorTable(("a", "b"), values))
    assert restrict(measured, keep={"composition": ["a", "b"]}).kept.tolist() == [0, 1, 2]
    assert restrict(measured, keep="a < 0.2 or b > 5").kept.tolist() == [0, 1, 3]


def test_without_a_restriction_the_order_is_that_of_published_runs(data):
    whole = restrict(data)
    assert (whole.num_training, whole.parts) == (144, {})
    assert torch.equal(stream(whole, 20), torch.cat([Batches(144, 12, 3)[i] for i in range(20)]))
    assert stream(whole, 1).tolist()[:6] == [93, 76, 101, 75, 74, 27]
    assert torch.equal(whole.training_index(50, seed=1), whole.random_index(50, seed=1))


def pair_frequencies(sigma):
    """Exact frequencies (8, 6) of angle and x."""
    difference = np.linspace(0, 1, 8)[:, None] - np.linspace(0, 1, 6)
    weights = np.exp(-(difference**2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("draw", ["batches", "training_index"])
def test_pairs_are_drawn_as_often_as_the_formula_says(data, draw):
    part = restrict(data, correlate={"factors": ["angle", "x"], "sigma": 0.2})
    index = stream(part, 5000) if draw == "batches" else part.training_index(60_000, seed=1)
    counts = np.zeros((3, 8, 6))
    np.add.at(counts, (SHAPE[index], ANGLE[index], X[index]), 1)
    expected = pair_frequencies(0.2) * len(index)
    assert chisquare(counts.sum(0).ravel(), expected.ravel()).pvalue > 0.01
    assert chisquare(counts.sum((1, 2))).pvalue > 0.01  # the third factor stays uniform
    assert chisquare(counts.sum(0).ravel(), np.full(48, len(index) / 48)).pvalue < 1e-9


def test_correlation_and_held_out_factors_combine(data):
    correlate = {"factors": ["angle", "x"], "sigma": 0.2}
    part = restrict(data, keep="shape == 1 and angle < 6", correlate=correlate)
    index = stream(part, 5000)
    assert set(index.tolist()) <= set(part.kept.tolist())
    counts = Counter(zip(ANGLE[index].tolist(), X[index].tolist(), strict=True))
    expected = pair_frequencies(0.2)[:6]
    counts = [counts[pair] for pair in np.ndindex(6, 6)]
    assert chisquare(counts, (expected / expected.sum() * 60_000).ravel()).pvalue > 0.01


@pytest.mark.parametrize("settings", [{"keep": "x < 3"}, {"correlate": {}}, {}])
def test_ranks_share_the_same_batch(data, settings):
    if "correlate" in settings:
        settings = {"correlate": {"factors": ["angle", "x"], "sigma": 0.2}}
    part = restrict(data, **settings)
    ranks = [stream(part, 4, rank=rank, world_size=3).view(4, 4) for rank in range(3)]
    assert torch.equal(torch.stack(ranks, 2).view(-1), stream(part, 4))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("shape = 2", "keep: 'shape = 2' is not allowed; allowed: comparisons of shape, angle, x"),
        ("size == 2", "comparisons of shape, angle, x with numbers, joined by and, or, not"),
        ("x.sum() > 3", "is not allowed"),
        ("__import__('os').getcwd() == 1", "is not allowed"),
        ("x + 1", "is not allowed"),
        ("x < 'a'", "is not allowed"),
        ("x in 3", "is not allowed"),
        ("shape", "is not allowed"),
        ("x < 6", "x < 6 keeps 144 of 144 images; allowed: 2 or more, not all"),
        ("x > 6", "keeps 0 of 144 images"),
        ({"random": 1.5}, "keeps 144 of 144 images"),
        ({"random": "a"}, r"allowed: an expression, \{random: share\} or \{composition \| "),
        ({"composition": ["size"]}, r"no factor \['size'\]; allowed: shape, angle, x"),
        ({"composition": "x"}, "is not allowed"),
        ({"random": 0.5, "composition": ["x"]}, "is not allowed"),
        (3, "dataset.keep: 3 is not allowed"),
    ],
)
def test_a_mistake_is_named(data, keep, message):
    with pytest.raises(ValueError, match=message):
        restrict(data, keep=keep)


@pytest.mark.parametrize(
    ("factors", "sigma", "message"),
    [
        (["angle", "size"], 0.2, r"correlate: no factor \['size'\]; allowed: shape, angle, x"),
        (["angle"], 0.2, r"allowed: \{factors: \[two names\], sigma: number above 0\}"),
        (["angle", "angle"], 0.2, "is not allowed"),
        (["angle", "x"], 0, "is not allowed"),
        (["angle", "x"], "a", "is not allowed"),
    ],
)
def test_a_mistake_in_a_correlation_is_named(data, factors, sigma, message):
    with pytest.raises(ValueError, match=message):
        restrict(data, correlate={"factors": factors, "sigma": sigma})
    with pytest.raises(ValueError, match="a data set with factors"):
        restrict(ImageData("own", data.images, None), keep="x < 3")


def test_the_splits_of_dsprites():
    factors, shares = ["scale", "orientation", "posX", "posY"], {}
    sprites = ImageData("dsprites", torch.empty(len(GRID), 1, 1, 1).byte(), GRID)
    for name in ("composition", "interpolation", "extrapolation"):
        shares[name] = restrict(sprites, keep={name: factors}).num_training / len(GRID)
    assert shares == {"composition": 5 / 16, "interpolation": 45 / 128, "extrapolation": 9 / 32}


# Runs


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("override", [HELD_OUT, CORRELATED])
def test_a_straight_run_equals_an_interrupted_one(
    command, tmp_path, monkeypatch, override, processes
):
    monkeypatch.setattr(rotation, "ACTIVE_KL", 0.0)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for root, steps in ((straight, 6), (broken, 3), (broken, 6)):
        keys = [override, "model.rotate_at=[2, 4]", "train.draw_every=100"]
        words = command("config/twoD.yaml", *keys, runs=root, steps=steps)
        result = train.main(words) if processes == 1 else torchrun("train.py", *words)[0]
        assert result == 0
    ours, theirs = (load_checkpoint(r / "small/seed0")[0] for r in (straight, broken))
    assert_equal(ours | {"seconds": 0}, theirs | {"seconds": 0})


def test_only_kept_images_are_trained_on(command, monkeypatch):
    seen, batch = [], ImageData.batch

    def spy(self, index, dtype=torch.float32):
        seen.extend(index.tolist())
        return batch(self, index, dtype)

    monkeypatch.setattr(ImageData, "batch", spy)
    monkeypatch.setattr(train, "draw", lambda *_: None)  # pictures may show all images
    words = [HELD_OUT, "model.rotate_at=[4]"]
    assert train.main(command("config/twoD.yaml", *words, steps=12)) == 0
    held_out = {i for i in range(48) if i // 16 == 2 and i // 4 % 4 < 2}
    assert set(seen) == set(range(48)) - held_out


@pytest.mark.parametrize("other", [(), (CORRELATED,), ("dataset.keep={random: 0.5}",)])
def test_a_run_with_another_selection_is_another_run(command, capsys, other):
    assert train.main(command("config/twoD.yaml", HELD_OUT)) == 0
    assert train.main(command("config/twoD.yaml", *other, steps=6)) == 2
    assert "holds another run (dataset.keep: not (size == 2 and" in capsys.readouterr().err


def test_an_objective_counts_the_images_that_are_kept(command):
    words = command("config/twoD_tcvae.yaml", HELD_OUT)
    _, model = runs.build(runs.resolve(words[1], words[4:]), torch.device("cpu"))
    assert model.objective.keywords["dataset_size"] == 40


def test_scores_of_kept_held_out_and_all_images(command, tmp_path, capsys, monkeypatch):
    assert train.main(command("config/twoD.yaml", HELD_OUT)) == 0
    folder, encoded = tmp_path / "runs/small/seed0", []
    encode = runs.encode
    monkeypatch.setattr(runs, "encode", lambda *a, **k: encoded.append(a) or encode(*a, **k))
    words = ["--checkpoint", str(folder), "--metrics", "mig", "--samples", "auto"]
    assert evaluate.main([*words, "--device", "cpu"]) == 0
    assert sum(len(arguments) == 2 for arguments in encoded) == 1  # all images, once
    output = capsys.readouterr().out
    assert all(f"small, seed 0{part}" in output for part in ("", ", kept", ", held_out"))
    samples = {}
    for part in ("", "_kept", "_held_out"):
        content = json.loads((folder / f"metrics{part}.json").read_text())
        samples[part] = content["scores"]["mig"]["settings"]["num_samples"]
    assert samples == {"": 48, "_kept": 40, "_held_out": 8}
    row = results.read_run(folder, runs.load(folder).values, 4)
    content = json.loads((folder / "metrics_held_out.json").read_text())
    assert row["recon_held_out"] == content["recon"] > 0
    assert f"held_out: recon {content['recon']:.1f} nats" in output
    frame = results.with_parts(results.as_frame([row]))
    assert list(frame["config"]) == ["small", "small, kept", "small, held out"]
    assert frame["mig"].iloc[2] == content["scores"]["mig"]["score"]


def test_recon_is_of_the_images_of_a_part(data):
    """The decoder says p = 0.5 everywhere: log 2 for each pixel."""
    part = restrict(data, keep="x < 5")
    pixels, images = data.images[0].numel(), {}

    class Decoder(torch.nn.Module):
        likelihood, dtype = "bernoulli", torch.float32

        def forward(self, x):
            images.update(enumerate(x))
            return torch.zeros_like(x), None, None

    run = runs.Run(Path(), {}, 0, "sha", part, Decoder())
    assert codes.recon(run, part.parts["held_out"]) == pytest.approx(pixels * np.log(2))
    assert len(images) == len(part.parts["held_out"])
    assert codes.recon(replace(run, model=torch.nn.Identity()), part.parts["kept"]) is None
