"""Train, report and publish many runs: python study.py run config/studies/twoD.yaml

Every combination of values: python study.py run --config config/twoD.yaml objective.beta=1,4,8
Tables, charts and pages: python study.py report config/studies/twoD.yaml
Complete runs to res/: python study.py publish config/studies/twoD.yaml

Every run is a separate train.py process. The same command again resumes and skips complete runs.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparison
import files
import reports
import results
import runs
from config.study import members, read_study, study_of
from data import load_dataset
from training import jobs
from training.checkpoint import OBJECTIVE, load_checkpoint, save_checkpoint
from training.device import choose_device
from training.interrupt import Interrupt
from training.log import read_log

RECORDS = {"config.yaml": ".yaml", "run.json": "_run.json", "log.csv": "_log.csv"}
PICTURES = {  # picture of a run -> ending of its published name
    "curves.png": "_loss.png",
    "fixed.png": "_fix.png",
    "random.png": "_random.png",
    "recon.png": "_recon.png",
    "traversal.gif": ".gif",
    "training.gif": "_training.gif",
}
PUBLISHED = ("config", "image_shape", "images", "data", "step", "seconds")  # of a checkpoint


@dataclass
class Member:
    """One run of a study."""

    folder: Path
    values: dict[str, Any] | None = None  # the resolved configuration
    command: Sequence[str] = ()  # that trains it
    step: int = 0  # of its checkpoint, later of its log
    problem: str = ""  # why its folder cannot be used

    @property
    def label(self) -> str:
        return f"{self.values['name']}/seed{self.values['seed']}"

    @property
    def steps(self) -> int:
        return self.values["train"]["steps"]

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")  # what its process prints

    def look(self) -> "Member":
        """Itself, after reading its step, or why its folder cannot be used."""
        try:
            state = runs.saved_state(self.folder, self.values)
            if state is None and self.values is None:
                raise ValueError(f"there is no checkpoint in {self.folder}")
            self.values = self.values or state["config"]
            self.step = state["step"] if state else 0
        except (ValueError, OSError) as error:
            self.problem = str(error)
        return self

    def complete(self) -> "Member":
        """Itself. Raises ValueError if its folder does not hold it, trained to the last step."""
        if self.problem:
            raise ValueError(self.problem)
        if self.step != self.steps:
            raise ValueError(f"{self.folder} is at step {self.step:,} of {self.steps:,}")
        return self


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("run", help="train all unfinished runs").add_argument
    add("words", nargs="*", metavar="STUDY.yaml [name=a,b seed=0-2] | key=a,b", help="what to run")
    add("--config", help="a configuration; key=a,b runs every combination of the values")
    add("--runs", type=Path, help="folder of all runs; default: runs/studies/<study>, or runs")
    add("--jobs", type=int, help="runs at a time; default: one per core, four per GPU")
    add("--threads", type=int, help="threads of a run; default: cores / jobs")
    add("--cluster", choices=("local", "slurm"), default="local")
    add("--dry-run", action="store_true", help="print what would run")
    add = commands.add_parser("report", help="write tables, charts and pages").add_argument
    add("study", nargs="?", metavar="STUDY.yaml")
    add("--runs", nargs="+", type=Path, help="run folders; of a study: the folder of its runs")
    add("--out", type=Path, help="default: res/<study>")
    add = commands.add_parser("publish", help="copy complete runs to res/").add_argument
    add("study", nargs="?", metavar="STUDY.yaml")
    add("--runs", type=Path, help="the folder of the study's runs")
    add("--run", type=Path, metavar="FOLDER", help="one run, with its pictures")
    add("--name", help="name of its published files")
    add("--out", type=Path, default=Path("res/2dshapes"), help="of --run; default: res/2dshapes")
    options, words = parser.parse_known_args(arguments)
    if options.command == "run" and not any(word.startswith("-") for word in words):
        options.words += words  # those that follow an option
    elif words:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    work = {"run": run, "report": report, "publish": publish}[options.command]
    return runs.exit_code("study.py", lambda: work(options))


def published_runs(study: dict[str, Any]) -> Path:
    """The folder of the published runs of a study."""
    return Path("res") / study["name"] / "runs"


def plan(study: dict[str, Any], root: Path | None, choices: Sequence[str] = ()) -> list[Member]:
    """The runs of a study with their state; those that are published count as complete."""
    root = root or Path("runs/studies") / study["name"]
    script = os.path.relpath(Path(__file__).resolve().with_name("train.py"))  # wherever this runs
    plans = []
    for path, overrides in members(study, choices):
        values = runs.resolve(path, overrides)
        command = [sys.executable, script, "--config", path, "--runs", str(root), *overrides]
        member = Member(runs.folder_of(values, published_runs(study)), values, command).look()
        if member.problem or member.step < member.steps:
            if member.problem:
                print(f"study.py: {member.problem}", file=sys.stderr)
            member = Member(runs.folder_of(values, root), values, command).look()
        plans.append(member)
    return plans


def run(options: argparse.Namespace) -> int:
    """Train the runs that are not complete."""
    for key in ("jobs", "threads"):
        if (number := getattr(options, key)) is not None and number < 1:
            raise ValueError(f"--{key}: {number} is not allowed; allowed: 1 or more")
    if options.config:
        study = study_of(options.config, options.words)
        plans = plan(study, options.runs or Path("runs"))
    elif options.words:
        study = read_study(options.words[0])
        plans = plan(study, options.runs, options.words[1:])
    else:
        raise ValueError("run needs STUDY.yaml or --config FILE")
    todo = [member for member in plans if member.step < member.steps and not member.problem]
    if options.dry_run:
        for member in plans:
            state = f"step {member.step:,} of {member.steps:,}" if member in todo else "complete"
            print(f"{member.label}: {member.problem or state}: {shlex.join(member.command)}")
        print(f"{len(todo)} of {len(plans)} runs to train")
        return 0

    # Data sets are prepared once, here; the runs read the cache.
    for section in {json.dumps(member.values["dataset"]) for member in todo}:
        load_dataset(**json.loads(section))

    # SLURM gets all runs at once, this machine one for each core or a few for each GPU.
    if options.cluster == "slurm" and todo:
        tasks = [(member.command, member.log) for member in todo]
        settings = {"name": study["name"]} | study["slurm"]
        array = jobs.submit(tasks, settings, options.jobs, options.threads)
        print(f"submitted; scancel {array[0].job_id.split('_')[0]} ends all jobs")
        failed, stopped = watch(todo, array, lambda _, job: job)
        if not stopped:
            jobs.clean(array)
    else:
        on_gpus = any(choose_device(m.values["train"]["device"]).type == "cuda" for m in todo)
        slots = jobs.share(len(todo), options.jobs, options.threads, on_gpus)
        failed, stopped = watch(todo, slots, lambda m, slot: jobs.launch(m.command, m.log, slot))
    failed |= {member.label: member.problem for member in plans if member.problem}
    for label, reason in failed.items():
        print(f"study.py: {label} failed: {reason}", file=sys.stderr)
    if stopped:
        print(f"Stopped by {signal.Signals(stopped).name}. The same command resumes.")
        return 128 + stopped
    print(f"{len(plans) - len(failed)} of {len(plans)} runs are complete.")
    return 1 if failed else 0


def watch(
    todo: list[Member], slots: list[Any], start: Callable[[Member, Any], Any]
) -> tuple[dict[str, str], int | None]:
    """Start runs, one a slot at a time, and wait until all have ended.

    `start` returns the process or job of a run in a slot. Returned are label -> reason for the runs
    that failed, and the signal that stopped the study.
    """
    waiting, free, running, failed = list(todo), list(slots), [], {}
    total, initial = sum(m.steps for m in todo), sum(m.step for m in todo)
    options = {"unit": " steps", "initial": initial, "smoothing": 0, "miniters": 0}
    with Interrupt() as interrupt, runs.progress_bar(total, "runs", **options) as bar:
        try:
            while (waiting or running) and not interrupt.signal:
                while waiting and free:
                    member, slot = waiting.pop(0), free.pop(0)
                    running.append((member, slot, start(member, slot)))
                time.sleep(jobs.POLL_S)
                for entry in list(running):
                    member, slot, job = entry
                    member.step, code = jobs.last_step(member.folder), jobs.exit_code(job)
                    if code is not None:
                        running.remove(entry)
                        free.append(slot)
                        if member.look().step < member.steps:
                            failed[member.label] = jobs.last_words(code, member.log)
                bar.set_postfix_str(f"{len(running)} running, {len(failed)} failed", refresh=False)
                bar.update(sum(member.step for member in todo) - bar.n)
        finally:
            jobs.stop([job for *_, job in running if isinstance(job, subprocess.Popen)])
    return failed, interrupt.signal


def report(options: argparse.Namespace) -> int:
    """Write results.csv, tables, charts and pages of all complete runs with scores."""
    study = {"name": "", "baseline": None, "documents": [], "shown": {}, "papers": {}}
    if options.study:
        study = read_study(options.study)
        plans = plan(study, options.runs and options.runs[0])
        out = options.out or published_runs(study).parent
        study["documents"] = [] if options.out else study["documents"]
    elif options.runs and options.out:
        plans, out = [Member(folder).look() for folder in options.runs], options.out
    else:
        raise ValueError("report needs STUDY.yaml, or --runs FOLDER... --out FOLDER")

    # One row a run, in results.csv; what cannot be reported is named and left out.
    rows, folders, logs = [], [], defaultdict(list)
    for member in plans:
        try:
            row = results.read_run(member.folder, member.values, member.complete().step)
            logs[row["config"]].append(read_log(member.folder / "log.csv"))
            rows.append(row)
            folders.append(member.folder)
        except (ValueError, OSError) as error:
            print(f"left out: {error}")
    if not rows:
        raise ValueError("there is no complete run with scores")
    frame = results.as_frame(rows)
    frame = frame.assign(**comparison.compare(folders, out, study["shown"]))
    reports.write(out, frame, logs, folders, study | {"name": study["name"] or out.name})
    print(f"{len(frame)} runs: results.csv, results.md, report.html and charts are in {out}")
    return 0


def publish(options: argparse.Namespace) -> int:
    """Copy complete runs of a study to res/, or one run under a name with its pictures."""
    if options.run and re.fullmatch(r"\w[\w.-]*", options.name or ""):
        start = str(options.out / options.name)
        copies = {file: Path(start + ending) for file, ending in (RECORDS | PICTURES).items()}
        copy(Member(options.run).look().complete().folder, copies, Path(start + ".pt"))
        print(f"published as {start}")
        return 0
    if options.run or not options.study:
        raise ValueError("publish needs STUDY.yaml, or --run FOLDER --name letters, digits, _ . -")

    study, count = read_study(options.study), 0
    plans, published = plan(study, options.runs), published_runs(study)
    for member in plans:
        target = runs.folder_of(member.values, published)
        try:
            if member.folder != target:
                results.read_run(member.folder, member.values, member.complete().step)
                copies = {file: target / file for file in RECORDS}
                copy(member.folder, copies, target / "checkpoint.pt")
                for path in member.folder.glob("metrics*.json"):
                    scores = results.read_scores(member.folder, path.name)  # of unrounded weights
                    scores["checkpoint_sha256"] = load_checkpoint(target)[1]
                    files.write(target / path.name, json.dumps(scores, indent=1) + "\n")
            count += 1
        except (ValueError, OSError) as error:
            print(f"left out: {error}")
    print(f"{count} of {len(plans)} runs are in {published}")
    return 0 if count else 1


def copy(folder: Path, copies: dict[str, Path], weights: Path) -> None:
    """Copy files of a run (file in its folder -> target), and its weights in half precision."""
    if missing := [file for file in copies if not (folder / file).exists()]:
        raise ValueError(f"{folder} has no {', '.join(missing)}")
    state, _ = load_checkpoint(folder)
    model = {k: w for k, w in state["model"].items() if not k.startswith(OBJECTIVE)}
    for key, weight in model.items():
        if weight.is_floating_point() and weight.ndim > 1:
            model[key] = weight.half()
    for file, target in copies.items():
        files.write(target, (folder / file).read_bytes())
    facts = {key: state[key] for key in PUBLISHED if key in state}
    save_checkpoint(weights, facts | {"model": model})  # it makes the folder a run


if __name__ == "__main__":
    sys.exit(main())
