"""Train one run: python train.py --config config/twoD.yaml [section.key=value ...]

The same command again resumes an interrupted run, or says that the run is complete.
Several processes: torchrun --nproc_per_node=2 train.py --config config/twoD.yaml
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import config
import files
import runs
from data import Batches, ImageData, mix
from figures.charts import log_curves
from figures.latents import fixed_noise
from figures.motion import frame, training_gif
from training.checkpoint import refuse_non_finite, restore, save_checkpoint
from training.device import choose_device
from training.folder import locked, record_start, write_record
from training.interrupt import Interrupt
from training.log import CsvSink, Window, new_warnings, open_sinks, read_log
from training.processes import all_reduce_max, average, process_group, synchronise

SHOWN = ("recon", "kl", "d_loss", "g_loss", "mi")  # terms beside the progress bar
FRAME_SPRITES = 48  # images of fixed noise in a frame of training.gif


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Keys of a configuration:\n" + config.describe(runs.schema()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, help="a YAML file, such as config/twoD.yaml")
    add("--runs", default="runs", type=Path, help="folder of all runs")
    add("--print-config", action="store_true", help="print the configuration and stop")
    add("overrides", nargs="*", metavar="key=value", help="objective.beta=8 seed=3")
    options = parser.parse_intermixed_args(arguments)
    return runs.exit_code("train.py", lambda: start(options))


def start(options: argparse.Namespace) -> int:
    """Resolve the configuration, take the run's folder, train."""
    values = runs.resolve(options.config, options.overrides)
    if options.print_config:
        print(config.to_yaml(values), end="")
        return 0
    folder, device = runs.folder_of(values, options.runs), choose_device(values["train"]["device"])
    state = runs.saved_state(folder)
    if state:
        runs.refuse_other_run(state, values, folder)
        is_published = "optimizers" not in state  # weights without pictures
        is_drawn = is_published or (folder / "training.gif").exists()
        if state["step"] >= values["train"]["steps"] and is_drawn:
            print(f"This run is complete at step {state['step']:,}. {next_command(folder)}")
            return 0
    with contextlib.ExitStack() as stack:
        rank, processes = stack.enter_context(process_group(device))
        if rank == 0:
            stack.enter_context(locked(folder))
        all_reduce_max(0)  # the others wait until rank 0 has the folder
        return train(values, folder, device, rank, processes)


def train(
    values: dict[str, Any], folder: Path, device: torch.device, rank: int, processes: int
) -> int:
    """Train the run of a configuration in its folder, until it is complete or interrupted.

    Only rank 0 logs, draws and saves. Everything random is a function of (seed, step, rank), so an
    interrupted run resumes and produces bit-identical results.
    """
    settings, seed, is_main = values["train"], values["seed"], rank == 0
    steps, size = settings["steps"], settings["batch_size"]

    # Initial state: the weights of the seed, or the checkpoint of this run.
    state = runs.saved_state(folder)
    if state:
        runs.refuse_other_run(state, values, folder)
    data, model = runs.build(values, device)
    batches = Batches(len(data), size, seed, rank, processes)
    if state:
        runs.refuse_other_data(state, data, folder)
        restore(model, state, folder, optimizers=True)
    synchronise(model)
    first, seconds = (state["step"], state.get("seconds") or 0.0) if state else (0, 0.0)
    window = Window(device, state and state["window"])

    # The files of the run: configuration, record of this start, log, scores, frames.
    sinks, scores = [], []  # at most one file of scores
    if is_main:
        files.write(folder / "config.yaml", config.to_yaml(values))
        record = record_start(folder, first, model.dtype, device, processes)
        (folder / "training.gif").unlink(missing_ok=True)  # of a shorter run
        last_row = first - window.count  # the last step that is in the log for good
        sinks = open_sinks(folder, last_row, values) if first < steps else []
        if settings["score_every"]:
            scores = [CsvSink(folder / "scores.csv", first, complete=False)]
        for step, path in frames_in(folder / "frames"):
            if step > first:
                path.unlink()  # drawn between the last checkpoint and a crash
    noise, began, warned = fixed_noise(model, FRAME_SPRITES), time.perf_counter() - seconds, set()
    bar = runs.progress_bar(steps * size, "start", initial=first * size, disable=not is_main)

    def save(name: str, step: int) -> None:
        refuse_non_finite(step, window.mean(), model)
        if not is_main:
            return
        for sink in [*sinks, *scores]:
            sink.sync()  # no checkpoint is ahead of the log
        optimizers = {key: optimizer.state_dict() for key, optimizer in model.optimizers.items()}
        checkpoint = {"config": values, "image_shape": list(data.image_shape), "images": len(data)}
        checkpoint |= {"data": data.fingerprint, "step": step, "window": window.state()}
        checkpoint |= {"seconds": time.perf_counter() - began, "model": model.state_dict()}
        save_checkpoint(folder / name, checkpoint | {"optimizers": optimizers})

    model.train()
    with Interrupt() as interrupt, bar, contextlib.ExitStack() as stack:
        for sink in [*sinks, *scores]:
            stack.callback(sink.close)
        for step in range(first, steps):
            # One step: its images and its noise depend on (seed, step, rank) only.
            torch.manual_seed(mix(seed, step, rank))
            terms = model.train_step(data.batch(batches[step], model.dtype), step)
            window.add(average(terms))  # stays on the device
            done = step + 1
            stop = all_reduce_max(interrupt.signal)  # all processes stop at the same step

            # Every log_every steps: one row with the mean of every term. The only device sync.
            if done % settings["log_every"] == 0 or done == steps:
                means = window.mean()
                refuse_non_finite(done, means)
                for sink in sinks:
                    sink.row(done, {"images": done * size} | means)
                if done % settings["log_every"] == 0:
                    window.reset()  # else a longer run replaces this last, partial row
                for warning in new_warnings(model, means, warned) if is_main else ():
                    bar.write(f"warning at step {done:,}: {warning}", file=sys.stderr)
                bar.set_postfix({n: f"{means[n]:.4g}" for n in SHOWN if n in means}, refresh=False)
                bar.set_description(f"step {done:,}/{steps:,}", refresh=False)

            # Every draw_every steps: a frame of training.gif; every score_every: a row of scores.
            is_frame = done % settings["draw_every"] == 0 or done == steps
            is_scored = scores and done % settings["score_every"] == 0
            if is_main and (is_frame or is_scored):
                model.eval()
                if is_frame:
                    files.write(folder / "frames" / f"{done:08d}.png", frame(model, noise))
                if is_scored:
                    row = {"images": done * size, "minutes": (time.perf_counter() - began) / 60}
                    scores[0].row(done, row | runs.quick_scores(model, data))
                model.train()

            # Every save_every steps, at the end and when told to stop: the checkpoint.
            if settings["keep_every"] and done % settings["keep_every"] == 0:
                save(f"checkpoint_{done:08d}.pt", done)
            if done % settings["save_every"] == 0 or done == steps or stop:
                save("checkpoint.pt", done)
            try:
                bar.update(size)
            except BrokenPipeError:  # Ctrl-C has ended the reader of our output (| tee)
                interrupt.signal = interrupt.signal or signal.SIGPIPE  # save at the next step
            if stop and done < steps:
                if is_main:
                    print(f"Stopped and saved in {folder}. The same command resumes.")
                return 128 + stop
        seconds = time.perf_counter() - began

    # The end: what the record says about the whole run, and pictures.
    if is_main:
        record |= {"images_seen": max(first, steps) * size, "train_seconds": round(seconds, 1)}
        write_record(folder, record)
        model.eval()
        draw(folder, model, data, f"{values['name']}, seed {seed}")
        print(f"Done: {folder}. {next_command(folder)}")
    return 0


def frames_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of the frames of training.gif, in order."""
    return sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdecimal())


def draw(folder: Path, model: nn.Module, data: ImageData, title: str) -> None:
    """Write all pictures of a trained model into the folder of its run."""
    pictures = runs.draw(model, data, title)
    if (folder / "log.csv").exists():
        pictures["curves.png"] = log_curves(read_log(folder / "log.csv"), title=title)
    if (folder / "scores.csv").exists():
        scores, panels = read_log(folder / "scores.csv"), {"Score": ".+"}
        pictures["scores.png"] = log_curves(scores, title=title, panels=panels)
    frames = [(step, path.read_bytes()) for step, path in frames_in(folder / "frames")]
    frames = frames or [(0, frame(model, fixed_noise(model, FRAME_SPRITES)))]  # they were deleted
    pictures["training.gif"] = training_gif(frames, title=title)  # last: all others are there
    for name, content in pictures.items():
        files.write(folder / name, content)


def next_command(folder: Path) -> str:
    """The command that scores this run, as it can be typed in the current folder."""
    script = os.path.relpath(Path(__file__).with_name("evaluate.py"))
    python = os.path.relpath(sys.executable)
    words = ["python" if python.startswith("..") else python, script, "--checkpoint", str(folder)]
    return f"Next: {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
