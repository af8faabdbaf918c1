"""A small data set and small runs that several tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch

import config
import study

torch.set_num_threads(1)  # small batches; and the same sums on every machine
CONFIGS = sorted(Path("config").glob("twoD*.yaml"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """An npz of 3 x 4 x 4 squares: size, posX, posY."""
    images = np.zeros((3, 4, 4, 64, 64), np.uint8)
    for size in range(3):
        for x in range(4):
            for y in range(4):
                side = 8 + 4 * size
                images[size, x, y, 12 * y : 12 * y + side, 12 * x : 12 * x + side] = 255
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    names = np.array(["size", "posX", "posY"])
    np.savez(path, images=images.reshape(-1, 64, 64), sizes=(3, 4, 4), names=names)
    return path


@pytest.fixture
def command(squares, tmp_path):
    """Arguments of train.py for a small run of a configuration file."""

    def build(config, *overrides, steps=4, runs=tmp_path / "runs"):
        small = ["name=small", f"train.steps={steps}", "train.batch_size=8", "train.log_every=1"]
        data = [f"dataset={{name: npz, path: {squares}}}", "train.device=cpu"]
        return ["--config", str(config), "--runs", str(runs), *data, *small, *overrides]

    return build


@pytest.fixture
def write(squares, tmp_path, monkeypatch):
    """Write a study of small runs; returns the arguments that name it and the folder of its runs.

    Published runs of the study `small` are looked for in the test's own folder.
    """
    monkeypatch.setattr(study, "published_runs", lambda _: tmp_path / "res/small/runs")

    def build(*entries, **keys):
        small = {"dataset": {"name": "npz", "path": str(squares)}, "train.device": "cpu"}
        small |= {"train.batch_size": 8, "train.log_every": 1, "train.steps": 4}
        small |= {"model.latent_dim": 3}
        for entry in entries:
            entry["overrides"] = small | entry.get("overrides", {})
        path = tmp_path / "small.yaml"
        path.write_text(config.to_yaml({"name": "small", "seeds": 0, "runs": [*entries]} | keys))
        return [str(path), "--runs", str(tmp_path / "runs")]

    return build


def assert_equal(a, b, path=""):
    """Assert that two nested states of tensors and plain values are bit-identical."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{path}[{i}]")
    else:
        assert a == b, path
