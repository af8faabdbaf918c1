"""Decorated dSprites beside the code of disentanglement_lib; the coloured squares of disent."""

import importlib
import sys
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import assert_equal
from PIL import Image
from test_graphs import Recorder, ten_steps

import runs
import train
from data import Batches, ImageData, PackedImages, dsprites, load_dataset
from data.decoration import Decoration, _hash, colour, noisy, scream, uniform
from models import graphs
from training.checkpoint import load_checkpoint

DRAWS = {"colour_dsprites": colour, "noisy_dsprites": noisy, "scream_dsprites": scream}
SPRITES = np.zeros((64, 64, 64), np.uint8)
for row in range(64):
    SPRITES[row, 10 + row // 2 : 30, 5 + row // 4 : 40] = 1
MASK = torch.from_numpy(SPRITES)[:, None].expand(-1, 3, -1, -1).bool()  # (64, 3, 64, 64)


@pytest.fixture
def picture(tmp_path):
    """A file of 320 x 300 random pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(300, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scream.png")
    return tmp_path / "scream.png"


@pytest.fixture
def load(picture, monkeypatch):
    """Load a decorated set that has 64 sprites only."""
    packed = torch.from_numpy(np.packbits(SPRITES.reshape(64, -1), axis=1))
    plain = ImageData("dsprites", PackedImages(packed), None, levels=1)
    monkeypatch.setattr(dsprites, "load_dsprites", lambda cache_dir: plain)
    runs._load_data.cache_clear()
    yield lambda name: load_dataset(**section(name, picture))
    runs._load_data.cache_clear()


def section(name, picture):
    return {"name": name} | ({"path": str(picture)} if name == "scream_dsprites" else {})


# The formulas


class Stream:
    """Stands in for a RandomState: gives certain numbers in [0, 1) in their order."""

    def __init__(self, numbers):
        self.numbers = iter(numbers.double().flatten().tolist())

    def uniform(self, low, high, size):
        numbers = [next(self.numbers) for _ in range(np.prod(size))]
        return low + (high - low) * np.reshape(numbers, size)

    def randint(self, low, high):
        return int(self.uniform(low, high, 1)[0])


@pytest.fixture
def reference(picture, tmp_path, monkeypatch):
    """The reference's module, with files of our sprites and picture."""
    if importlib.util.find_spec("disentanglement_lib") is None:
        pytest.skip("needs the reference: pip install --no-deps disentanglement-lib==1.5")
    gin = SimpleNamespace(configurable=lambda *_, **__: lambda function: function, REQUIRED=None)
    v1 = SimpleNamespace(gfile=SimpleNamespace(Open=open))
    stand_ins = {"gin": gin, "gin.tf": gin, "six": SimpleNamespace(moves=None)}
    stand_ins |= {"six.moves": SimpleNamespace(range=range), "tensorflow.compat.v1": v1}
    compat = SimpleNamespace(v1=v1)
    stand_ins |= {"tensorflow.compat": compat, "tensorflow": SimpleNamespace(compat=compat)}
    with mock.patch.dict(sys.modules, stand_ins):
        module = importlib.import_module("disentanglement_lib.data.ground_truth.dsprites")
    metadata = np.array({"latents_sizes": [1, 1, 1, 1, 8, 8]}, dtype=object)
    np.savez(tmp_path / "dsprites.npz", imgs=SPRITES, metadata=metadata)
    monkeypatch.setattr(module, "DSPRITES_PATH", str(tmp_path / "dsprites.npz"))
    monkeypatch.setattr(module, "SCREAM_PATH", str(picture))
    thumbnail = Image.Image.thumbnail  # its size had three numbers then
    monkeypatch.setattr(Image.Image, "thumbnail", lambda image, size: thumbnail(image, size[:2]))
    return module


@pytest.mark.parametrize(
    ("name", "kind", "n"),
    [
        ("colour_dsprites", "ColorDSprites", 3),
        ("noisy_dsprites", "NoisyDSprites", 3 * 64 * 64),
        ("scream_dsprites", "ScreamDSprites", 5),
    ],
)
def test_the_formulas_are_those_of_disentanglement_lib(load, reference, name, kind, n):
    factors = np.zeros((64, 6), int)
    factors[:, 4:] = np.stack(np.unravel_index(np.arange(64), (8, 8)), axis=1)
    numbers = torch.rand(64, n, generator=torch.Generator().manual_seed(0))
    of_images = numbers
    if name == "noisy_dsprites":  # their channels are last
        of_images = numbers.view(64, 64, 64, 3).permute(0, 3, 1, 2).reshape(64, -1)
    theirs = getattr(reference, kind)().sample_observations_from_factors(factors, Stream(numbers))
    sprites = torch.from_numpy(SPRITES)[:, None].float()
    ours = DRAWS[name](sprites, lambda n: of_images, *load(name).decoration.pictures)
    expected = torch.from_numpy(theirs).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "outside", "inside"),  # mean and variance of pixels
    [
        ("colour_dsprites", (0, 0), (3 / 4, 1 / 48)),
        ("noisy_dsprites", (1 / 2, 1 / 12), (1, 0)),
        ("scream_dsprites", (1 / 2, 1 / 24), (1 / 2, 1 / 24)),  # uniform pixels, uniform colours
    ],
)
def test_mean_and_variance_of_pixels(load, picture, name, outside, inside):
    pixels = np.random.default_rng(1).integers(256, size=(270, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)  # small enough to stay as it is
    data = load(name)
    x = torch.stack([data.batch(torch.arange(64), key=key) for key in range(100)])
    for mask, (mean, variance) in ((~MASK, outside), (MASK, inside)):
        pixels = x[:, mask].double()
        assert pixels.mean().item() == pytest.approx(mean, abs=0.006)  # 19,200 colours
        assert pixels.var().item() == pytest.approx(variance, abs=0.001)


# Numbers are a function of (key, image)


def test_the_hash_is_lowbias32():
    def reference(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x

    words = [0, 1, 2, 123_456_789, 2**31 - 1, -(2**31), -1]
    ours = _hash(torch.tensor(words, dtype=torch.int32)).tolist()
    assert [word % 2**32 for word in ours] == [reference(word % 2**32) for word in words]


def test_numbers_are_uniform_and_independent_across_elements_images_and_keys():
    x = torch.stack([uniform(key, torch.arange(50), 400) for key in range(50)]).double()
    n = x.numel()  # a million
    assert 0 <= x.min() < 1e-5
    assert 1 - 1e-5 < x.max() < 1
    counts = torch.histc(x, 100, 0, 1)
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 149  # chi-square of 99, p = 0.001
    for axis in range(3):
        shifted = (x - 0.5) * (x.roll(1, axis) - 0.5) * 12
        assert abs(shifted.mean()) < 4 / n**0.5
    wide = uniform(2**62 + 5, torch.arange(9), 9)
    assert torch.equal(wide, uniform(torch.tensor(2**62 + 5), torch.arange(9), 9))
    assert not torch.equal(wide, uniform(5, torch.arange(9), 9))


@pytest.mark.parametrize("name", DRAWS)
def test_an_image_is_the_same_in_every_batch_and_process(load, name):
    data, key = load(name), 7
    whole = data.batch(torch.arange(64), key=key)
    assert (data.image_shape, whole.dtype) == ((3, 64, 64), torch.float32)
    assert torch.equal(whole[[9, 3]], data.batch(torch.tensor([9, 3]), key=torch.tensor(key)))
    assert not torch.equal(whole, data.batch(torch.arange(64), key=8))
    assert torch.equal(whole.bfloat16(), data.batch(torch.arange(64), torch.bfloat16, key))

    model = SimpleNamespace(dtype=torch.float32, train_step=lambda x, step: x)
    one = runs.train_step(model, data, seed=1)(Batches(64, 12, 0)[5], 5)
    parts = [Batches(64, 12, 0, rank, 3)[5] for rank in range(3)]
    parts = [runs.train_step(model, data, seed=1)(part, 5) for part in parts]
    assert torch.equal(one, torch.stack(parts, 1).flatten(0, 1))
    other = runs.train_step(model, data, seed=2)(Batches(64, 12, 0)[5], 5)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", DRAWS)
def test_a_straight_run_equals_an_interrupted_one(load, command, picture, tmp_path, name):
    data = f"dataset={section(name, picture)}"
    for root, steps in (("straight", 4), ("broken", 2), ("broken", 4)):
        arguments = command("config/twoD_vae.yaml", data, runs=tmp_path / root, steps=steps)
        assert train.main(arguments) == 0
    straight, broken = (tmp_path / root / "small/seed0" for root in ("straight", "broken"))
    assert_equal(*(load_checkpoint(folder)[0] | {"seconds": 0} for folder in (straight, broken)))
    for file in ("log.csv", "fixed.png", "random.png", "recon.png", "traversal.gif"):
        assert (straight / file).read_bytes() == (broken / file).read_bytes(), file


@pytest.mark.parametrize("name", DRAWS)
def test_graphed_steps_draw_the_decoration_of_their_step(load, squares, picture, monkeypatch, name):
    monkeypatch.setattr(graphs, "WARM_UP", 1)
    steps = partial(ten_steps, "config/twoD_vae.yaml", squares, monkeypatch)
    later, recorder = [f"dataset={section(name, picture)}"], Recorder()
    assert_equal(steps(None, later)[0], steps(recorder, later)[0])
    assert recorder.records == 1


# Data sets


def test_fingerprints_tell_decorations_and_pictures_apart(load, picture):
    plain = dsprites.load_dsprites(None).fingerprint
    prints = [load(name).fingerprint for name in DRAWS]
    assert all(text.startswith(f"{plain} ") for text in prints)
    Image.new("RGB", (80, 90)).save(picture)
    prints.append(load("scream_dsprites").fingerprint)
    assert len({plain, *prints}) == 5


def test_a_missing_foreign_or_small_picture_is_one_sentence(load, command, picture, capsys):
    arguments = command("config/twoD_vae.yaml", f"dataset={section('scream_dsprites', picture)}")
    Image.new("RGB", (64, 90)).save(picture)
    reasons = {"64x90 pixels": None, "is damaged or another file": b"text", "put a picture": None}
    for reason, content in reasons.items():
        if content:
            picture.write_bytes(content)
        elif reason == "put a picture":
            picture.unlink()
        assert train.main(arguments) == 2
        message = capsys.readouterr().err
        assert reason in message
        assert message.startswith("train.py: dataset.path: ")
        assert message.count("\n") == 1


@pytest.mark.parametrize("spacing", [1, 3, 8])
def test_xysquares(spacing):
    data = load_dataset("xysquares", spacing=spacing)
    assert (len(data), data.grid.sizes) == (8**6, (8,) * 6)
    rows = np.random.default_rng(0).integers(len(data), size=50)
    expected = np.zeros((50, 3, 64, 64))
    offset = (64 - 8 - 7 * spacing) // 2
    for image, factors in zip(expected, data.grid.factors(rows), strict=True):
        for channel, (x, y) in enumerate(offset + spacing * factors.reshape(3, 2)):
            image[channel, y : y + 8, x : x + 8] = 1
    images = data.batch(torch.from_numpy(rows))
    assert np.array_equal(images.numpy(), expected)
    # Neighbours in y_B overlap below a spacing of 8 only.
    a, b = data.batch(torch.tensor([0, 1]))
    assert (a * b)[2].sum() == 8 * (8 - spacing)


def test_xyobject():
    data = load_dataset("xyobject")
    assert (len(data), data.grid.sizes) == (75_000, (25, 25, 5, 24))
    rows = np.random.default_rng(0).integers(len(data), size=200)
    images = data.images[torch.from_numpy(rows)].numpy()
    for image, (x, y, scale, color) in zip(images, data.grid.factors(rows), strict=True):
        size = 7 + 2 * scale
        top, left = 2 * y + 4 - scale, 2 * x + 4 - scale
        hue = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)][color % 6]
        expected = np.zeros((3, 64, 64))
        level = (63, 127, 191, 255)[color // 6]
        expected[:, top : top + size, left : left + size] = level * np.reshape(hue, (3, 1, 1))
        assert np.array_equal(image, expected)


def test_decorations_move_with_their_data(load):
    data = load("scream_dsprites").to("meta")
    assert data.decoration.pictures[0].device.type == "meta"
    assert isinstance(data.decoration, Decoration)
