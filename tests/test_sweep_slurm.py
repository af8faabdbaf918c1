"""A sweep on a real SLURM: here where there is one (tests/slurm_one_node.sh makes one)."""

import json
import shutil
import subprocess
import time

import pytest
import yaml

import sweep
from training import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def slurm():
    if shutil.which("sinfo") is None:
        pytest.skip("there is no SLURM here (no sinfo)")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("SLURM is installed but does not answer (tests/slurm_one_node.sh start)")


def write_study(path, squares, steps):
    small = {"dataset": {"name": "npz", "path": str(squares)}, "train.device": "cpu"}
    small |= {"train.batch_size": 8, "train.log_every": 1, "train.steps": steps}
    small |= {"train.draw_every": steps, "train.save_every": steps}
    run = {"config": "config/twoD.yaml", "name": "slurm", "overrides": small}
    slurm = {"timeout_min": 30, "mem_gb": 1}
    study = {"name": "slurm", "seeds": [0, 1], "runs": [run], "slurm": slurm}
    path.write_text(yaml.safe_dump(study))
    return ["--study", str(path), "--cluster", "slurm", "--runs", str(path.parent / "runs")]


def test_two_runs_on_slurm_as_one_array(squares, tmp_path, capfd):
    arguments = write_study(tmp_path / "study.yaml", squares, steps=4)
    assert sweep.main(arguments) == 0
    assert "2 of 2 runs are complete" in capfd.readouterr().out
    for seed in (0, 1):
        folder = tmp_path / f"runs/slurm/seed{seed}"
        assert load_checkpoint(folder)["step"] == 4
        starts = json.loads((folder / "run.json").read_text())["starts"]
        assert starts[0]["hardware"]["threads"] == 1
    logs = (tmp_path / "runs/.submitit").glob("*/*_log.out")
    jobs = {path.name.split("_")[0] for path in logs}
    assert len(jobs) == 1  # one array, two tasks


def test_a_run_that_slurm_warns_saves_and_is_requeued(squares, tmp_path, monkeypatch):
    arguments = write_study(tmp_path / "study.yaml", squares, steps=300)
    log = tmp_path / "runs/slurm/seed0/log.csv"
    warned = []
    look = sweep.last_step

    def warn_once(run, since):  # as SLURM does before the time limit or a preemption
        if not warned and log.exists() and log.read_text().count("\n") > 5:
            names = [path.name for path in (tmp_path / "runs/.submitit").glob("*/*_log.out")]
            array = min(names).split("_")[0]
            warned.append(array)
            subprocess.run(["scancel", "--signal=USR2", f"{array}_0"], check=True)
            time.sleep(1)
        return look(run, since)

    monkeypatch.setattr(sweep, "last_step", warn_once)
    assert sweep.main(arguments) == 0
    starts = json.loads(log.with_name("run.json").read_text())["starts"]
    assert len(starts) == 2
    assert 5 <= starts[1]["from_step"] < 300
    assert load_checkpoint(log.parent)["step"] == 300
