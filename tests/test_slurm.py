"""Studies on a real SLURM, where there is one (tests/slurm_one_node.sh makes one)."""

import json
import os
import re
import shutil
import subprocess

import pytest

import study
from training import jobs
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def slurm():
    if shutil.which("sinfo") is None:
        pytest.skip("there is no SLURM here (no sinfo)")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("SLURM is installed but does not answer (tests/slurm_one_node.sh start)")


def arguments_of(write, steps):
    """Write a study of two seeds; the arguments that run it on SLURM."""
    entry = {"config": os.path.abspath("config/twoD.yaml"), "name": "small"}
    entry["overrides"] = {f"train.{key}": steps for key in ("steps", "draw_every", "save_every")}
    return [*write(entry, seeds="0-1", slurm={"mem_gb": 1}), "--cluster", "slurm"]


def test_two_runs_on_slurm_as_one_array(write, tmp_path, capfd, monkeypatch):
    """Typed in a folder with other modules of the same names, which nothing imports."""
    arguments = arguments_of(write, steps=4)
    away = tmp_path / "away"
    (away / "training").mkdir(parents=True)
    for name in ("train.py", "study.py", "config.py", "training/__init__.py"):
        (away / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(away)
    assert study.main(["run", *arguments]) == 0
    printed = capfd.readouterr().out
    assert re.match(r"submitted; scancel \d+ ends all jobs\n2 of 2 runs are complete", printed)
    for seed in (0, 1):
        folder = tmp_path / f"runs/small/seed{seed}"
        assert load_checkpoint(folder)[0]["step"] == 4
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert starts[0]["hardware"]["threads"] == 1
    assert not (tmp_path / "runs/.submitit").exists()


def test_a_run_that_slurm_warns_saves_and_is_requeued(write, tmp_path, monkeypatch):
    log, warned = tmp_path / "runs/small/seed0/log.csv", []
    last_step = jobs.last_step

    def warn_once(folder):
        """As SLURM does before the time limit or a preemption."""
        if not warned and last_step(log.parent) > 5:
            names = [path.name for path in (tmp_path / "runs/.submitit").glob("*/*_log.out")]
            warned.append(min(names).split("_")[0])
            subprocess.run(["scancel", "--signal=USR2", f"{warned[0]}_0"], check=True)
        return last_step(folder)

    monkeypatch.setattr(jobs, "last_step", warn_once)
    assert study.main(["run", *arguments_of(write, steps=150)]) == 0
    starts = json.loads(log.with_name("run.json").read_text())["starts"]
    assert len(starts) == 2
    assert 5 <= starts[1]["from_step"] < 150
    assert load_checkpoint(log.parent)[0]["step"] == 150
