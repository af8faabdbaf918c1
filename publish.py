"""Copy what a finished run shows into res/: python publish.py --run runs/twoD/seed0 --name vae4"""

import argparse
import shutil
import sys
from pathlib import Path

from torch import Tensor

from training import load_checkpoint, save_checkpoint

LARGE = 8e6  # bytes of weights from which a published checkpoint holds them in half precision

PICTURES = {
    "curves.png": "{name}_loss.png",
    "fixed.png": "{name}_fix.png",
    "codes.png": "{name}.png",
    "random.png": "{name}_random.png",
    "recon.png": "{name}_recon.png",
    "traversal.gif": "{name}.gif",
    "training.gif": "{name}_training.gif",
}
RECORDS = {
    "config.yaml": "{name}.yaml",
    "run.json": "{name}_run.json",
    "log.csv": "{name}_log.csv",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a finished run")
    parser.add_argument("--name", required=True, help="what the published files are called")
    parser.add_argument("--out", type=Path, default=Path("res/2dshapes"))
    parser.add_argument("--no-pictures", action="store_true", help="weights, log and facts only")
    options = parser.parse_args(arguments)
    try:
        publish(options.run, options.name, options.out, pictures=not options.no_pictures)
    except (ValueError, OSError) as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 2
    return 0


def publish(run: Path, name: str, out: Path, pictures: bool = True) -> None:
    """Copy configuration, log, weights (no optimisers) and pictures of a finished run.

    Weights of more than LARGE bytes are rounded to float16 (scores move in the third decimal).
    Raises ValueError for an unfinished run.
    """
    state = load_checkpoint(run)
    steps = state["config"]["train"]["steps"]
    files = RECORDS | (PICTURES if pictures else {})
    missing = [file for file in files if not (run / file).exists()]
    if state["step"] < steps or missing:
        lacks = f"it lacks {', '.join(missing)}" if missing else f"step {state['step']} of {steps}"
        raise ValueError(f"{run} is not finished: {lacks}")
    out.mkdir(parents=True, exist_ok=True)
    for source, target in files.items():
        shutil.copyfile(run / source, out / target.format(name=name))
    kept = ("config", "image_shape", "model", "step")
    published = {key: state[key] for key in kept}
    published["model"] = _smaller(published["model"])
    save_checkpoint(out / f"{name}.pt", published)
    print(f"published {run} as {out / name}")


def _smaller(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large weights in half precision; biases and the statistics of batch norm stay as they are."""
    if sum(tensor.nbytes for tensor in weights.values()) <= LARGE:
        return weights
    return {k: w.half() if w.is_floating_point() and w.ndim > 1 else w for k, w in weights.items()}


if __name__ == "__main__":
    sys.exit(main())
