"""Runs: resume bit for bit, stop on request, lose nothing, refuse what does not fit."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, assert_equal

import runs
import train
from models import rotation
from models.objectives import OBJECTIVES, vae_elbo
from training.checkpoint import load_checkpoint, save_checkpoint
from training.device import choose_device, choose_precision
from training.folder import locked
from training.log import CsvSink, read_log

PICTURES = ["curves.png", "fixed.png", "random.png", "recon.png", "traversal.gif", "training.gif"]
FILES = [*PICTURES, "config.yaml", "run.json", "log.csv", "checkpoint.pt"]
VAE, BETA = "config/twoD_vae.yaml", "config/twoD.yaml"


@pytest.fixture
def folder(tmp_path):
    """The folder of the run that `command` describes."""
    return tmp_path / "runs/small/seed0"


def state_of(folder):
    return load_checkpoint(folder)[0]


def without_time(state):
    return {key: value for key, value in state.items() if key != "seconds"}


# Exact resume


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_straight_run_equals_an_interrupted_one_bit_for_bit(command, tmp_path, monkeypatch, path):
    monkeypatch.setattr(rotation, "ACTIVE_KL", 0.0)
    text, later = path.read_text(), ["train.draw_every=4"]
    keys = {"draw_from": 4, "cr_start": 4, "muon_from": 4, "rotate_at": [2, 4]}
    keys["category_from"] = 4
    later += [f"model.{key}={value}" for key, value in keys.items() if f"{key}: " in text]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for root, all_steps in ((straight, [6]), (broken, [3, 6])):
        for steps in all_steps:
            assert train.main(command(path, *later, runs=root, steps=steps)) == 0
    a, b = (without_time(state_of(root / "small/seed0")) for root in (straight, broken))
    assert_equal(a, b)
    for name in ("log.csv", "fixed.png", "random.png", "traversal.gif", "curves.png"):
        ours, theirs = (root / "small/seed0" / name for root in (straight, broken))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_an_interruption_within_a_row_of_the_log_loses_no_term(command, tmp_path, monkeypatch):
    def run(name):
        settings = "train.log_every=5", "train.save_every=3"
        return train.main(command(BETA, *settings, runs=tmp_path / name, steps=7))

    assert run("straight") == 0

    def save_then_interrupt(path, state):
        save_checkpoint(path, state)
        if state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", save_then_interrupt)
        assert run("broken") == 128 + signal.SIGTERM
    state = state_of(tmp_path / "broken/small/seed0")
    assert (state["step"], state["window"]["count"]) == (4, 4)
    assert run("broken") == 0
    straight, broken = (tmp_path / name / "small/seed0/log.csv" for name in ("straight", "broken"))
    assert straight.read_bytes() == broken.read_bytes()


def test_a_longer_run_writes_the_provisional_last_row_again(command, tmp_path):
    every = "train.log_every=3", "train.draw_every=4"
    for root, all_steps in {"straight": [8], "grown": [4, 8]}.items():
        for steps in all_steps:
            run = command(BETA, *every, runs=tmp_path / root, steps=steps)
            assert train.main(run) == 0
    folders = [tmp_path / root / "small/seed0" for root in ("straight", "grown")]
    for name in ("log.csv", "training.gif", "curves.png"):
        straight, grown = ((folder / name).read_bytes() for folder in folders)
        assert straight == grown, name


def test_every_step_is_taken_in_training_mode(command, monkeypatch):
    modes = []

    def objective(vae, x, step):
        modes.append(vae.training)
        return vae_elbo(vae, x, step)

    monkeypatch.setitem(OBJECTIVES, "vae", objective)
    runs.schema.cache_clear()
    assert train.main(command(VAE, "train.draw_every=1", "train.score_every=2")) == 0
    assert modes == [True] * 4


def test_terms_that_change_while_training_are_refused(command, capsys, monkeypatch):
    def objective(vae, x, step):
        loss, terms = vae_elbo(vae, x, step)
        return loss, terms | ({"late": loss} if step >= 2 else {})

    monkeypatch.setitem(OBJECTIVES, "vae", objective)
    runs.schema.cache_clear()
    assert train.main(command(VAE, "train.log_every=4", steps=6)) == 2
    assert "the terms of a step changed" in capsys.readouterr().err


# The run folder and its identity


def test_the_run_folder_holds_what_it_should(command, folder, capsys):
    arguments = command(BETA, "train.draw_every=2")
    assert train.main(arguments) == 0
    assert all((folder / name).stat().st_size > 0 for name in FILES)
    record = json.loads((folder / "run.json").read_text())
    assert record["images_seen"] == 4 * 8
    assert record["train_seconds"] > 0
    (start,) = record["starts"]
    assert {"command", "commit", "hardware", "precision", "from_step"} <= start.keys()
    assert f"evaluate.py --checkpoint {folder}" in capsys.readouterr().out
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert train.main(arguments) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {name: (folder / name).read_bytes() for name in FILES}
    names = sorted(path.name for path in (folder / "frames").iterdir())
    assert names == ["00000002.png", "00000004.png"]


def test_what_does_not_change_the_weights_may_change_on_resume(command, folder):
    changes = ["log_every=2", "draw_every=3", "save_every=1", "score_every=2", "keep_every=5"]
    changes += ["device=auto"]
    overrides = [f"train.{change}" for change in changes]
    assert train.main(command(BETA, steps=3)) == 0
    assert train.main(command(BETA, *overrides, steps=5)) == 0
    changed = state_of(folder)
    shutil.rmtree(folder)
    assert train.main(command(BETA, steps=5)) == 0
    assert_equal(state_of(folder)["model"], changed["model"])


def test_another_run_in_the_same_folder_is_refused(command, folder, capsys):
    assert train.main(command(BETA)) == 0
    (folder / "config.yaml").unlink()  # what counts is in the checkpoint
    shutil.copytree(folder, folder.with_name("seed1"))
    before = (folder / "checkpoint.pt").read_bytes()
    for override in ("objective.beta=8", "model.lr=0.1", "train.batch_size=4", "seed=1"):
        assert train.main(command(BETA, override, steps=6)) == 2
        key, _, value = override.partition("=")
        assert re.search(rf"{key}: .+ there, {value}(.0)? here", capsys.readouterr().err)
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_files_of_an_attempt_without_a_checkpoint_are_replaced(command, folder):
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("step,images,other,terms\n2,16,1,2\n")
    (folder / "run.json").write_text(json.dumps({"starts": [{"command": "python other.py"}]}))
    (folder / "config.yaml").write_text("name: [")
    assert train.main(command(VAE)) == 0
    header, *rows = (folder / "log.csv").read_text().splitlines()
    assert header.startswith("step,images,loss,recon,kl")
    assert len(rows) == 4
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 1


def test_data_are_known_by_their_content_not_by_their_path(command, squares, tmp_path, capsys):
    own, moved = tmp_path / "own.npz", tmp_path / "moved.npz"
    arrays = dict(np.load(squares))
    np.savez(own, **arrays)
    np.savez(moved, **arrays)
    first = command(BETA, f"dataset={{name: npz, path: {own}}}", steps=2)
    assert train.main(first) == 0
    assert train.main(command(BETA, f"dataset={{name: npz, path: {moved}}}", steps=3)) == 0
    for images in (arrays["images"][:24], arrays["images"][::-1]):
        np.savez(moved, images=images)
        runs._load_data.cache_clear()
        assert train.main(command(BETA, f"dataset={{name: npz, path: {moved}}}", steps=4)) == 2
        assert "was trained on other images or factors" in capsys.readouterr().err
    own.unlink()
    runs._load_data.cache_clear()
    assert train.main(first) == 0  # complete: the data are not needed


def test_a_refused_run_changes_no_folder(command, folder, squares, tmp_path):
    own = tmp_path / "own.npz"
    shutil.copy(squares, own)
    assert train.main(command(VAE, f"dataset.path={own}")) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    runs._load_data.cache_clear()
    own.unlink()
    assert train.main(command(VAE, f"dataset.path={own}", steps=6)) == 2
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    assert train.main(command(VAE, f"dataset.path={own}", "name=other")) == 2
    assert not (tmp_path / "runs/other").exists()


def test_two_processes_cannot_share_a_folder(tmp_path):
    script = (
        "from pathlib import Path\nfrom training.folder import locked\n"
        f"try:\n  with locked(Path({str(tmp_path)!r})): pass\n"
        "except ValueError as error: print(error)"
    )
    with locked(tmp_path):
        out = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert "another process is training" in out


def test_links_in_a_run_folder_are_not_followed(command, folder, tmp_path, capsys):
    photos, private = tmp_path / "photos", tmp_path / "private.txt"
    photos.mkdir()
    (photos / "20240101.png").write_text("a photograph")
    private.write_text("mine")
    private.chmod(0o600)
    folder.mkdir(parents=True)
    (folder / "config.yaml").symlink_to(private)
    assert train.main(command(VAE)) == 0
    assert private.read_text() == "mine"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    shutil.rmtree(folder / "frames")
    (folder / "frames").symlink_to(photos)
    assert train.main(command(VAE, steps=6)) == 2
    assert "is a link" in capsys.readouterr().err
    assert [path.name for path in photos.iterdir()] == ["20240101.png"]


# What stops a run


def start(arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "train.py", *arguments], env=environment, **pipes)


def wait_for(path: Path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_first_and_says_how_to_resume(command, folder, number):
    process = start(command(BETA, "train.save_every=2", steps=100_000))
    wait_for(folder / "checkpoint.pt")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "The same command resumes" in out
    assert len(read_log(folder / "log.csv")) == state_of(folder)["step"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(command, folder):
    arguments = command(BETA, "train.save_every=1", steps=100_000)
    checkpoint, last = folder / "checkpoint.pt", 0
    for wait in (0.0, 0.013, 0.4):
        process = start(arguments)
        wait_for(checkpoint)
        before = checkpoint.stat().st_mtime_ns
        while checkpoint.stat().st_mtime_ns == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(wait)
        process.kill()
        process.communicate()
        step = state_of(checkpoint)["step"]
        assert step > last
        last = step
    with locked(folder):
        assert not list(folder.glob(".*.tmp~"))  # removed when the next process starts


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint(command, folder):
    assert train.main(command(BETA, steps=2)) == 0
    before = (folder / "checkpoint.pt").read_bytes()
    code = (
        "import resource, sys, train\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    command_line = [sys.executable, "-c", code, *command(BETA, steps=4)]
    result = subprocess.run(command_line, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"cannot write {folder / 'checkpoint.pt'}" in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob(".*.tmp~"))


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [True, False])
def test_output_that_nobody_reads_costs_no_work(command, folder, interrupted):
    """As `train.py ... 2>&1 | tee log` at Ctrl-C, which ends tee as well."""
    code = (
        "import os, signal, sys, runs, train\n"
        "check, bar, done = train.refuse_non_finite, runs.progress_bar, []\n"
        "def at_step_two(step, terms, model=None):\n"
        "    if step == 2 and not done:\n"
        "        done.append(step)\n"
        "        os.close(reader)\n"
        f"        if {interrupted}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    check(step, terms, model)\n"
        "def eager(*arguments, **options):\n"  # every step writes to the terminal
        "    made = bar(*arguments, **options)\n"
        "    made.mininterval = 0\n"
        "    return made\n"
        "train.refuse_non_finite, runs.progress_bar = at_step_two, eager\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1), os.dup2(writer, 2)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    arguments = command(VAE, "train.save_every=100", "train.log_every=2", steps=100)
    result = subprocess.run([sys.executable, "-c", code, *arguments], timeout=120)
    assert result.returncode in (128 + signal.SIGPIPE, 128 + signal.SIGINT)
    assert 2 <= state_of(folder)["step"] <= 4


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    command, tmp_path, folder, capsys
):
    assert train.main(command(BETA, "model.lr=1e30", steps=1)) == 1
    assert "a weight" in capsys.readouterr().err
    assert not (folder / "checkpoint.pt").exists()
    assert train.main(command(VAE, "model.lr=1e6", "train.save_every=1", "name=b", steps=50)) == 1
    assert "not finite at step" in capsys.readouterr().err
    assert state_of(tmp_path / "runs/b/seed0")["step"] < 50


def test_memory_that_runs_out_is_a_sentence_and_printing_needs_none(command, capsys):
    arguments = command(VAE, "model.latent_dim=2000000000")
    assert train.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("train.py: out of memory")
    assert error.count("\n") == 1
    assert train.main([*arguments, "--print-config"]) == 0
    assert "latent_dim: 2000000000" in capsys.readouterr().out


# Checkpoints


def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(tmp_path)
    state = {"config": {}, "image_shape": [1, 64, 64], "model": {"w": torch.ones(99)}, "step": 3}
    save_checkpoint(path, state)
    assert_equal(load_checkpoint(tmp_path)[0], state)
    content = path.read_bytes()
    bit = content.index(torch.ones(9).numpy().tobytes()) + 7  # within the weights
    flipped = content[:bit] + bytes([content[bit] ^ 1]) + content[bit + 1 :]
    for damaged in (flipped, content[:-100], b"", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            load_checkpoint(path)
    for key, value in {"step": None, "model": [], "config": "x"}.items():
        torch.save(state | {key: value}, path)
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


def test_weights_that_do_not_fit_are_named(command, folder, capsys):
    assert train.main(command(BETA, steps=2)) == 0
    state = state_of(folder)
    slim = {key: value for key, value in state.items() if key not in ("optimizers", "window")}
    save_checkpoint(folder / "checkpoint.pt", slim)
    assert train.main(command(BETA, steps=4)) == 2
    assert "holds weights only" in capsys.readouterr().err
    model = {key: w for key, w in state["model"].items() if key != "encoder.head.bias"}
    for wrong in {"model": model}, {"optimizers": None}, {"window": {"names": 3}}:
        save_checkpoint(folder / "checkpoint.pt", state | wrong)
        assert train.main(command(BETA, steps=4)) == 2
        assert "does not fit the networks" in capsys.readouterr().err


# The log, pictures and scores


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    path = tmp_path / "log.csv"
    sink = CsvSink(path, 0)
    for step in (1, 2, 3):
        sink.row(step, {"images": step * 8, "recon": step / 3})
    with open(path, "a") as file:
        file.write("4,32,1.2")  # torn by a crash
    sink = CsvSink(path, 2)
    sink.row(3, {"images": 24, "recon": 7.0})
    rows = ["1,8,0.333333333", "2,16,0.666666667", "3,24,7"]
    assert path.read_text().splitlines() == ["step,images,recon", *rows]


def test_a_log_with_missing_rows_is_refused(command, folder, capsys):
    assert train.main(command(BETA)) == 0
    log = folder / "log.csv"
    text = log.read_text()
    for damaged, part in {"": "ends before step 4", text + "xx\n": "is damaged"}.items():
        log.write_text(damaged)
        assert train.main(command(BETA, steps=6)) == 2
        assert part in capsys.readouterr().err
    log.unlink()
    assert train.main(command(BETA, steps=6)) == 0
    assert f"warning: {log} is missing" in capsys.readouterr().err
    assert list(read_log(log)["step"]) == [5, 6]


def test_missing_pictures_are_drawn_by_the_next_call(command, folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "draw", full)
        assert train.main(command(BETA)) == 2
    assert json.loads((folder / "run.json").read_text())["images_seen"] == 4 * 8
    rows = (folder / "log.csv").read_bytes()
    assert train.main(command(BETA)) == 0
    assert all((folder / name).exists() for name in PICTURES)
    assert (folder / "log.csv").read_bytes() == rows


def test_scores_while_training(command, folder):
    for steps in (5, 6):
        settings = "train.score_every=2", "train.keep_every=3"
        assert train.main(command(BETA, *settings, steps=steps)) == 0
    scores = read_log(folder / "scores.csv")
    names = ["step", "images", "minutes", "beta_vae_paper", "factor_vae", "mig"]
    assert list(scores) == names
    assert list(scores["step"]) == [2, 4, 6]
    assert (folder / "scores.png").stat().st_size > 0
    steps = [state_of(path)["step"] for path in sorted(folder.glob("checkpoint_*.pt"))]
    assert steps == [3, 6]


def test_another_precision_is_a_warning_and_a_damaged_record_is_named(command, folder, capsys):
    for steps in (4, 5):
        assert train.main(command(VAE, "train.precision=fp32", steps=steps)) == 0
    assert "warning: trained" not in capsys.readouterr().err
    assert train.main(command(VAE, "train.precision=bf16", steps=6)) == 0
    assert "warning: trained in float32 so far, resumes in bfloat16" in capsys.readouterr().err
    (folder / "run.json").write_text("")
    assert train.main(command(VAE, steps=7)) == 2
    assert "run.json is damaged; delete it" in capsys.readouterr().err


def test_tensorboard_gets_the_same_terms(command, folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main(command(BETA, "train.tensorboard=true")) == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("recon")
    log = read_log(folder / "log.csv")
    assert [event.step for event in events] == list(log["step"])
    np.testing.assert_allclose([event.value for event in events], log["recon"], rtol=1e-6)


def test_weights_and_biases_without_a_network(command, folder):
    pytest.importorskip("wandb")
    assert train.main(command(BETA, "train.wandb=offline")) == 0
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_device_and_precision_are_chosen_or_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert choose_precision("auto", cpu) is torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device: 'cuda' is not available here; allowed: "):
            choose_device("cuda")
