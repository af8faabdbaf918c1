"""Runs: resume bit for bit, stop on request, lose nothing, refuse what does not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS

import evaluate
import publish
import train
from models.objectives import OBJECTIVES, vae_elbo
from training import (
    Batches,
    CheckpointError,
    RunFolder,
    RunFolderError,
    choose_device,
    choose_precision,
    load_checkpoint,
    refuse_another,
    save_checkpoint,
)
from training.batches import mix
from training.checkpoint import write_atomically
from training.logs import Log, append_row

PICTURES = [
    "curves.png",
    "fixed.png",
    "codes.png",
    "random.png",
    "recon.png",
    "traversal.gif",
    "training.gif",
]
FILES = [*PICTURES, "config.yaml", "run.json", "log.csv", "speed.csv", "checkpoint.pt"]


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own():
    batches = Batches(10, 4, seed=1)
    stream = torch.cat([batches[step] for step in range(10)]).tolist()
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream[:10] != torch.cat([Batches(10, 4, seed=2)[s] for s in range(3)]).tolist()[:10]


def test_a_batch_is_a_function_of_seed_and_step():
    batches = Batches(1000, 64, seed=5)
    assert batches[40].tolist() == Batches(1000, 64, seed=5)[40].tolist()


def test_a_batch_larger_than_the_data_set_wraps_around():
    assert sorted(Batches(3, 9, seed=0)[0].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_ranks_share_the_same_batch():
    whole = Batches(100, 12, seed=3)[7]
    parts = [Batches(100, 12, 3, rank, 4)[7] for rank in range(4)]
    assert torch.stack(parts, 1).flatten().tolist() == whole.tolist()
    with pytest.raises(ValueError, match=r"train.batch_size: 12 .* 5 processes"):
        Batches(100, 12, 3, 0, 5)


def test_seeds_of_neighbouring_steps_and_ranks_differ():
    seeds = {mix(seed, step, rank) for seed in range(8) for step in range(64) for rank in range(8)}
    assert len(seeds) == 8 * 64 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_straight_run_equals_an_interrupted_one_bit_for_bit(command, tmp_path, path):
    text, later = path.read_text(), ["train.draw_every=4"]  # with what begins after a while
    later += [f"model.{key}=4" for key in ("draw_from", "cr_start") if f"{key}: " in text]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert train.main(command(path, *later, runs=straight, steps=6)) == 0
    assert train.main(command(path, *later, runs=broken, steps=3)) == 0
    assert train.main(command(path, *later, runs=broken, steps=6)) == 0
    a, b = (load_checkpoint(runs / "small/seed0") for runs in (straight, broken))
    assert_equal(a, b)
    for name in ("log.csv", "fixed.png", "random.png", "traversal.gif", "curves.png"):
        ours, theirs = (runs / "small/seed0" / name for runs in (straight, broken))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_run_of_before_a_key_was_there_goes_on_with_its_default(command, tmp_path):
    folder = tmp_path / "runs/small/seed0"
    assert train.main(command("config/twoD.yaml", steps=2)) == 0
    text = (folder / "config.yaml").read_text()
    older = text.replace("  lr_decay: 1.0\n", "")
    assert older != text
    (folder / "config.yaml").write_text(older)
    other = "model.lr_decay=0.5", "model.lr_decay_steps=9"
    assert train.main(command("config/twoD.yaml", *other, steps=3)) == 2
    assert train.main(command("config/twoD.yaml", steps=3)) == 0
    assert (folder / "config.yaml").read_text() == text.replace("steps: 2", "steps: 3")


def assert_equal(a, b, path=""):
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


def test_an_interruption_within_a_row_of_the_log_loses_no_term(command, tmp_path, monkeypatch):
    def run(name):
        settings = "train.log_every=5", "train.save_every=3"
        return train.main(command("config/twoD.yaml", *settings, runs=tmp_path / name, steps=7))

    assert run("straight") == 0
    loop = train.train.__globals__

    def save_then_be_interrupted(path, state):
        save_checkpoint(path, state)
        if state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setitem(loop, "save_checkpoint", save_then_be_interrupted)
        assert run("broken") == 128 + signal.SIGTERM
    state = load_checkpoint(tmp_path / "broken/small/seed0")
    assert (state["step"], state["window"]["count"]) == (4, 4)
    assert run("broken") == 0
    straight, broken = (tmp_path / name / "small/seed0/log.csv" for name in ("straight", "broken"))
    assert straight.read_bytes() == broken.read_bytes()


@pytest.mark.parametrize("log_every", [2, 4])
def test_terms_that_change_while_training_are_refused(
    command, tmp_path, capsys, monkeypatch, log_every
):
    def objective(vae, x, step):
        loss, terms = vae_elbo(vae, x, step)
        return loss, terms | ({"late": loss} if step >= 2 else {})

    monkeypatch.setitem(OBJECTIVES, "vae", objective)
    arguments = command("config/twoD_vae.yaml", f"train.log_every={log_every}", steps=6)
    assert train.main(arguments) == 2
    message = capsys.readouterr().err
    assert "the terms of a step must stay the same" in message
    assert "late" in message


def test_the_run_folder_holds_what_it_should(command, tmp_path, capsys):
    arguments = command("config/twoD.yaml", "train.draw_every=2")
    assert train.main(arguments) == 0
    folder = tmp_path / "runs/small/seed0"
    assert all((folder / name).stat().st_size > 0 for name in FILES)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["images_seen"] == 4 * 8
    assert facts["train_seconds"] > 0
    (start,) = facts["starts"]
    assert {"command", "commit", "hardware", "precision", "from_step"} <= start.keys()
    out = capsys.readouterr().out
    assert f"python evaluate.py --checkpoint {folder}" in out
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert train.main(arguments) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {name: (folder / name).read_bytes() for name in FILES}
    frames = sorted(path.name for path in (folder / "frames").iterdir())
    assert frames == ["00000002.png", "00000004.png"]


def test_another_configuration_in_the_same_folder_is_refused(command, tmp_path, capsys):
    assert train.main(command("config/twoD.yaml")) == 0
    kept = (tmp_path / "runs/small/seed0/checkpoint.pt").read_bytes()
    assert train.main(command("config/twoD.yaml", "objective.beta=8")) == 2
    message = capsys.readouterr().err
    assert "-  beta: 4" in message
    assert "+  beta: 8" in message
    assert (tmp_path / "runs/small/seed0/checkpoint.pt").read_bytes() == kept


def test_what_a_dead_attempt_left_is_not_taken_for_this_runs(command, tmp_path):
    """Killed before its first checkpoint, a run may be followed by one of other terms."""
    folder = tmp_path / "runs/small/seed0"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("step,images,other,terms\n2,16,1,2\n")
    (folder / "run.json").write_text(json.dumps({"starts": [{"command": "python other.py"}]}))
    assert train.main(command("config/twoD_vae.yaml")) == 0
    header, *rows = (folder / "log.csv").read_text().splitlines()
    assert header.startswith("step,images,loss,recon,kl")
    assert len(rows) == 4
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 1


def test_a_row_of_other_columns_is_refused(tmp_path):
    append_row(tmp_path / "log.csv", {"step": 1, "kl": 2})
    with pytest.raises(ValueError, match=r"has the columns step,kl, not step,recon"):
        append_row(tmp_path / "log.csv", {"step": 2, "recon": 2})


def test_a_longer_run_that_is_refused_leaves_the_finished_one_as_it_is(command, tmp_path, squares):
    own = tmp_path / "own.npz"
    shutil.copy(squares, own)
    arguments = command("config/twoD_vae.yaml", f"dataset.path={own}")
    assert train.main(arguments) == 0
    folder = tmp_path / "runs/small/seed0"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    own.unlink()
    assert train.main([*arguments, "train.steps=6"]) == 2
    shutil.copy(squares, own)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    assert train.main(arguments) == 0  # complete, as before


def test_a_key_named_steps_elsewhere_is_no_number_of_steps(tmp_path):
    text = "objective:\n  steps: 100\ntrain:\n  steps: 4\n"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "checkpoint.pt").touch()
    refuse_another(tmp_path, text.replace("4", "8"))
    with pytest.raises(RunFolderError, match="steps: 200"):
        refuse_another(tmp_path, text.replace("100", "200"))


def test_a_record_that_is_torn_is_named(command, tmp_path, capsys):
    assert train.main(command("config/twoD_vae.yaml")) == 0
    (tmp_path / "runs/small/seed0/run.json").write_text("")
    assert train.main(command("config/twoD_vae.yaml", steps=6)) == 2
    assert "run.json is damaged: remove it" in capsys.readouterr().err


def test_another_precision_is_told(command, tmp_path, capsys):
    assert train.main(command("config/twoD_vae.yaml", "train.precision=fp32")) == 0
    record = tmp_path / "runs/small/seed0/run.json"
    assert train.main(command("config/twoD_vae.yaml", "train.precision=fp32", steps=5)) == 0
    assert "warning" not in capsys.readouterr().err
    record.write_text(record.read_text().replace("float32", "bfloat16"))  # as of another machine
    assert train.main(command("config/twoD_vae.yaml", "train.precision=fp32", steps=6)) == 0
    assert "in float32, up to here it was trained in bfloat16" in capsys.readouterr().err


def test_memory_that_runs_out_is_a_sentence(command, capsys):
    assert train.main(command("config/twoD_vae.yaml", "model.latent_dim=2000000000")) == 1
    error = capsys.readouterr().err
    assert error.startswith("train.py: out of memory (")
    assert error.count("\n") == 1


def test_steps_may_grow_but_not_shrink(tmp_path):
    for steps in (5, 6, 6):
        with RunFolder(tmp_path, f"train:\n  steps: {steps}\n") as folder:
            folder.take()
        (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(RunFolderError, match="steps: 5"):
        RunFolder(tmp_path, "train:\n  steps: 5\n")


def test_a_folder_that_never_saved_takes_another_configuration(tmp_path):
    for text in ("dataset: {source: official}\n", "dataset: {source: render}\n"):
        with RunFolder(tmp_path, text) as folder:
            folder.take()
            assert (tmp_path / "config.yaml").read_text() == text


def test_two_processes_cannot_share_a_folder(tmp_path):
    script = (
        "from training import RunFolder, RunFolderError\n"
        f"try: RunFolder({str(tmp_path)!r}, 'a: 1\\n')\n"
        "except RunFolderError as error: print(error)"
    )
    with RunFolder(tmp_path, "a: 1\n"):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "another process is training" in result.stdout


def start(arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_says_how_to_go_on(command, tmp_path, number):
    arguments = command("config/twoD.yaml", "train.save_every=2", steps=100_000)
    process = start(arguments)
    wait_for(tmp_path / "runs/small/seed0/checkpoint.pt")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "The same command goes on" in out
    state = load_checkpoint(tmp_path / "runs/small/seed0")
    rows = (tmp_path / "runs/small/seed0/log.csv").read_text().splitlines()
    assert len(rows) == 1 + state["step"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(command, tmp_path):
    arguments = command("config/twoD.yaml", "train.save_every=1", steps=100_000)
    checkpoint = tmp_path / "runs/small/seed0/checkpoint.pt"
    last = 0
    for wait in (0.0, 0.013, 0.4):
        process = start(arguments)
        wait_for(checkpoint)
        before = checkpoint.stat().st_mtime_ns
        while checkpoint.stat().st_mtime_ns == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(wait)
        process.kill()
        process.communicate()
        step = load_checkpoint(checkpoint)["step"]
        assert step > last
        last = step


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint(command, tmp_path):
    assert train.main(command("config/twoD.yaml", steps=2)) == 0
    checkpoint = tmp_path / "runs/small/seed0/checkpoint.pt"
    kept = checkpoint.read_bytes()
    code = (
        "import resource, sys, train\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(kept) // 2},) * 2)\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command("config/twoD.yaml", steps=4)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert checkpoint.read_bytes() == kept
    assert not list(checkpoint.parent.glob(".checkpoint*"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    command, tmp_path, capsys
):
    assert train.main(command("config/twoD.yaml", "model.lr=1e30", steps=1)) == 1
    assert "weights" in capsys.readouterr().err
    assert not (tmp_path / "runs/small/seed0/checkpoint.pt").exists()
    run = command("config/twoD_vae.yaml", "model.lr=1e6", "train.save_every=1", "name=b", steps=50)
    assert train.main(run) == 1
    message = capsys.readouterr().err
    assert "not finite at step" in message
    assert load_checkpoint(tmp_path / "runs/b/seed0")["step"] < 50


def test_a_torn_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path)
    state = {"config": {}, "image_shape": [1, 64, 64], "model": {}, "step": 3}
    save_checkpoint(path, state)
    assert load_checkpoint(tmp_path) == state
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_named(command, tmp_path, capsys):
    assert train.main(command("config/twoD.yaml", steps=2)) == 0
    checkpoint = tmp_path / "runs/small/seed0/checkpoint.pt"
    state = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, {k: v for k, v in state.items() if k != "optimizers"})
    assert train.main(command("config/twoD.yaml", steps=4)) == 2
    assert "holds weights only" in capsys.readouterr().err
    state["model"].pop("encoder.head.bias")
    save_checkpoint(checkpoint, state)
    assert train.main(command("config/twoD.yaml", steps=4)) == 2
    assert "does not fit the networks" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "x.txt"
    path.symlink_to(tmp_path / "there/y.txt")
    for text in ("new", "newer"):
        write_atomically(path, lambda file, text=text: file.write_text(text))
        assert path.is_symlink()
        assert (tmp_path / "there/y.txt").read_text() == text


def test_rows_after_the_checkpoint_are_made_again(tmp_path):
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.row(step, step * 8, {"recon": step / 3}, 100.0)
    with open(tmp_path / "log.csv", "a") as file:
        file.write("4,32,1.2")  # torn by a crash
    Log(tmp_path, 2).row(3, 24, {"recon": 7.0}, 100.0)
    assert (tmp_path / "log.csv").read_text().splitlines() == [
        "step,images,recon",
        "1,8,0.333333333",
        "2,16,0.666666667",
        "3,24,7",
    ]


@pytest.mark.parametrize("torn", ["", "step,ima"])
def test_a_log_torn_before_its_first_row_is_begun_again(tmp_path, torn):
    (tmp_path / "log.csv").write_text(torn)
    Log(tmp_path, 0).row(1, 8, {"recon": 1.0}, 100.0)
    assert (tmp_path / "log.csv").read_text() == "step,images,recon\n1,8,1\n"


def test_pictures_cut_short_after_more_steps_are_drawn(command, tmp_path, monkeypatch):
    assert train.main(command("config/twoD.yaml", steps=2)) == 0
    pictures = tmp_path / "runs/small/seed0"
    short = (pictures / "curves.png").read_bytes()

    def killed(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "draw_run", killed)
        assert train.main(command("config/twoD.yaml", steps=4)) == 130
    assert train.main(command("config/twoD.yaml", steps=4)) == 0
    assert (pictures / "training.gif").exists()
    assert (pictures / "curves.png").read_bytes() != short


def test_frames_that_were_lost_are_no_end(command, tmp_path):
    assert train.main(command("config/twoD.yaml")) == 0
    run = tmp_path / "runs/small/seed0"
    shutil.rmtree(run / "frames")
    (run / "training.gif").unlink()
    for _ in range(2):
        assert train.main(command("config/twoD.yaml")) == 0
        assert (run / "training.gif").exists()


def test_a_log_that_was_lost_is_no_end(command, tmp_path):
    assert train.main(command("config/twoD.yaml")) == 0
    run = tmp_path / "runs/small/seed0"
    for file in ("log.csv", "training.gif"):
        (run / file).unlink()
    assert train.main(command("config/twoD.yaml")) == 0
    assert (run / "training.gif").exists()


@pytest.mark.parametrize("file", ["log.csv", "speed.csv"])
def test_a_damaged_log_is_named(command, tmp_path, capsys, file):
    assert train.main(command("config/twoD.yaml")) == 0
    path = tmp_path / "runs/small/seed0" / file
    path.write_text(path.read_text() + "xx\n")
    assert train.main([*command("config/twoD.yaml"), "train.steps=9"]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


def test_a_torn_frame_is_left_out(command, tmp_path):
    small = command("config/twoD_vae.yaml", "train.draw_every=2")
    assert train.main(small) == 0
    frames = tmp_path / "runs/small/seed0/frames"
    (frames / "00000002.png").write_bytes(b"")
    (frames / "notes.png").write_bytes(b"")
    assert train.main([*small, "train.steps=6"]) == 0
    assert (tmp_path / "runs/small/seed0/training.gif").exists()


def test_a_run_that_was_paused_has_a_time(tmp_path):
    Log(tmp_path, 0).row(1, 8, {"recon": 1.0}, 0.0016)
    assert Log(tmp_path, 1).seconds() == pytest.approx(5000)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must hold a mapping"),
        ("name: [", "not YAML"),
        ("...old_key: 1\n", "unknown key 'old_key'"),
    ],
)
def test_a_folder_whose_configuration_cannot_be_read_is_named(
    command, tmp_path, capsys, text, part
):
    assert train.main(command("config/twoD.yaml")) == 0
    file = tmp_path / "runs/small/seed0/config.yaml"
    file.write_text(text.replace("...", file.read_text()))
    assert train.main(command("config/twoD.yaml")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert str(file) in message
    assert part in message


def test_a_longer_run_redoes_the_provisional_last_row_and_frame(command, tmp_path):
    every = "train.log_every=3", "train.draw_every=3"
    for runs, all_steps in {"straight": [8], "grown": [4, 8]}.items():
        for steps in all_steps:
            run = command("config/twoD.yaml", *every, runs=tmp_path / runs, steps=steps)
            assert train.main(run) == 0
    for name in ("log.csv", "training.gif", "curves.png"):
        straight, grown = (tmp_path / runs / "small/seed0" / name for runs in ("straight", "grown"))
        assert straight.read_bytes() == grown.read_bytes(), name


def test_a_checkpoint_without_its_config_is_the_same_configuration(command, tmp_path, capsys):
    assert train.main(command("config/twoD.yaml", steps=2)) == 0
    file = tmp_path / "runs/small/seed0/config.yaml"
    text = file.read_text()
    file.unlink()
    assert train.main(command("config/twoD.yaml", "objective.beta=8", steps=3)) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    assert train.main(command("config/twoD.yaml", steps=3)) == 0
    assert file.read_text() == text.replace("steps: 2", "steps: 3")


def test_a_run_that_is_complete_has_its_facts(command, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "draw_training", full)
        assert train.main(command("config/twoD.yaml")) == 2
    facts = json.loads((tmp_path / "runs/small/seed0/run.json").read_text())
    assert facts["images_seen"] == 4 * 8


def test_no_checkpoint_is_promised_where_there_is_none(command, capsys):
    data = "dataset={name: npz, path: gone.npz}"
    assert train.main(command("config/twoD.yaml", data)) == 2
    error = capsys.readouterr().err
    assert "gone.npz" in error
    assert "checkpoint" not in error


def test_every_step_is_taken_in_training_mode(command, tmp_path, monkeypatch):
    modes = []

    def objective(vae, x, step):
        modes.append(vae.training)
        return vae_elbo(vae, x, step)

    monkeypatch.setitem(OBJECTIVES, "vae", objective)
    assert train.main(command("config/twoD_vae.yaml", "train.draw_every=1")) == 0
    assert modes
    assert all(modes)


@pytest.mark.parametrize("stopped", [True, False])
def test_output_that_nobody_reads_costs_no_work(command, tmp_path, stopped):
    """As `train.py ... 2>&1 | tee log` at Ctrl-C, which ends tee as well."""
    code = (
        "import os, signal, sys, train\n"
        "save, saved = train.train.__globals__['_refuse_non_finite'], []\n"
        "def at_second_step(step, terms, model=None):\n"
        "    if step == 2 and not saved:\n"
        "        saved.append(step)\n"
        "        os.close(reader)\n"
        f"        if {stopped}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    save(step, terms, model)\n"
        "train.train.__globals__['_refuse_non_finite'] = at_second_step\n"
        "bar = train.train.__globals__['_bar']\n"
        "def eager(*settings):\n"  # as on a slow machine: each step writes
        "    made = bar(*settings)\n"
        "    made.mininterval = 0\n"
        "    return made\n"
        "train.train.__globals__['_bar'] = eager\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1), os.dup2(writer, 2)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    settings = "train.save_every=" + ("100" if stopped else "2")
    arguments = command("config/twoD_vae.yaml", settings, "train.log_every=2", steps=100)
    result = subprocess.run([sys.executable, "-c", code, *arguments], timeout=120)
    assert result.returncode == 128 + signal.SIGPIPE
    assert load_checkpoint(tmp_path / "runs/small/seed0")["step"] >= 2


def test_data_that_changed_under_a_run_are_refused(command, squares, tmp_path, capsys):
    own = tmp_path / "own.npz"
    images = np.load(squares)["images"]
    np.savez(own, images=images)
    data = f"dataset={{name: npz, path: {own}}}"
    assert train.main(command("config/twoD.yaml", data, steps=2)) == 0
    np.savez(own, images=images[:40])
    assert train.main(command("config/twoD.yaml", data, steps=4)) == 2
    assert "was trained on 48 images" in capsys.readouterr().err
    np.savez(own, images=images[::-1])
    assert train.main(command("config/twoD.yaml", data, steps=4)) == 2
    assert "was trained on other images or factors" in capsys.readouterr().err
    np.savez(own, images=images)
    assert train.main(command("config/twoD.yaml", data, steps=4)) == 0


def test_tensorboard_gets_the_same_terms(command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main(command("config/twoD.yaml", "train.tensorboard=true")) == 0
    folder = tmp_path / "runs/small/seed0"
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("recon")
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    assert [event.step for event in events] == rows["step"].tolist()
    np.testing.assert_allclose([event.value for event in events], rows["recon"], rtol=1e-6)


def test_device_and_precision_are_chosen_or_refused(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert choose_precision("auto", cpu) is torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device: 'cuda' is not available here"):
            choose_device("cuda")


def test_a_published_factor_vae_leaves_its_discriminator_behind(command, tmp_path):
    run, out = tmp_path / "runs/small/seed0", tmp_path / "res"
    assert train.main(command("config/twoD_factor.yaml")) == 0
    publish.publish(run, "factor", out)
    kept = load_checkpoint(out / "factor.pt")
    assert not [name for name in kept["model"] if name.startswith("objective.")]
    assert (out / "factor.pt").stat().st_size < 2e6
    x, codes = (torch.rand(8, 1, 64, 64) > 0.9).float(), []
    for path in (run, out / "factor.pt"):
        codes.append(evaluate.model_of(load_checkpoint(path), path, torch.device("cpu")).encode(x))
    torch.testing.assert_close(*codes, atol=0, rtol=0)


def test_only_finished_runs_are_published(command, tmp_path, capsys):
    run, out = tmp_path / "runs/small/seed0", tmp_path / "res"
    assert publish.main(["--run", str(run), "--name", "a", "--out", str(out)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert train.main(command("config/twoD.yaml")) == 0
    assert publish.main(["--run", str(run), "--name", "a", "--out", str(out)]) == 0
    assert (out / "a_fix.png").read_bytes() == (run / "fixed.png").read_bytes()
    small, full = load_checkpoint(out / "a.pt"), load_checkpoint(run)
    assert "optimizers" not in small
    assert_equal(small["model"], dict(full["model"]))
    few = tmp_path / "few"
    call = ["--run", str(run), "--name", "b", "--out", str(few), "--no-pictures"]
    assert publish.main(call) == 0
    assert {file.name for file in few.iterdir()} == {"b.pt", "b.yaml", "b_log.csv", "b_run.json"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--study", "config/studies/twoD.yaml", "--out", "x"],
            "--out is not allowed with --study",
        ),
        (["--study", "config/studies/twoD.yaml", "--no-pictures"], "--no-pictures is not allowed"),
        (["--run", "x", "--name", "a", "--runs", "y"], "--runs is not allowed with --run"),
        (["--run", "x", "--name", "../a"], "--name: '../a' is not allowed"),
        (["--run", "x"], "--name: None is not allowed"),
    ],
)
def test_what_publishing_cannot_use_is_refused(capsys, arguments, part):
    assert publish.main(arguments) == 2
    assert part in capsys.readouterr().err


def test_publishing_can_be_stopped(monkeypatch, tmp_path, capsys):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "load_checkpoint", stop)
    assert publish.main(["--run", str(tmp_path), "--name", "a"]) == 130
    assert capsys.readouterr().err == "publish.py: stopped\n"
