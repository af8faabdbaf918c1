"""Processes and SLURM jobs that each train one run."""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
import torch

RUNS_A_GPU = 4  # at a time: on an H200 four runs see 3.9 times the images/s of one
POLL_S = 0.5
SLURM = {"timeout_min": 24 * 60, "mem_gb": 4, "cpus_per_task": 1}  # of a job, by default
Task = tuple[list[str], Path]  # the command of a run and its log


def share(runs: int, jobs: int | None, threads: int | None, on_gpus: bool) -> list[dict[str, str]]:
    """Environments of the runs that train at a time, by default one a core or four a GPU.

    Two runs of one thread see 1.25 to 1.3 times the images/s of one run of two threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    most = min(RUNS_A_GPU * len(gpus), cores) if on_gpus else cores
    jobs = max(1, min(jobs or most, runs))
    slots = [{"OMP_NUM_THREADS": str(threads or max(1, cores // jobs))} for _ in range(jobs)]
    for number, slot in enumerate(slots if on_gpus else []):
        slot["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return slots


def launch(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a process that appends its output to a file and ends with this process.

    It has a session of its own: a Ctrl-C in the terminal reaches it once, through this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent of this process ends, however it ends.

    Elsewhere a run continues if its parent is killed; the lock of its folder keeps others out.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning is for the parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def stop(processes: list[subprocess.Popen]) -> None:
    """Send SIGTERM, on which train.py saves, and wait until all have ended."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def last_step(folder: Path) -> int:
    """The last step in the log of a run, 0 if there is none."""
    try:
        last = (folder / "log.csv").read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return int(last.partition(b",")[0])
    except (OSError, ValueError):
        return 0


def last_words(code: int, log: Path) -> str:
    """Why a process failed: the signal that killed it, or the last line of its output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}, out of memory? (log: {log})"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    lines = [line for line in lines if line.strip() and "%|" not in line]  # no progress bars
    return f"{lines[-1] if lines else 'no message'} (log: {log})"


@dataclass
class SlurmTask:
    """What a SLURM job calls: the command of a run, in a process of its own."""

    command: list[str]
    log: Path
    threads: int

    def __call__(self) -> int:
        """Train until the run is complete, or until SLURM warns that the job ends soon."""
        warnings = []
        requeue = signal.signal(signal.SIGUSR2, lambda number, _: warnings.append(number))
        process = launch(self.command, self.log, {"OMP_NUM_THREADS": str(self.threads)})
        while process.poll() is None and not warnings:
            time.sleep(POLL_S)
        if warnings:
            stop([process])
            if process.returncode:
                requeue(signal.SIGUSR2, None)  # submitit submits what `checkpoint` returns
        return process.returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same command, which resumes the run."""
        return submitit.helpers.DelayedSubmission(self)


def submit(
    tasks: list[Task], settings: dict[str, Any], jobs: int | None, threads: int | None
) -> list[submitit.Job]:
    """Submit commands as one array of SLURM. ValueError if there is none or a setting is wrong.

    Args:
        tasks: of each run; `.submitit` is made beside their folders.
        settings: parameters of submitit.AutoExecutor; those of SLURM are the default.
        jobs, threads: runs at a time, and threads of each; by default all, and one for each CPU.
    """
    if not shutil.which("sbatch"):
        raise ValueError("--cluster: slurm is not available here (no sbatch); allowed: local")
    settings = SLURM | {"slurm_array_parallelism": jobs or len(tasks)} | settings
    cpus = settings["cpus_per_task"]
    settings["slurm_srun_args"] = [f"--cpus-per-task={cpus}"]  # srun ignores sbatch's since 22.05
    logging.getLogger("submitit").setLevel(logging.ERROR)  # warnings would tear the progress bar
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job imports from its folder
    folder = tasks[0][1].parents[1] / ".submitit" / str(time.time_ns())
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
    try:
        executor.update_parameters(**settings)
    except (NameError, AssertionError) as error:
        raise ValueError(f"slurm: {str(error).splitlines()[0]}") from error
    return executor.submit_array([SlurmTask(*task, threads or cpus) for task in tasks])


def clean(jobs: list[submitit.Job]) -> None:
    """Remove the files of submitit of jobs that have ended."""
    folder = jobs[0].paths.folder
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def exit_code(job: subprocess.Popen | submitit.Job) -> int | None:
    """The exit code of a run; None if it has not ended, negative if a signal killed it."""
    if isinstance(job, subprocess.Popen):
        return job.poll()
    if not job.done():
        return None
    if not job.paths.result_pickle.exists():
        return -signal.SIGKILL
    return 1 if job.exception() else job.result()
