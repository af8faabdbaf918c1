"""Train many runs: python sweep.py --config config/twoD.yaml objective.beta=1,4,8 seed=0-4

A study of several configurations: python sweep.py --study config/studies/twoD.yaml
A part of it: python sweep.py --study config/studies/twoD.yaml name=twoD_vae,twoD_factor seed=0-2
Every run is one train.py, on this machine or on SLURM (--cluster slurm). The same command again
skips the runs that are complete and goes on with the others.
"""

import _thread
import argparse
import contextlib
import heapq
import json
import logging
import os
import re
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import submitit
import torch
import yaml
from filelock import FileLock
from submitit.core.utils import FailedJobError
from tqdm import tqdm

import config
import train
from config.study import Member, Study, choose, load_study, member_folder, members, study_of
from data import load_dataset
from metrics import select
from models.fast import keep_freed_memory
from training import (
    Batches,
    Interrupt,
    choose_device,
    hardware,
    need_compiler,
    read_record,
    redraw_s,
    refuse_another,
    speeds,
)

ROOT = Path(__file__).resolve().parent
POLL_S = 0.5  # between two looks at the runs
RUNS_A_GPU = 4  # at a time
NEVER_MIN = 365 * 24 * 60  # submitit ends a local job after 2 minutes if nothing is said
WARM_STEPS, TIMED_STEPS = 3, 10  # of --dry-run


class Run(NamedTuple):
    """A member of the study, its resolved configuration and how far it is."""

    member: Member
    values: dict[str, Any]
    path: Path
    step: int  # of the checkpoint
    complete: bool

    @property
    def label(self) -> str:
        return f"{self.member.name}/seed{self.member.seed}"

    def images(self, step: int | None = None) -> int:
        """Images seen after `step` steps; without it, those of the whole run."""
        steps, batch_size = (self.values["train"][key] for key in ("steps", "batch_size"))
        return (steps if step is None else min(step, steps)) * batch_size


class Workers(NamedTuple):
    """How many runs at a time, with how many threads each; the GPUs that they share, if any."""

    jobs: int
    threads: int
    gpus: list[str]


@dataclass(frozen=True)
class Task:
    """What submitit calls in a process of its own: train.py's main.

    Not a process of a process: there is nothing between a signal and the run. `alive` is locked as
    long as the sweep lives and wants its local runs; the operating system lets go of it however the
    sweep ends.
    """

    arguments: list[str]
    alive: Path | None = None
    gpu: str | None = None

    def __call__(self) -> int:
        """Train until the run is complete or told to stop; the exit code of train.py."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after the loop
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        if self.alive is not None:
            threading.Thread(target=self._stop_with_sweep, daemon=True).start()
        warnings: list[int] = []

        def save_first(number: int, frame: Any) -> None:  # SLURM's warning before it kills
            warnings.append(number)
            _thread.interrupt_main(signal.SIGTERM)

        requeue = signal.signal(signal.SIGUSR2, save_first)  # submitit's handler
        sys.argv = ["train.py", *self.arguments]  # the command that run.json names
        code = train.main(self.arguments)
        if warnings and code:
            requeue(warnings[0], None)  # leaves by SystemExit
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What is requeued: the same command, which goes on from the run's own checkpoint."""
        return submitit.helpers.DelayedSubmission(self)

    def _stop_with_sweep(self) -> None:
        with FileLock(self.alive).acquire(poll_interval=POLL_S):
            _thread.interrupt_main(signal.SIGTERM)  # reaches it though the signal is blocked


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a YAML file, such as config/twoD.yaml")
    what.add_argument("--study", help="a YAML file, such as config/studies/twoD.yaml")
    parser.add_argument("--cluster", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--jobs", type=int, help="runs at a time; local default: a core each, four a GPU"
    )
    parser.add_argument("--threads", type=int, help="threads a run; local default: cores / jobs")
    parser.add_argument(
        "--runs", type=Path, help="folder of all runs; default: runs, a study's runs/studies/<name>"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, for how long")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=a,b",
        help="every combination runs; with --study, name=a,b and seed=0-2 choose among its runs",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        for name in ("jobs", "threads"):
            given = getattr(options, name)
            if given is not None and given < 1:
                raise ValueError(f"--{name}: {given} is not allowed; allowed: 1 or more")
        if options.cluster == "slurm" and not shutil.which("sbatch"):
            raise ValueError("--cluster: 'slurm' is not available here (no sbatch); allowed: local")
        if options.study:
            study = load_study(options.study)
            refuse_metrics(study)
            chosen = choose(study, options.overrides)
        else:
            study = study_of(options.config, options.overrides)
            chosen = members(study)
        options.runs = options.runs or (study.home if options.study else Path("runs"))
        return sweep(study, chosen, options)
    except (ValueError, OSError, FailedJobError) as error:  # the last: what sbatch answered
        print(f"sweep.py: {error}", file=sys.stderr)
        return train.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("sweep.py: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def sweep(study: Study, chosen: list[Member], options: argparse.Namespace) -> int:
    """Train what is not complete of the chosen members of a study; the exit code.

    Raises ValueError before anything has started.
    """
    published = study.published if options.study else None
    runs = [find(member, options.runs, published) for member in chosen]
    todo = [run for run in runs if not run.complete]
    if options.cluster == "local":
        settings = [run.values["train"] for run in todo]
        for device in {one["device"] for one in settings if one["compile"]}:
            need_compiler(choose_device(device))
    workers = share(study, todo, options)
    if options.dry_run:
        forecast(runs, todo, workers)
        return 0
    for dataset in {
        json.dumps(run.values["dataset"]): run.values["dataset"] for run in todo
    }.values():
        load_dataset(**dataset)  # rendered once, here; the runs map its cache
    folder = options.runs / ".submitit" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    folder.mkdir(parents=True)
    logging.getLogger("submitit").setLevel(logging.ERROR)  # its notes would tear the progress bar
    executor = submitit.AutoExecutor(folder, cluster=options.cluster)
    executor.update_parameters(**parameters(study, options.cluster, workers))
    alive = folder / "alive" if options.cluster == "local" else None
    with FileLock(alive) if alive else contextlib.nullcontext():
        failed, running, stopped_by = watch(runs, executor, workers, alive)
    # the lock is free: local runs save and stop
    if stopped_by and alive:
        print(f"sweep.py: {len(running)} runs save and stop", file=sys.stderr, flush=True)
        for job in running:
            job.wait()
    for run, job in failed:
        print(f"sweep.py: {run.label} failed: {last_words(job)}", file=sys.stderr)
    if stopped_by:
        ids = " ".join(sorted({job.job_id.split("_")[0] for job in running}))
        go_on = (
            "The same command goes on." if alive else f"The jobs go on; scancel {ids} ends them."
        )
        print(f"Stopped by {signal.Signals(stopped_by).name}. {go_on}")
        return 128 + stopped_by
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are complete ({options.runs}).")
    return 1 if failed else 0


def find(member: Member, runs: Path, published: Path | None = None) -> Run:
    """The run of a member and its state; published: as for locate.

    Raises ValueError where train.py would refuse it.
    """
    with config.named(member.name):
        values = train.resolve(member.config, list(member.overrides))
    path = locate(member, values, runs, published)
    refuse_another(path, config.to_yaml(values), train.as_resolved)
    state = train.saved_state(path)
    complete = train.is_complete(state, path, values["train"]["steps"])
    return Run(member, values, path, state["step"] if state else 0, complete)


def locate(
    member: Member, values: dict[str, Any], runs: Path, published: Path | None = None
) -> Path:
    """Where a member is: where the very same is published, whose scores can be kept, or in runs.

    values: its resolved configuration; published: such as Study.published; None: runs count only.
    """
    if published is not None and train.holds(member_folder(member, published), values):
        return member_folder(member, published)
    return member_folder(member, runs)


def refuse_metrics(study: Study) -> None:
    """Raise ConfigError for a metric that report.py would refuse after all runs."""
    try:
        select(study.metrics.split(","))
    except ValueError as error:
        raise config.ConfigError(f"key 'metrics': {error}") from error


def share(study: Study, todo: list[Run], options: argparse.Namespace) -> Workers:
    """Jobs and threads: what was asked for, else all cores. Raises ValueError without the device.

    Two runs of one thread see 1.25 to 1.3 times the images/s of one run of two threads, so locally
    as many runs as cores go at a time, and a single run gets all cores. On a GPU a run waits for
    what one core launches: four on an H200, a core each, see 3.9 times the images/s of one.
    """
    jobs, threads = options.jobs or study.jobs, options.threads or study.threads
    if options.cluster == "slurm":
        return Workers(jobs or max(1, len(todo)), threads or study.slurm.cpus_per_task, [])
    devices = {choose_device(run.values["train"]["device"]).type for run in todo}
    gpus = [str(index) for index in range(torch.cuda.device_count())] if "cuda" in devices else []
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES"):
        gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    most = min(RUNS_A_GPU * len(gpus), cores) if gpus else cores
    jobs = max(1, min(jobs or most, len(todo)))
    return Workers(jobs, threads or max(1, cores // jobs), gpus)


def parameters(study: Study, cluster: str, workers: Workers) -> dict[str, Any]:
    """What submitit.AutoExecutor is told; None means not set."""
    if cluster == "local":
        return {"timeout_min": NEVER_MIN}
    ask = study.slurm
    own = {key: getattr(ask, key) for key in ("partition", "account", "qos", "constraint")}
    own["array_parallelism"] = workers.jobs
    own["srun_args"] = [f"--cpus-per-task={ask.cpus_per_task}"]  # srun ignores sbatch's since 22.05
    shared = {"name": study.name, "gpus_per_node": ask.gpus_per_node or None}
    shared |= {key: getattr(ask, key) for key in ("timeout_min", "mem_gb", "cpus_per_task")}
    return shared | {f"slurm_{key}": value for key, value in own.items()}


def watch(
    runs: list[Run], executor: submitit.AutoExecutor, workers: Workers, alive: Path | None
) -> tuple[list[tuple[Run, submitit.Job]], list[submitit.Job], int | None]:
    """Start the runs and wait for them; what failed, what still runs, and the signal that came.

    Locally at most workers.jobs run at a time (submitit would start all of them); SLURM gets all
    at once as one array.
    """
    waiting = [run for run in runs if not run.complete]
    slots = range(workers.jobs if alive else len(waiting))
    running: dict[int, tuple[Run, submitit.Job]] = {}
    failed: list[tuple[Run, submitit.Job]] = []
    seen = {run.path: run.images(None if run.complete else run.step) for run in runs}
    began = time.time()
    with Interrupt() as interrupt, bar_of(sum(run.images() for run in runs), seen) as bar:
        while (waiting or running) and not interrupt.signal:
            free = [slot for slot in slots if slot not in running][: len(waiting)]
            if free:
                now, waiting = waiting[: len(free)], waiting[len(free) :]
                jobs = start(now, free, executor, workers, alive)
                running |= dict(zip(free, zip(now, jobs, strict=True), strict=True))
            done = len(runs) - len(waiting) - len(running) - len(failed)
            bar.total = sum(run.images() for run in runs)
            bar.total -= sum(run.images() - seen[run.path] for run, _ in failed)
            bar.set_postfix_str(f"{done} done, {len(running)} running, {len(failed)} failed", False)
            bar.update(sum(seen.values()) - bar.n)
            time.sleep(POLL_S)
            ended = [slot for slot, (_, job) in running.items() if job.done()]
            seen |= {run.path: run.images(last_step(run, began)) for run, _ in running.values()}
            for run, job in [running.pop(slot) for slot in ended]:
                state = train.saved_state(run.path)
                if not train.is_complete(state, run.path, run.values["train"]["steps"]):
                    failed.append((run, job))
    return failed, [job for _, job in running.values()], interrupt.signal


def bar_of(images: int, seen: dict[Path, int]) -> tqdm:
    """The progress bar of all runs; its rate is the mean since the start."""
    return tqdm(
        total=images,
        initial=sum(seen.values()),
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0,
        miniters=0,
        mininterval=redraw_s(),
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"
        "{postfix}",
    )


def start(
    runs: list[Run],
    slots: list[int],
    executor: submitit.AutoExecutor,
    workers: Workers,
    alive: Path | None,
) -> list[submitit.Job]:
    """Submit runs, each to its slot."""
    gpus = workers.gpus
    tasks = [
        Task(train_arguments(run), alive, gpus[slot % len(gpus)] if gpus else None)
        for run, slot in zip(runs, slots, strict=True)
    ]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Local jobs hear from the sweep alone (see Task): a Ctrl-C or a kill of the whole process group
    # reaches all at once, and submitit kills a run before it has saved. Children inherit the block.
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} if alive else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        threads = {"OMP_NUM_THREADS": workers.threads, "PYTHONPATH": paths}
        with submitit.helpers.environment_variables(**threads):
            return executor.submit_array(tasks)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def train_arguments(run: Run) -> list[str]:
    """Arguments of train.py for a run."""
    runs = str(run.path.parents[1])
    return ["--config", run.member.config, "--runs", runs, *run.member.overrides]


def last_step(run: Run, since: float) -> int:
    """The last step that the run has logged since then (in s, as time.time() has it).

    Until it has, that of its checkpoint: rows after that one, of a run that was killed, are to be
    made again.
    """
    log = run.path / "speed.csv"
    if not log.exists() or log.stat().st_mtime < since:
        return run.step
    return max([run.step, *(step for step, _ in speeds(run.path))])


def last_words(job: submitit.Job) -> str:
    """What ended a job: the last line on its stderr but for the progress bar, and where that is.

    A job that was killed has left no result, and its last line may have nothing to do with its end.
    """
    path = job.paths.stderr
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip() and "%|" not in line]
    words = lines[-1] if lines else "it ended without a word"
    if not job.paths.result_pickle.exists():
        words = f"it was killed (for want of memory?); its last line: {words}"
    return f"{words} (log: {path})"


def forecast(runs: list[Run], todo: list[Run], workers: Workers) -> None:
    """Print what would run and how long it takes (training only, not the pictures)."""
    for run in runs:
        state = f"step {run.step:,} of {run.values['train']['steps']:,}" if run.step else "new"
        command = shlex.join(["python", "train.py", *train_arguments(run)])
        print(f"{run.label}: {'complete' if run.complete else state}: {command}", flush=True)
    measured, slots = {}, [0.0] * workers.jobs
    for run in todo:
        if run.member.name not in measured:
            speed, source = earlier_speed(run, workers.threads) or measure(run, workers.threads)
            measured[run.member.name] = speed
            print(f"{run.member.name}: {speed:,.0f} images/s ({source})", flush=True)
        seconds = (run.images() - run.images(run.step)) / measured[run.member.name]
        heapq.heapreplace(slots, slots[0] + seconds)  # the first that is free takes the next run
    lasts = timedelta(seconds=round(max(slots)))
    many = f"{len(todo)} of {len(runs)} runs to train, {workers.jobs} at a time"
    print(f"{many}, OMP_NUM_THREADS={workers.threads}: about {lasts}")


def earlier_speed(run: Run, threads: int) -> tuple[float, str] | None:
    """Median images/s of a run that differs in seed and steps only, made on such a machine."""
    machine = hardware(choose_device(run.values["train"]["device"])) | {"threads": threads}

    def comparable(values: dict[str, Any]) -> dict[str, Any]:
        return values | {"seed": 0, "train": values["train"] | {"steps": 0}}

    for path in sorted(run.path.parent.glob("seed*/run.json")):
        try:
            starts, rows = read_record(path)["starts"], speeds(path.parent)
            values = yaml.safe_load(train.as_resolved(path.with_name("config.yaml")))
            here = all(start["hardware"] == machine for start in starts)
            alone = all(start.get("processes", 1) == 1 for start in starts)
        except (ValueError, LookupError, OSError):  # lost or damaged: other steps will do
            continue
        if rows and here and alone and comparable(values) == comparable(run.values):
            return statistics.median(speed for _, speed in rows), f"{path.parent}"
    return None


def measure(run: Run, threads: int) -> tuple[float, str]:
    """Images/s of a few training steps of a run, alone on this machine.

    Its last steps: what a schedule brings in later, such as a contrastive loss, is in them.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = choose_device(run.values["train"]["device"])
    data = load_dataset(**run.values["dataset"]).to(device)
    model = train.make_model(run.values, data, device)
    batch_size = run.values["train"]["batch_size"]
    batches, begin = Batches(len(data), batch_size, run.member.seed), 0.0
    last = run.values["train"]["steps"]
    first = max(0, last - WARM_STEPS - TIMED_STEPS)
    for step in range(first, first + WARM_STEPS + TIMED_STEPS):
        if step == first + WARM_STEPS:
            begin = time.perf_counter()
        terms = model.train_step(data.batch(batches[step], dtype=model.dtype), step)
        float(next(iter(terms.values())))  # device sync: the step has ended
    torch.set_num_threads(before)
    speed = TIMED_STEPS * batch_size / (time.perf_counter() - begin)
    return speed, f"{TIMED_STEPS} steps timed now, alone on this machine"


if __name__ == "__main__":
    sys.exit(main())
