"""study.py: what runs is what was asked for; one failure or signal harms no other run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import config
import evaluate
import results
import runs
import study
import train
from config.study import members, parse_seeds, read_study, study_of
from training import jobs
from training.checkpoint import load_checkpoint, save_checkpoint

STUDIES = sorted(Path("config/studies").glob("*.yaml"))


def train_members(path, root, *overrides):
    """Train the runs of a study in this process; their folders."""
    folders = []
    for file, words in members(read_study(path)):
        assert train.main(["--config", file, "--runs", str(root), *words, *overrides]) == 0
        folders.append(runs.folder_of(runs.resolve(file, words), Path(root)))
    return folders


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_published_studies_are_valid_and_open_with_their_command(path):
    assert path.read_text().startswith(f"# python study.py run {path}")
    values = [runs.resolve(*member) for member in members(read_study(path))]
    assert len({(one["name"], one["seed"]) for one in values}) == len(values) > 1


def test_seeds_are_a_number_a_range_or_a_list():
    assert parse_seeds(3) == [3]
    assert parse_seeds("0-1,7") == [0, 1, 7]
    assert parse_seeds([5, 1]) == parse_seeds("[5, 1]") == [5, 1]


def test_a_grid_is_every_combination_and_names_what_varies():
    words = ["objective.beta=1,4.0", "model.lr=1e-4,2e-05", "train.steps=9", "seed=0-1"]
    values = [runs.resolve(*member) for member in members(study_of("config/twoD.yaml", words))]
    ends = ["beta1-lr0.0001", "beta1-lr2e-05", "beta4-lr0.0001", "beta4-lr2e-05"]
    assert [one["name"] for one in values] == [f"twoD-{end}" for end in ends] * 2
    assert [one["seed"] for one in values] == [0] * 4 + [1] * 4
    last = values[-1]
    assert (last["objective"]["beta"], last["model"]["lr"]) == (4.0, 2e-5)
    assert last["train"]["steps"] == 9


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("x.y=[1,2],{a: 1, b: 2}", [[1, 2], {"a": 1, "b": 2}]),
        ("x.y='a,b','1e5',true,null,c/d", ["a,b", "1e5", True, None, "c/d"]),
        ("x.y=", [None]),
    ],
)
def test_values_keep_their_type_on_the_command_line(override, values):
    assert study_of("config/twoD.yaml", [override])["runs"][0]["grid"] == {"x.y": values}
    words = [words for _, words in members(study_of("config/twoD.yaml", [override]))]
    assert [config.apply_overrides({}, word)["x"]["y"] for word in words] == values


def test_the_later_setting_of_a_key_counts(write):
    entry = {"config": "config/twoD.yaml", "name": "2024", "overrides": {"train.save_every": 5}}
    entry["grid"] = {"train.save_every": [7]}
    path, *_ = write(entry, train={"steps": 99, "draw_every": 3, "save_every": 6})
    (member,) = members(read_study(path))
    values = runs.resolve(*member)
    assert values["name"] == "2024"  # one value is no choice, and a number is a name
    assert [values["train"][f"{key}_every"] for key in ("draw", "save")] == [3, 7]
    assert values["train"]["steps"] == 4


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ([], ["one 3", "two 3", "one 4", "two 4", "one 5", "two 5"]),
        (["name=two,one", "seed=4-5"], ["one 4", "two 4", "one 5", "two 5"]),
        (["seed=3,5", "name=one"], ["one 3", "one 5"]),
    ],
)
def test_a_part_of_a_study_is_chosen_by_name_and_seed(write, choices, labels):
    one = {"config": "config/twoD.yaml", "name": "one"}
    path, *_ = write(one, one | {"name": "two"}, seeds="3-5")
    values = [runs.resolve(*member) for member in members(read_study(path), choices)]
    assert [f"{one['name']} {one['seed']}" for one in values] == labels


RUN = ["run", "--config", "config/twoD.yaml"]
CHOOSE = ["run", "config/studies/twoD.yaml"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([*RUN, "objective.beta=1,-4"], "objective.beta: -4 is not allowed"),
        ([*RUN, "seed=4-0"], "seeds: '4-0' is not allowed"),
        ([*RUN, "seed=0-20250101"], "at most 1000"),
        ([*RUN, "x=]"], "not valid YAML"),
        ([*RUN, "model.lr=1,1.0"], "two configurations are named 'twoD-lr1'"),
        ([*RUN, "model.lr=1", "model.lr=2"], "each key once"),
        ([*RUN, "--jobs", "0"], "--jobs: 0 is not allowed"),
        ([*RUN, "--cluster", "slurm", "--runs", "/dev/null"], "--cluster: slurm is not available"),
        (["run"], "run needs STUDY.yaml or --config"),
        ([*CHOOSE, "name=vae"], "name: 'vae' is not in the study; allowed: twoD, twoD_vae"),
        ([*CHOOSE, "seed=4-5"], "seed: 5 is not in the study; allowed: 0, 1, 2, 3, 4"),
        ([*CHOOSE, "train.steps=3"], "choice: 'train.steps' is not in the study"),
        (["report"], "report needs STUDY.yaml, or --runs"),
        (["report", "none.yaml"], "cannot read none.yaml"),
        (["report", "--runs", "tests", "--out", "x"], "there is no complete run with scores"),
        (["publish"], "publish needs STUDY.yaml, or --run"),
        (["publish", "--run", "tests", "--name", "a/b"], "publish needs"),
        (["publish", "--run", "tests", "--name", "a"], "there is no checkpoint in tests"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(capsys, monkeypatch, arguments, part):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(study, "load_dataset", lambda **_: None)
    monkeypatch.setattr(study, "watch", lambda *_: pytest.fail("something has started"))
    assert study.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("study.py: ")
    assert part in error
    assert error.count("\n") == 1


TWO = {"config": "config/twoD.yaml"}


@pytest.mark.parametrize(
    ("entries", "keys", "part"),
    [
        ([TWO | {"grids": {}}], {}, "unknown key 'grids'; did you mean 'grid'"),
        ([TWO], {"seed": 3}, "unknown key 'seed'; did you mean 'seeds'"),
        ([TWO], {"train": {"step": 3}}, "did you mean 'steps'"),
        ([TWO | {"grid": {"seed": [1]}}], {}, "'name' and 'seed' are no overrides"),
        ([TWO | {"grid": {"model.lr": []}}], {}, "grid.model.lr: [] is not allowed"),
        ([TWO, {"config": "config/twoD_vae.yaml", "name": "twoD"}], {}, "are named 'twoD'"),
        ([TWO], {"baseline": "vae"}, "baseline: 'vae' is not in the study; allowed: twoD"),
    ],
)
def test_a_mistake_in_a_study_is_one_sentence(capsys, write, entries, keys, part):
    arguments = write(*[dict(entry) for entry in entries], **keys)
    assert study.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("gpus", "cores", "asked", "runs_at_a_time", "threads"),
    [(0, 2, None, 2, 1), (0, 8, 2, 2, 4), (1, 16, None, 4, 4), (1, 2, None, 2, 1), (2, 8, 6, 6, 1)],
)
def test_runs_share_cores_and_gpus(monkeypatch, gpus, cores, asked, runs_at_a_time, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    slots = jobs.share(20, asked, None, on_gpus=gpus > 0)
    assert [slot["OMP_NUM_THREADS"] for slot in slots] == [str(threads)] * runs_at_a_time
    dealt = [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots]
    assert dealt == [str(slot % gpus) if gpus else None for slot in range(len(slots))]


def test_a_killed_process_is_not_blamed_on_its_last_line(tmp_path):
    log = tmp_path / "log"
    text = "import os, signal; print('all is well', flush=True); os.kill(os.getpid(), {})"
    process = jobs.launch([sys.executable, "-c", text.format("signal.SIGKILL")], log, {})
    process.wait()
    assert jobs.last_words(jobs.exit_code(process), log).startswith("killed by SIGKILL")
    bar = "step 2/20:  10%|#   | 2/20 [00:01<00:10, 3 images/s, kl=0.1]"
    for text in f"a\nlast\n{bar}\r{bar}\n\n", f"a\n{bar}\nlast":
        log.write_text(text)
        assert jobs.last_words(1, log) == f"last (log: {log})"


@pytest.mark.slow
def test_a_failed_run_stops_no_other(write, capfd, tmp_path, monkeypatch):
    """Typed in a folder with other modules of the same names, which nothing imports."""
    bad = {"config": "config/twoD.yaml", "name": "bad", "overrides": {"model.lr": 1e30}}
    other = {"config": "config/twoD_vae.yaml", "name": "other"}
    damaged, good = other | {"name": "damaged"}, other | {"name": "good"}
    for entry in bad, other, damaged, good:
        entry["config"] = os.path.abspath(entry["config"])
    path, _, root = write(other)
    train_members(path, root, "model.latent_dim=4")
    arguments = write(bad, other, damaged, good)
    (Path(root) / "damaged/seed0").mkdir(parents=True)
    (Path(root) / "damaged/seed0/checkpoint.pt").write_bytes(b"PK")
    away = tmp_path / "away"
    (away / "data").mkdir(parents=True)
    for name in ("train.py", "config.py", "files.py", "data/__init__.py"):
        (away / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(away)
    capfd.readouterr()
    assert study.main(["run", *arguments, "--jobs", "2"]) == 1
    captured = capfd.readouterr()
    assert "1 of 4 runs are complete" in captured.out
    lines = {line.split()[1]: line for line in captured.err.splitlines() if " failed: " in line}
    assert "train.py: not finite at step" in lines["bad/seed0"]
    assert "holds another run (model.latent_dim: 4 there" in lines["other/seed0"]
    assert "damaged" in lines["damaged/seed0"]
    assert load_checkpoint(Path(root) / "good/seed0")[0]["step"] == 4


def has_process(folder):
    return str(folder) in subprocess.check_output(["ps", "-eo", "args"], text=True)


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_saves_leaves_no_process_and_resumes(write, tmp_path, number):
    settings = {"train.steps": 150, "train.save_every": 5, "train.draw_every": 150}
    arguments = write({"config": "config/twoD.yaml", "overrides": settings})
    command = [sys.executable, "study.py", "run", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = tmp_path / "runs/twoD/seed0"
    wait_until((folder / "checkpoint.pt").exists)
    os.killpg(process.pid, number)  # as a terminal does
    out, _ = process.communicate(timeout=240)
    wait_until(lambda: not has_process(tmp_path))
    time.sleep(1)  # on a busy machine `ps` may miss a process that is saving
    wait_until(lambda: not has_process(tmp_path))
    rows = (folder / "log.csv").read_text().count("\n") - 1
    assert load_checkpoint(folder)[0]["step"] == rows < 150  # saved as it was stopped
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "The same command resumes" in out or number == signal.SIGKILL
    if number == signal.SIGTERM:
        assert study.main(["run", *arguments]) == 0
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert [start["from_step"] for start in starts] == [0, rows]
        assert load_checkpoint(folder)[0]["step"] == 150


@pytest.fixture
def scored(write, tmp_path):
    """A study of two configurations with three seeds; one run is not scored, one is damaged."""
    entries = [{"config": "config/twoD_vae.yaml", "name": name} for name in ("one", "two")]
    arguments = write(*entries, seeds="0-2", baseline="one", documents=[f"{tmp_path}/*.md"])
    folders = train_members(arguments[0], arguments[2])  # one 0, two 0, one 1, ...
    for folder in folders[:-1]:
        few = ["mig.num_samples=48", "--metrics", "mig", "--device", "cpu"]
        assert evaluate.main(["--checkpoint", str(folder), *few]) == 0
    (folders[1] / "metrics.json").write_text("{")
    return arguments, folders


def test_a_report_names_what_it_leaves_out(scored, tmp_path, capsys, monkeypatch):
    arguments, folders = scored
    monkeypatch.setattr(results, "agreement", lambda _, runs: [len(codes) for codes, _ in runs])
    document, out = tmp_path / "doc.md", tmp_path / "res/small"
    document.write_text("<!-- table: small --><!-- end -->")
    assert study.main(["report", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"left out: {folders[1]}/metrics.json is damaged" in printed
    assert f"left out: {folders[5]} has no scores of step 4" in printed
    frame = pd.read_csv(out / "results.csv")
    assert list(frame["config"]) == ["one", "one", "two", "one"]
    assert list(frame["seed"]) == [0, 1, 1, 2]
    for metric in results.AGREEMENT:
        assert frame[metric].fillna(-1).tolist() == [48, 48, -1, 48]  # two has one run
    row = next(line for line in document.read_text().splitlines() if line.startswith("| one"))
    assert row.startswith("| one | 3 | 32 | ")
    assert row in (out / "results.md").read_text()
    assert sorted(path.stem for path in out.glob("*.png")) == ["correlation", "curves", "scores"]
    links = re.findall('<a href="([^"]*)"', (out / "report.html").read_text())
    pages = [folders[i] / "report.html" for i in (0, 2, 3, 4)]
    assert [(out / link).resolve() for link in links] == pages
    assert 'type="range"' in pages[0].read_text()


def test_published_runs_are_complete_and_reported(scored, tmp_path, capsys):
    (path, _, _), folders = scored
    published, away = tmp_path / "res/small/runs", ["--runs", str(tmp_path / "away")]
    state, _ = load_checkpoint(folders[4])
    save_checkpoint(folders[4] / "checkpoint.pt", state | {"step": 3})
    shutil.copy(folders[0] / "metrics.json", folders[0] / "metrics_kept.json")
    for _ in range(2):
        assert study.main(["publish", *scored[0]]) == 0
        printed = capsys.readouterr().out
        assert f"left out: {folders[4]} is at step 3 of 4" in printed
        assert f"3 of 6 runs are in {published}" in printed
    one = published / "one/seed0"
    files = ["checkpoint.pt", "config.yaml", "log.csv", "metrics.json", "metrics_kept.json"]
    assert sorted(file.name for file in one.iterdir()) == [*files, "run.json"]
    state, sha256 = load_checkpoint(one)
    assert json.loads((one / "metrics_kept.json").read_text())["checkpoint_sha256"] == sha256
    assert "optimizers" not in state
    for name, weight in load_checkpoint(folders[0])[0]["model"].items():
        torch.testing.assert_close(state["model"][name].float(), weight, rtol=1e-3, atol=1e-4)
    assert study.main(["run", path, "--runs", scored[0][2], "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one/seed0: complete: ")
    assert lines[4].startswith("one/seed2: step 3 of 4: ")
    assert f"train.py --config config/twoD_vae.yaml --runs {scored[0][2]}" in lines[4]
    assert lines[6:] == ["1 of 6 runs to train"]
    assert study.main(["report", path, *away, "--out", str(tmp_path / "out")]) == 0
    assert len(pd.read_csv(tmp_path / "out/results.csv")) == 3
    assert study.main(["publish", "--run", str(folders[0]), "--name", "vae", "--out", away[1]]) == 0
    endings = [*study.RECORDS.values(), *study.PICTURES.values(), ".pt"]
    assert {file.name for file in Path(away[1]).iterdir()} == {f"vae{end}" for end in endings}
