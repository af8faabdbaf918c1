"""Copy what a finished run shows into res/: python publish.py --run runs/twoD/seed0 --name vae4"""

import argparse
import shutil
import sys
from pathlib import Path

from training import load_checkpoint, save_checkpoint

PICTURES = {
    "curves.png": "{name}_loss.png",
    "fixed.png": "{name}_fix.png",
    "codes.png": "{name}.png",
    "random.png": "{name}_random.png",
    "recon.png": "{name}_recon.png",
    "traversal.gif": "{name}.gif",
    "training.gif": "{name}_training.gif",
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
    options = parser.parse_args(arguments)
    try:
        publish(options.run, options.name, options.out)
    except (ValueError, OSError) as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 2
    return 0


def publish(run: Path, name: str, out: Path) -> None:
    """Copy pictures, configuration, log and the weights (no optimisers) of a finished run.

    Raises ValueError for an unfinished run.
    """
    state = load_checkpoint(run)
    steps = state["config"]["train"]["steps"]
    missing = [picture for picture in PICTURES if not (run / picture).exists()]
    if state["step"] < steps or missing:
        lacks = f"it lacks {', '.join(missing)}" if missing else f"step {state['step']} of {steps}"
        raise ValueError(f"{run} is not finished: {lacks}")
    out.mkdir(parents=True, exist_ok=True)
    for source, target in PICTURES.items():
        shutil.copyfile(run / source, out / target.format(name=name))
    kept = ("config", "image_shape", "model", "step")
    save_checkpoint(out / f"{name}.pt", {key: state[key] for key in kept})
    print(f"published {run} as {out / name}")


if __name__ == "__main__":
    sys.exit(main())
