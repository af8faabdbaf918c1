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

import torch
from torch import nn

import config
import files
import runs
from data import Batches, ImageData, mix
from figures.charts import log_curves
from figures.latents import fixed_noise, frame, training_gif
from training.checkpoint import refuse_non_finite, restore, save_checkpoint, state_of
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
    """Resolve the configuration, build data and model, take the run's folder, train."""
    values = runs.resolve(options.config, options.overrides)
    if options.print_config:
        print(config.to_yaml(values), end="")
        return 0
    folder, device = runs.folder_of(values, options.runs), choose_device(values["train"]["device"])
    state = runs.saved_state(folder, values)
    if state and state["step"] >= values["train"]["steps"]:
        is_published = "optimizers" not in state  # weights without pictures
        if is_published or (folder / "training.gif").exists():
            print(f"This run is complete at step {state['step']:,}. {next_command(folder)}")
            return 0
    with process_group(device) as (rank, processes):
        data, model = runs.build(values, device)  # may fail, so before the folder is made
        with locked(folder) if rank == 0 else contextlib.nullcontext():
            all_reduce_max(0)  # the others wait until rank 0 has the folder
            return train(values, folder, data, model, rank, processes)


def train(
    values: dict, folder: Path, data: ImageData, model: nn.Module, rank: int, processes: int
) -> int:
    """Train a model in the folder of its run, until it is complete or interrupted.

    Only rank 0 logs, draws and saves. Everything random is a function of (seed, step, rank), so an
    interrupted run resumes and produces bit-identical results.
    """
    settings, seed, is_main = values["train"], values["seed"], rank == 0
    steps, size = settings["steps"], settings["batch_size"]
    batches = Batches(data.num_training, size, seed, rank, processes, data.kept, data.cumulative)

    # Initial state: the weights of the seed, or the checkpoint of this run.
    window = Window(data.images.device)
    state = runs.saved_state(folder, values)
    if state:
        runs.refuse_other_data(state, data, folder)
        restore(model, state, folder, window)
    first, seconds = (state["step"], state.get("seconds") or 0.0) if state else (0, 0.0)
    synchronise(model)
    train_step = runs.train_step(model, data, seed, settings["cuda_graphs"])

    # The files of the run: configuration, record of this start, frames, scores, log.
    sinks = []
    if is_main:
        files.write(folder / "config.yaml", config.to_yaml(values))
        record = record_start(folder, first, model.dtype, data.images.device, processes)
        (folder / "training.gif").unlink(missing_ok=True)  # of a shorter run
        for step, path in frames_in(folder / "frames"):
            if step > first:
                path.unlink()  # drawn between the last checkpoint and a crash
        scores = CsvSink(folder / "scores.csv", first, complete=False)
        if first < steps:
            sinks = open_sinks(folder, first - window.count, values)
    about = {"config": values, "image_shape": list(data.image_shape)}
    about |= {"images": len(data), "data": data.fingerprint}
    noise, began, warned = fixed_noise(model, FRAME_SPRITES), time.perf_counter() - seconds, set()
    bar = runs.progress_bar(steps * size, "start", initial=first * size, disable=not is_main)

    model.train()
    with Interrupt() as interrupt, bar:
        for step in range(first, steps):
            # At the steps of model.rotate_at: active latents are turned to independent axes.
            if step in (values["model"].get("rotate_at") or ()):
                runs.rotate(model, data)

            # One step: its images and its noise depend on (seed, step, rank) only.
            torch.manual_seed(mix(seed, step, rank))
            terms = train_step(batches[step], step)
            window.add(average(terms))  # stays on the device
            done, is_last = step + 1, step + 1 == steps
            stop = all_reduce_max(interrupt.signal)  # all processes stop at the same step

            # Every log_every steps: one row with the mean of every term. The only device sync.
            is_row = due(done, settings["log_every"])
            if is_row or is_last:
                means = window.mean()
                refuse_non_finite(done, means)
                for sink in sinks:
                    sink.row(done, {"images": done * size} | means)
                if is_row:
                    window.reset()  # else a longer run replaces this last, partial row
                for warning in new_warnings(model, means, warned) if is_main else ():
                    bar.write(f"warning at step {done:,}: {warning}", file=sys.stderr)
                bar.set_postfix({n: f"{means[n]:.4g}" for n in SHOWN if n in means}, refresh=False)
                bar.set_description(f"step {done:,}/{steps:,}", refresh=False)

            # Every draw_every steps: a frame of training.gif.
            if is_main and (due(done, settings["draw_every"]) or is_last):
                model.eval()
                files.write(folder / "frames" / f"{done:08d}.png", frame(model, noise))
                model.train()

            # Every score_every steps: a row of scores.csv.
            if is_main and due(done, settings["score_every"]):
                model.eval()
                row = {"images": done * size, "minutes": (time.perf_counter() - began) / 60}
                scores.row(done, row | runs.quick_scores(model, data))
                scores.sync()
                model.train()

            # Every save_every steps, at the end and when told to stop: the checkpoint. Every
            # keep_every steps: one with a name of its own.
            is_kept = due(done, settings["keep_every"])
            if is_kept or due(done, settings["save_every"]) or is_last or stop:
                refuse_non_finite(done, window.mean(), model)
                for sink in sinks:
                    sink.sync()  # no checkpoint is ahead of the log
                about |= {"step": done, "seconds": time.perf_counter() - began}
                names = ["checkpoint.pt"] + is_kept * [f"checkpoint_{done:08d}.pt"]
                for name in names if is_main else ():
                    save_checkpoint(folder / name, about | state_of(model, window))
            try:
                bar.update(size)
            except BrokenPipeError:  # Ctrl-C has ended the reader of our output (| tee)
                interrupt.signal = interrupt.signal or signal.SIGPIPE  # save at the next step
            if stop and not is_last:
                if is_main:
                    print(f"Stopped and saved in {folder}. The same command resumes.")
                return 128 + stop
        seconds = time.perf_counter() - began

    # The end: what the record says about the whole run, and pictures.
    if is_main:
        record |= {"images_seen": max(first, steps) * size, "train_seconds": round(seconds, 1)}
        write_record(folder, record)
        model.eval()
        draw(folder, model, data, runs.title_of(values))
        print(f"Done: {folder}. {next_command(folder)}")
    return 0


def due(step: int, every: int) -> bool:
    """Whether what happens every so many steps happens at this one; 0 is never."""
    return every > 0 and step % every == 0


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
