"""Configuration: what a user types is used, or refused in one sentence that names it."""

import pytest
import torch
import yaml
from conftest import CONFIGS

import config
import train
from models import MODELS, try_model


def refused(capsys, *arguments):
    assert train.main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_published_files_are_valid_and_survive_a_round_trip(path, tmp_path):
    values = train.resolve(str(path), [])
    (tmp_path / "again.yaml").write_text(config.to_yaml(values))
    assert train.resolve(str(tmp_path / "again.yaml"), []) == values
    assert values["name"] == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_published_files_open_with_their_command(path):
    assert f"python train.py --config config/{path.name}" in path.read_text().splitlines()[0]


def test_overrides_reach_every_depth_and_keep_their_type():
    overrides = ["objective={name: beta_vae}", "objective.beta=8", "seed=3", "model.lr=1e-4"]
    values = train.resolve("config/twoD.yaml", overrides)
    assert values["objective"] == {"beta": 8.0, "name": "beta_vae"}
    assert values["seed"] == 3
    assert values["model"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("-2E3", -2000.0), (".5e1", 5.0), ("010", 10), ("1:30", "1:30"), ("~", None)],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, number):
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {text}\n")
    assert config.read_yaml(path) == {"a": number}
    assert config.apply_overrides({}, [f"a={text}"]) == {"a": number}


@pytest.mark.parametrize("text", ["09", "1e3", "1.5e3", "yes", "1:30", "null", "", "a"])
def test_text_that_looks_like_a_number_is_read_back_as_text(text):
    assert config.parse_yaml(config.to_yaml({"name": text})) == {"name": text}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.latent_dim=3000000000", ["model.latent_dim", "3000000000", "below 2,147,483,648"]),
        ("model={name: vae, 1: 2}", ["unknown key 'model.1'", "latent_dim"]),
        ("objective.betta=8", ["unknown key 'objective.betta'; did you mean 'beta'?"]),
        ("objectiv.beta=8", ["unknown key 'objectiv'; did you mean 'objective'?"]),
        ("model.latent_dims=8", ["unknown key 'model.latent_dims'", "'latent_dim'"]),
        ("objective.beta=abc", ["objective.beta", "'abc'", "valid number"]),
        ("objective.beta=-1", ["objective.beta", "-1", "greater than"]),
        ("objective=beta_vae", ["'beta_vae' is not allowed", "{name: beta_vae}"]),
        ("model=5", ["5 is not allowed", "{name: vae}"]),
        ("train=3", ["a section with keys, as steps, batch_size"]),
        ("model.lr_decay=.1", ["0.1 is not allowed without model.lr_decay_steps"]),
        ("train.steps=0", ["train.steps", "0", "greater than or equal to 1"]),
        ("train.steps=1.5", ["train.steps", "1.5", "valid integer"]),
        ("train.batch_size=true", ["train.batch_size", "True", "valid integer"]),
        ("train.precision=fp8", ["train.precision", "'fp8'", "'auto', 'fp32' or 'bf16'"]),
        ("objective.name=beta", ["objective.name", "'beta'", "'beta_vae'"]),
        ("dataset.name=celeba", ["dataset.name", "'celeba'", "'dsprites'"]),
        ("dataset.source=web", ["dataset.source", "'web'", "'render' or 'official'"]),
        ("name=..", ["name", "'..'"]),
        ("model.lr=.inf", ["model.lr", "finite"]),
        ("objective.beta.x=3", ["unknown key 'objective.beta.x'"]),
        ("name=a/b", ["name", "'a/b'"]),
        ("seed", ["'seed' is not of the form key=value"]),
        ("seed.x=1", ["'seed' is 0, not a section"]),
        ("objective=null", ["key 'objective' is missing", "'vae' needs one of"]),
        ("objective=[", ["value of 'objective'", "not YAML"]),
        ("model.draw_from=5", ["model.draw_from", "5", "network seed", "allowed: 0"]),
        (
            "model={name: vae, network: affine, latent_dim: 4}",
            ["model.latent_dim", "4", "5 or more"],
        ),
        (
            "objective={name: controlled_vae, beta_min: 500}",
            ["objective.beta_min", "500", "at most beta_start, 100"],
        ),
    ],
)
@pytest.mark.parametrize("more", [["--print-config"], []])
def test_a_mistake_is_named_and_no_folder_made(capsys, tmp_path, override, parts, more):
    runs = tmp_path / "runs"
    message = refused(capsys, "--config", "config/twoD.yaml", "--runs", str(runs), override, *more)
    for part in parts:
        assert part in message
    assert not runs.exists()


def test_an_objective_without_a_name_lists_the_names(capsys):
    message = refused(capsys, "--config", "config/twoD.yaml", "objective={beta: 4}")
    assert "objective.name" in message
    assert "beta_vae" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "not YAML in line"),
        ("- 1", "must hold a mapping"),
        ("seed: 1\nseed: 2", "'seed' stands twice (again in line 2)"),
        ("name: x\n", "key 'train' is missing"),
        ("seed: !!bool x", "a tag (!!) does not fit"),
        ("seed: !!map [1, 2]", "a tag (!!) does not fit"),
        ("seed: !!timestamp foo", "a tag (!!) does not fit"),
        ("seed: !!int 0x10", "a tag (!!) does not fit"),
        ("[" * 2000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(capsys, tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert part in refused(capsys, "--config", str(path))


def test_a_model_of_its_own_is_tried_as_far_as_it_can_be(monkeypatch):
    class Small(torch.nn.Module):
        trial_shape = (1, 32, 32)

        def __init__(self, image_shape, objective, *, width: int = 3):
            super().__init__()
            if image_shape[1:] != (32, 32) or width < 0:
                raise ValueError(f"width: {width} or images of {image_shape}")
            float(torch.zeros(2).std())  # needs weights

    monkeypatch.setitem(MODELS, "small", Small)
    try_model({"name": "small"}, {"name": "vae"})
    with pytest.raises(ValueError, match="width: -1"):
        try_model({"name": "small", "width": -1}, {"name": "vae"})


def test_a_missing_file_is_named(capsys):
    assert "cannot read none.yaml" in refused(capsys, "--config", "none.yaml")


def test_print_config_prints_what_would_run(capsys):
    assert train.main(["--config", "config/twoD.yaml", "--print-config", "seed=7"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values == train.resolve("config/twoD.yaml", ["seed=7"])


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for key in ("beta_start", "c_max", "latent_dim", "save_every", "source", "info_weight"):
        assert key in text
