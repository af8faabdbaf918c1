"""Sweeps: what runs is what was asked for, checked first; one failure or signal harms no other."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

import config
import publish
import report
import sweep
import train
from config.study import Study, choose, load_study, members, study_of
from models import VAE
from training import RunFolder, load_checkpoint, save_checkpoint

STUDIES = sorted(Path("config/studies").glob("*.yaml"))


@pytest.fixture
def study(squares, tmp_path):
    """A study file of small runs; `runs` are its entries."""

    def write(*runs, name="small", **keys):
        small = {"dataset": {"name": "npz", "path": str(squares)}, "train.device": "cpu"}
        small |= {"train.batch_size": 8, "train.log_every": 1, "train.steps": 4}
        for run in runs:
            run["overrides"] = small | run.get("overrides", {})
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "seeds": 0, "runs": list(runs)} | keys))
        return str(path)

    return write


def found_by(arguments):
    """The run of the command line of the fixture `command`."""
    return sweep.find(members(study_of(arguments[1], arguments[4:]))[0], Path(arguments[3]))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_published_studies_are_valid_and_open_with_their_command(path):
    assert f"python sweep.py --study {path}" in path.read_text().splitlines()[0]
    found = members(load_study(path))
    assert len({(member.name, member.seed) for member in found}) == len(found)
    for member in found:
        values = train.resolve(member.config, list(member.overrides))
        assert (values["name"], values["seed"]) == (member.name, member.seed)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0-2,7", [0, 1, 2, 7]), ("[5, 1]", [5, 1])],
)
def test_seeds_are_a_number_a_range_or_a_list(tmp_path, text, seeds):
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nseeds: {text}\nruns: [{{config: config/twoD.yaml}}]\n")
    assert [member.seed for member in members(load_study(path))] == seeds


def test_a_grid_is_every_combination_and_names_what_varies():
    study = study_of(
        "config/twoD.yaml",
        ["objective.beta=1,4.0", "model.lr=1e-4,2.00000001e-05", "train.steps=9", "seed=0-1"],
    )
    found = members(study)
    ends = ["beta1-lr0.0001", "beta1-lr2.00000001e-05"]  # all digits that tell apart
    names = [*ends, *(end.replace("beta1", "beta4") for end in ends)]
    assert [member.name for member in found] == [f"twoD-{name}" for name in names] * 2
    assert [member.seed for member in found] == [0] * 4 + [1] * 4
    values = train.resolve(found[-1].config, list(found[-1].overrides))
    assert (values["objective"]["beta"], values["model"]["lr"]) == (4.0, 2.00000001e-5)
    assert (values["train"]["steps"], values["name"], values["seed"]) == (9, found[-1].name, 1)


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("x.y=[1, 2]", [[1, 2]]),
        ("x.y=[1,2],[3]", [[1, 2], [3]]),
        ("x.y={a: 1, b: 2}", [{"a": 1, "b": 2}]),
        ("x.y='a,b'", ["a,b"]),
        ("x.y=", [None]),
        ("x.y='1e5',true,null,~,010,yes", ["1e5", True, None, None, 10, "yes"]),
    ],
)
def test_only_commas_outside_of_brackets_and_quotes_separate(override, values):
    study = study_of("config/twoD.yaml", [override])
    assert study.runs[0].grid == {"x.y": values}
    for value in values:  # each reads back as itself from the command line of train.py
        (member, *_) = members(study_of("config/twoD.yaml", ["x.y=" + json.dumps(value)]))
        assert config.apply_overrides({}, list(member.overrides))["x"]["y"] == value


@pytest.mark.parametrize(
    ("keys", "overrides", "grid", "found"),
    [
        ({"train": {"steps": 15}}, {"train": {"steps": 50}}, {"train.steps": [7, 8]}, [7, 8]),
        ({"train": {"steps": 15}}, {"train": {"steps": 50}}, {}, [50]),
        ({"train": {"steps": 15}}, {}, {"train": [{"steps": 7}], "train.steps": [8]}, [8]),
    ],
)
def test_of_a_section_and_a_key_of_it_the_later_one_counts(tmp_path, keys, overrides, grid, found):
    run = {"config": "config/twoD.yaml", "overrides": overrides, "grid": grid}
    path = tmp_path / "s.yaml"
    path.write_text(
        yaml.safe_dump({"name": "s", "seeds": 0, "runs": [run]} | keys, sort_keys=False)
    )
    values = [train.resolve(m.config, list(m.overrides)) for m in members(load_study(path))]
    assert [settings["train"]["steps"] for settings in values] == found


def test_later_keys_win_and_the_whole_study_shares_train(study):
    run = {"config": "config/twoD.yaml", "grid": {"train.save_every": [7]}}
    (member,) = members(load_study(study(run, train={"steps": 99, "draw_every": 3})))
    settings = train.resolve(member.config, list(member.overrides))["train"]
    assert (settings["steps"], settings["draw_every"], settings["save_every"]) == (4, 3, 7)
    assert member.name == "twoD"  # one value is no choice


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["objective.beta=1,-4"], ["twoD-beta-4", "objective.beta", "greater than"]),
        (["objective.betta=1,2"], ["unknown key 'objective.betta'", "'beta'"]),
        (["seed=4-0"], ["seeds", "'4-0'", "0-2,7"]),
        (["seed=0-20250101"], ["seeds", "at most 1000"]),
        (["seed=1,1"], ["seeds", "[1, 1]", "each seed once"]),
        (["name=a,b"], ["name", "'a,b'"]),
        (["x=]"], ["value of 'x'", "not YAML"]),
        (["seed"], ["'seed' is not of the form key=value"]),
        (["model.lr=1,1.0"], ["runs.0.grid: two choices are called 'twoD-lr1'"]),
        (["model.lr=1", "model.lr=2"], ["model.lr is given twice", "model.lr=a,b"]),
        (["objective.beta=!!set {1}"], ["objective.beta: {1} is not allowed", "numbers, text"]),
        (["--jobs", "0"], ["--jobs", "0", "1 or more"]),
        (["train.device=tpu"], ["train.device", "'tpu'"]),
        (
            ["objective={name: controlled_vae, beta_min: 500}"],
            ["twoD", "objective.beta_min: 500", "at most beta_start, 100"],
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named_and_nothing_starts(
    capsys, tmp_path, arguments, parts
):
    runs = tmp_path / "runs"
    assert sweep.main(["--config", "config/twoD.yaml", "--runs", str(runs), *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in parts:
        assert part in message
    assert not runs.exists()


@pytest.mark.parametrize(
    ("runs", "keys", "parts"),
    [
        (
            [{"config": "config/twoD.yaml", "grids": {}}],
            {},
            ["runs.0.grids", "did you mean 'grid'"],
        ),
        ([{"config": "config/none.yaml"}], {}, ["cannot read config/none.yaml"]),
        ([{"config": "config/twoD.yaml"}], {"train": {"step": 3}}, ["train.step", "'steps'"]),
        ([{"config": "config/twoD.yaml"}], {"slurm": {"mem": 3}}, ["slurm.mem", "'mem_gb'"]),
        ([{"config": "config/twoD.yaml", "grid": {"seed": [1]}}], {}, ["runs.0", "'seed'"]),
        ([], {"runs": [5]}, ["runs.0: 5 is not allowed", "a section with keys, as config, name"]),
        (
            [{"config": "config/twoD.yaml", "grid": {"model.lr": []}}],
            {},
            ["model.lr", "at least 1"],
        ),
        ([], {}, ["runs", "at least 1"]),
        (
            [{"config": "config/twoD.yaml"}, {"config": "config/twoD_vae.yaml", "name": "twoD"}],
            {},
            ["runs.1", "'twoD' is taken by runs.0"],
        ),
    ],
)
def test_a_mistake_in_a_study_is_named(capsys, study, tmp_path, runs, keys, parts):
    arguments = ["--study", study(*runs, **keys), "--runs", str(tmp_path / "runs")]
    assert sweep.main(arguments) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ([], ["one/3", "two/3", "one/4", "two/4", "one/5", "two/5"]),
        (["name=two"], ["two/3", "two/4", "two/5"]),
        (["name=two,one", "seed=4-5"], ["one/4", "two/4", "one/5", "two/5"]),  # the study's order
        (["seed=3,5", "name=one"], ["one/3", "one/5"]),
    ],
)
def test_a_part_of_a_study_is_chosen_by_name_and_seed(study, choices, labels):
    one = {"config": "config/twoD.yaml", "name": "one"}
    path = study(one, one | {"name": "two"}, seeds="3-5")
    found = choose(load_study(path), choices)
    assert [f"{member.name}/{member.seed}" for member in found] == labels


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ("name=one,three", ["name: 'three' is not in the study", "allowed: one"]),
        ("seed=2-4", ["seed: 2 is not in the study", "allowed: 3, 4, 5"]),
        ("seed=some", ["seed: 'some'", "0-2,7"]),
        ("seed=[3,5]", ["seed: '[3,5]'", "0-2,7"]),
        ("seed=", ["seed: ''", "0-2,7"]),
        ("seed=3 seed=4", ["seed is given twice", "seed=a,b"]),
        ("train.steps=3", ["'train.steps=3' goes with --config", "name=a,b and seed=0-2"]),
    ],
)
def test_a_choice_that_a_study_does_not_offer_is_named(capsys, study, tmp_path, choice, parts):
    runs = tmp_path / "runs"
    path = study({"config": "config/twoD.yaml", "name": "one"}, seeds="3-5")
    assert sweep.main(["--study", path, "--runs", str(runs), *choice.split()]) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message
    assert not runs.exists()


def test_another_configuration_in_a_folder_stops_the_sweep_before_it_starts(
    command, capsys, tmp_path
):
    folder = tmp_path / "runs/small/seed0"
    arguments = command("config/twoD.yaml")
    values = train.resolve(arguments[1], [*arguments[4:], "objective.beta=8"])
    with RunFolder(folder, config.to_yaml(values)) as opened:
        opened.take()
        (folder / "checkpoint.pt").touch()
    assert sweep.main(arguments) == 2
    message = capsys.readouterr().err
    assert "holds a run with another configuration" in message
    assert "-  beta: 8" in message


def test_a_dry_run_says_what_runs_in_which_state_and_for_how_long(
    command, capsys, tmp_path, monkeypatch
):
    assert train.main(command("config/twoD.yaml", "seed=0")) == 0
    assert train.main(command("config/twoD.yaml", "seed=1", steps=2)) == 0
    capsys.readouterr()
    timed = []
    monkeypatch.setattr(sweep, "measure", lambda *arguments: timed.append(1) or (16.0, "now"))
    dry = ["--dry-run", "--jobs", "1", "--threads", "1"]
    assert sweep.main(command("config/twoD.yaml", "seed=0-2", *dry)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small/seed0: complete: python train.py --config config/twoD.yaml")
    assert lines[1].startswith("small/seed1: step 2 of 4: ")
    assert lines[2].startswith("small/seed2: new: ")
    assert lines[2].endswith("name=small seed=2")
    assert f"({tmp_path / 'runs/small/seed0'})" in lines[3]  # measured when it was trained
    assert not timed
    dry[-1] = "3"  # threads that no earlier run had
    assert sweep.main(command("config/twoD.yaml", "seed=0-2", *dry)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "small: 16 images/s (now)"
    assert lines[4].startswith(
        "2 of 3 runs to train, 1 at a time, OMP_NUM_THREADS=3: about 0:00:03"
    )
    assert len(timed) == 1


@pytest.mark.parametrize(
    ("gpus", "cores", "asked", "found"),
    [
        (0, 2, None, (2, 1)),
        (0, 8, 2, (2, 4)),
        (1, 16, None, (4, 4)),
        (1, 2, None, (2, 1)),
        (2, 32, None, (8, 4)),
        (1, 16, 6, (6, 2)),
    ],
)
def test_cores_and_gpus_are_shared_by_as_many_runs_as_are_fastest(
    study, monkeypatch, gpus, cores, asked, found
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sweep, "choose_device", lambda _: torch.device("cuda" if gpus else "cpu"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    todo = [sweep.Run(None, {"train": {"device": "auto"}}, Path(), 0, False)] * 20
    options = argparse.Namespace(jobs=asked, threads=None, cluster="local")
    workers = sweep.share(load_study(study({"config": "config/twoD.yaml"})), todo, options)
    assert workers == (*found, [str(gpu) for gpu in range(gpus)])
    started = []
    executor = argparse.Namespace(submit_array=started.extend)
    monkeypatch.setattr(sweep, "train_arguments", lambda run: [])
    sweep.start(todo[: workers.jobs], list(range(workers.jobs)), executor, workers, None)
    used = Counter(task.gpu for task in started)
    assert set(used) == (set(workers.gpus) or {None})
    assert max(used.values()) == -(-workers.jobs // max(1, gpus))  # evenly


@pytest.mark.parametrize("steps", [4, 100])
def test_the_last_steps_are_timed(command, monkeypatch, steps):
    """What a schedule brings in late is in them."""
    timed = []
    step_of = VAE.train_step
    monkeypatch.setattr(VAE, "train_step", lambda *args: timed.append(args[2]) or step_of(*args))
    run = found_by(command("config/twoD.yaml", steps=steps))
    speed, source = sweep.measure(run, threads=1)
    assert speed > 0
    assert "timed now" in source
    count = sweep.WARM_STEPS + sweep.TIMED_STEPS
    assert timed == list(range(max(0, steps - count), max(count, steps)))


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", None), ("config.yaml", "a: ["), ("run.json", "{"), ("speed.csv", "a\nb,c\n")],
)
def test_a_damaged_run_is_no_source_of_a_speed_and_no_obstacle(command, tmp_path, name, text):
    path = tmp_path / "runs/small/seed0"
    assert train.main(command("config/twoD.yaml", "seed=0")) == 0
    other = found_by(command("config/twoD.yaml", "seed=1"))
    assert sweep.earlier_speed(other, threads=torch.get_num_threads())
    if text is None:
        (path / name).unlink()  # the checkpoint knows the configuration
        assert sweep.earlier_speed(other, threads=torch.get_num_threads())
        (path / "checkpoint.pt").unlink()
    else:
        (path / name).write_text(text)
    assert sweep.earlier_speed(other, threads=torch.get_num_threads()) is None


def test_the_speed_of_two_processes_is_not_that_of_one(command, tmp_path):
    assert train.main(command("config/twoD.yaml", "seed=0")) == 0
    record = tmp_path / "runs/small/seed0/run.json"
    facts = json.loads(record.read_text())
    facts["starts"][0]["processes"] = 2
    record.write_text(json.dumps(facts))
    other = found_by(command("config/twoD.yaml", "seed=1"))
    assert sweep.earlier_speed(other, threads=torch.get_num_threads()) is None


def test_rows_from_before_a_crash_are_not_progress(command, tmp_path):
    run = found_by(command("config/twoD.yaml"))._replace(step=2)
    run.path.mkdir(parents=True)
    log = run.path / "speed.csv"
    began = time.time()
    assert sweep.last_step(run, began) == 2
    log.write_text("step,images_per_s\n3,9\n4,9\n")
    os.utime(log, (began - 60, began - 60))
    assert sweep.last_step(run, began) == 2
    log.write_text("step,images_per_s\n3,9\n")  # trimmed by the run that goes on
    os.utime(log, (began + 1, began + 1))
    assert sweep.last_step(run, began) == 3


def test_a_killed_run_is_not_blamed_on_its_last_line(tmp_path):
    paths = argparse.Namespace(stderr=tmp_path / "e", result_pickle=tmp_path / "r")
    paths.stderr.write_text("Going on from step 20\n 1%|x| 2/3\r 2%|x|")
    job = argparse.Namespace(paths=paths)
    words = "it was killed (for want of memory?); its last line: Going on from step 20 (log: "
    assert sweep.last_words(job).startswith(words)
    paths.result_pickle.touch()
    assert sweep.last_words(job).startswith("Going on from step 20 (log: ")


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_a_complete_one_is_skipped(study, capfd, tmp_path):
    good = {"config": "config/twoD_vae.yaml", "name": "good"}
    bad = {"config": "config/twoD.yaml", "name": "bad", "overrides": {"model.lr": 1e30}}
    arguments = ["--study", study(bad, good), "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    assert sweep.main(arguments) == 1
    captured = capfd.readouterr()
    assert "1 of 2 runs are complete" in captured.out
    (line,) = [line for line in captured.err.splitlines() if "bad/seed0 failed" in line]
    assert "train.py: not finite at step" in line
    assert Path(line.rpartition("(log: ")[2].rstrip(")")).exists()
    checkpoint = tmp_path / "runs/good/seed0/checkpoint.pt"
    facts = json.loads(checkpoint.with_name("run.json").read_text())
    assert facts["starts"][0]["command"].startswith("python")
    assert " train.py --config config/twoD_vae.yaml " in facts["starts"][0]["command"]
    before = checkpoint.stat().st_mtime_ns
    with RunFolder(tmp_path / "runs/bad/seed0", "a: 1\n"):  # as another sweep would
        assert sweep.main(arguments) == 1
    assert "another process is training" in capfd.readouterr().err
    assert checkpoint.stat().st_mtime_ns == before


def processes_of(folder):
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(folder) in line]


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_saves_leaves_no_process_and_goes_on(study, tmp_path, number):
    settings = {"train.steps": 300, "train.save_every": 5, "train.draw_every": 300}
    run = {"config": "config/twoD.yaml", "overrides": settings}
    arguments = ["--study", study(run), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "sweep.py", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = tmp_path / "runs/twoD/seed0"
    wait_until((folder / "checkpoint.pt").exists)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as a terminal does: the runs' processes too
    out, _ = process.communicate(timeout=240)
    wait_until(lambda: not processes_of(tmp_path))
    rows = (folder / "log.csv").read_text().count("\n") - 1
    assert load_checkpoint(folder)["step"] == rows < 300  # saved when it was told to stop
    if number == signal.SIGKILL:
        assert process.returncode == -number
        return
    assert process.returncode == 128 + number
    assert "The same command goes on" in out
    if number == signal.SIGTERM:
        assert sweep.main(arguments) == 0
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert [start["from_step"] for start in starts] == [0, rows]
        assert load_checkpoint(folder)["step"] == 300


def test_a_published_run_is_complete_and_reported_where_runs_is_empty(
    study, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(Study, "published", tmp_path / "res/small/runs")
    one = {"config": "config/twoD_vae.yaml", "name": "one"}
    path, runs = study(one, one | {"name": "two"}, seeds=[3, 5]), tmp_path / "runs"
    one3, two3, one5, two5 = members(load_study(path))  # every configuration, then the next seed
    for member in (one3, two3):
        run = sweep.find(member, runs)
        assert train.main(sweep.train_arguments(run)) == 0
    state = load_checkpoint(runs / "two/seed3")
    save_checkpoint(runs / "two/seed3/checkpoint.pt", state | {"step": 3})
    shorter = sweep.find(two5, runs)  # of the study's name and seed, yet another run
    assert train.main([*sweep.train_arguments(shorter), "train.steps=2"]) == 0
    assert publish.main(["--study", path, "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "two/seed3 is not finished, left out: step 3 of 4" in printed
    assert "two/seed5 has not the configuration of the study, left out" in printed

    kept, away = tmp_path / "res/small/runs/one/seed3", tmp_path / "elsewhere"
    names = {"checkpoint.pt", "config.yaml", "log.csv", "run.json"}
    assert {file.name for file in kept.iterdir()} == names
    weights = load_checkpoint(kept)["model"]
    for name, weight in load_checkpoint(runs / "one/seed3")["model"].items():
        torch.testing.assert_close(weights[name].float(), weight, rtol=1e-3, atol=1e-4)
    found = {m: sweep.find(m, away, load_study(path).published) for m in (one3, two3, one5, two5)}
    assert [run.complete for run in found.values()] == [True, False, False, False]
    assert found[one3].path == kept
    assert sweep.find(one3, runs, load_study(path).published).path == kept
    assert sweep.find(two3, runs, load_study(path).published).path == runs / "two/seed3"
    assert not sweep.find(one3, away).complete  # of a sweep without a study
    assert report.started(away, load_study(path)) == [kept]
    assert train.main([*sweep.train_arguments(found[one3])]) == 0  # and for train.py
    assert "This run is complete" in capsys.readouterr().out

    stamp = (kept / "checkpoint.pt").stat().st_mtime_ns
    assert publish.main(["--study", path, "--runs", str(runs)]) == 0  # once is enough
    assert (kept / "checkpoint.pt").stat().st_mtime_ns == stamp


def test_a_published_run_of_fewer_steps_is_trained_anew_and_replaced(
    study, capsys, tmp_path, monkeypatch
):
    published, runs, away = (tmp_path / name for name in ("published", "runs", "away"))
    monkeypatch.setattr(Study, "published", published)
    one = {"config": "config/twoD_vae.yaml", "name": "one"}
    path = study(one)
    assert sweep.main(["--study", path, "--runs", str(runs)]) == 0
    assert publish.main(["--study", path, "--runs", str(runs)]) == 0
    kept, written = published / "one/seed0", (published / "one/seed0/config.yaml").read_text()

    one["overrides"]["train.steps"] = 6
    path = study(one)
    (member,) = members(load_study(path))
    found = sweep.find(member, away, published)
    assert (found.path, found.complete) == (away / "one/seed0", False)
    there = [*sweep.train_arguments(sweep.find(member, published))]
    assert train.main(there) == 2
    assert "one/seed0 holds weights only, of step 4" in capsys.readouterr().err
    assert (kept / "config.yaml").read_text() == written

    assert sweep.main(["--study", path, "--runs", str(away)]) == 0
    assert publish.main(["--study", path, "--runs", str(away)]) == 0
    assert load_checkpoint(kept)["step"] == 6
    assert sweep.find(member, tmp_path / "nowhere", published).complete
    capsys.readouterr()
    assert sweep.main(["--study", path, "--runs", str(tmp_path / "nowhere")]) == 0
    assert "100%" in capsys.readouterr().err  # published runs count as seen


def test_a_name_that_looks_like_a_number_stays_a_name(study):
    (member,) = members(load_study(study({"config": "config/twoD_vae.yaml", "name": "2024"})))
    assert train.resolve(member.config, list(member.overrides))["name"] == "2024"


def test_a_study_has_a_folder_of_its_own(study, monkeypatch):
    path = study({"config": "config/twoD_vae.yaml", "name": "one"})
    for module, does in ((sweep, "sweep"), (publish, "publish_study"), (report, "started")):
        asked = []

        def note(*arguments, asked=asked):
            asked.extend(getattr(argument, "runs", argument) for argument in arguments)
            raise ValueError("enough")

        monkeypatch.setattr(module, does, note)
        assert module.main(["--study", path]) == 2
        assert Path("runs/studies/small") in asked


def test_a_study_s_metrics_are_checked_before_anything_starts(study, capsys, tmp_path):
    path = study({"config": "config/twoD_vae.yaml"}, metrics="mig,bogus")
    assert sweep.main(["--study", path, "--runs", str(tmp_path / "runs")]) == 2
    assert "key 'metrics': unknown metric 'bogus'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_git_keeps_the_records_of_a_study_and_leaves_out_what_can_be_made_again():
    if not Path(".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path):
        return subprocess.run(["git", "check-ignore", "--quiet", path]).returncode == 0

    kept = "res/small/runs/one/seed3"
    for name in ("checkpoint.pt", "config.yaml", "log.csv", "run.json"):
        assert not ignored(f"{kept}/{name}")
    assert ignored(f"{kept}/report.html")
    assert ignored(f"{kept}/fixed.png")
    assert ignored("runs/one/seed3/checkpoint.pt")
