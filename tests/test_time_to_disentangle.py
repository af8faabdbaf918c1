"""The benchmark of how soon a configuration disentangles."""

import csv

import pytest

from benchmarks import time_to_disentangle
from benchmarks.time_to_disentangle import Row, holding, sentence


def rows(*scores):
    return [Row("x", 0, k, 100 * k, k / 2, *pair) for k, pair in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("scores", "first"),
    [
        ([(0.9, 0.4), (0.7, 0.4), (0.8, 0.35), (0.9, 0.5)], 3),  # below in between
        ([(0.9, 0.3), (0.9, 0.4)], 2),  # one alone does not do
        ([(0.9, 0.4), (0.9, 0.4)], 1),
        ([(0.9, 0.4), (0.79, 0.4)], None),
    ],
)
def test_marks_hold_from_the_row_after_the_last_that_is_below(scores, first):
    found = holding(rows(*scores), 0.8, 0.35)
    assert (found and found.step) == first
    said = f"hold from {100 * first} images" if first else "do not hold"
    assert said in sentence(rows(*scores), 0.8, 0.35)


def test_a_run_is_followed_to_its_end(command, tmp_path, capsys):
    _, config, _, _, *overrides = command("config/twoD.yaml", steps=4)
    out = tmp_path / "rows.csv"
    arguments = ["--config", config, "--seeds", "0,1", "--every", "3", "--images", "10000"]
    assert time_to_disentangle.main([*arguments, "--csv", str(out), *overrides]) == 0
    with open(out, newline="") as file:
        found = [(row["seed"], row["images"]) for row in csv.DictReader(file)]
    assert found == [("0", "24"), ("0", "32"), ("1", "24"), ("1", "32")]
    assert "small, seed 1: FactorVAE score 0.8 and MIG 0.35" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--seeds", "x"], "--seeds: x is not allowed"),
        (["--every", "0"], "--every: 0 is not allowed; allowed: 1 or more"),
        (["model.lr=-1"], "model.lr"),
    ],
)
def test_a_mistake_is_named(capsys, arguments, part):
    try:
        code = time_to_disentangle.main(["--config", "config/twoD.yaml", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert part in capsys.readouterr().err
