"""Studies on a real SLURM, where there is one (tests/slurm_one_node.sh makes one)."""

import json
import os
import re
import shutil
import subprocess

import pytest

import config
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


def arguments_of(folder, squares, steps):
    """Write a study of two seeds; the arguments that run it on SLURM."""
    small = {"dataset": {"name": "npz", "path": str(squares)}, "train.device": "cpu"}
    small |= {"train.batch_size": 8, "train.log_every": 1, "train.steps": steps}
    small |= {"train.draw_every": steps, "train.save_every": steps}
    entry = {"config": os.path.abspath("config/twoD.yaml"), "name": "small", "overrides": small}
    content = {"name": "small", "seeds": "0-1", "runs": [entry], "slurm": {"mem_gb": 1}}
    (folder / "study.yaml").write_text(config.to_yaml(content))
    return [str(folder / "study.yaml"), "--cluster", "slurm", "--runs", str(folder / "runs")]


def test_two_runs_on_slurm_as_one_array(squares, tmp_path, capfd, monkeypatch):
    """Typed in a folder with other modules of the same names, which nothing imports."""
    arguments = arguments_of(tmp_path, squares, steps=4)
    away = tmp_path / "away"
    (away / "training").mkdir(parents=True)
    for name in ("train.py", "study.py", "config.py", "training/__init__.py"):
        (away / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(away)
    clean, ids = jobs.clean, []
    monkeypatch.setattr(
        jobs, "clean", lambda array: ids.extend(job.job_id for job in array) or clean(array)
    )
    assert study.main(["run", *arguments]) == 0
    printed = capfd.readouterr().out
    array = re.match(r"submitted; scancel (\d+) ends all jobs\n2 of 2 runs are complete", printed)[
        1
    ]
    assert ids == [f"{array}_0", f"{array}_1"]
    for seed in (0, 1):
        folder = tmp_path / f"runs/small/seed{seed}"
        assert load_checkpoint(folder)[0]["step"] == 4
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert starts[0]["hardware"]["threads"] == 1
    assert not (tmp_path / "runs/.submitit").exists()


def test_a_run_that_slurm_warns_saves_and_is_requeued(squares, tmp_path, monkeypatch):
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
    assert study.main(["run", *arguments_of(tmp_path, squares, steps=150)]) == 0
    starts = json.loads(log.with_name("run.json").read_text())["starts"]
    assert len(starts) == 2
    assert 5 <= starts[1]["from_step"] < 150
    assert load_checkpoint(log.parent)[0]["step"] == 150
