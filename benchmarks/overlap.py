"""How much samples look like sprites: python benchmarks/overlap.py res/2dshapes/infogan*.pt

Samples of a model (codes from the prior; a GAN's noise too, new for each), cut at .5, laid over the
720 sprites of dSprites (3 shapes x 6 scales x 40 orientations): mean of the largest intersection
over union, and the shape that it is found with. The first row are images of the data set itself.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # this folder has a `metrics` of its own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor, nn

from data import ImageData, load_dataset
from evaluate import load_runs

SHIFTS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]  # pixels


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--samples", type=int, default=500, metavar="N")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error(f"--samples: {options.samples} is not allowed; allowed: 1 or more")
    data = load_dataset("dsprites")
    sprites, shapes = sprites_of(data)
    names = ("square", "ellipse", "heart")
    print(f"{'of':<40}{'overlap':>8}" + "".join(f"{name:>9}" for name in names))

    def row(label: str, images: Tensor) -> None:
        found, nearest = overlaps(images, sprites)
        shares = np.bincount(shapes[nearest], minlength=len(names)) / len(images)
        print(f"{label:<40}{found.mean():>8.3f}" + "".join(f"{share:>9.0%}" for share in shares))

    try:
        row("the data set", data.batch(data.random_index(options.samples, seed=1)))
        for run in load_runs(options.checkpoints, "cpu"):
            row(str(run.path), draw(run.model, options.samples))
    except (ValueError, OSError) as error:
        print(f"overlap.py: {error}", file=sys.stderr)
        return 2
    return 0


def draw(model: nn.Module, n: int) -> Tensor:
    """n samples (n, 1, 64, 64) in [0, 1] of a model in eval mode, a function of seed 0."""
    generator = torch.Generator().manual_seed(0)
    inputs = [model.sample(n, generator)]
    if hasattr(model, "sample_noise"):
        inputs.append(model.sample_noise(n, generator))
    parts = zip(*(column.split(100) for column in inputs), strict=True)
    with torch.no_grad():
        return torch.cat([model.decode(*part) for part in parts])


def sprites_of(data: ImageData) -> tuple[Tensor, np.ndarray]:
    """Every sprite once, centred: (720, 64, 64) in {0, 1}, and its shape (720,)."""
    factors = np.indices((3, 6, 40)).reshape(3, -1).T
    rows = np.ravel_multi_index((*factors.T, 16, 16), data.grid.sizes)
    return centred(data.batch(torch.as_tensor(rows))), factors[:, 0]


def centred(images: Tensor) -> Tensor:
    """Images (N, 1, 64, 64), cut at .5 and moved so that their mass is in the middle: (N, 64, 64).

    What is moved over an edge comes in again at the opposite one; empty images stay empty.
    """
    bits = (images[:, 0] > 0.5).float()
    line = torch.arange(64.0)
    mass = bits.sum((1, 2)).clamp(min=1)
    rows = (31.5 - (bits.sum(2) * line).sum(1) / mass).round().long()
    columns = (31.5 - (bits.sum(1) * line).sum(1) / mass).round().long()
    moved = [b.roll((int(r), int(c)), (0, 1)) for b, r, c in zip(bits, rows, columns, strict=True)]
    return torch.stack(moved)


def overlaps(images: Tensor, sprites: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Largest intersection over union of each image (N, 1, 64, 64) with a sprite, and which: (N,).

    The largest over SHIFTS, so that rounding of the centre does not count.
    """
    bits, known = centred(images).flatten(1), sprites.flatten(1)
    best = torch.zeros(len(bits), len(known))
    for shift in SHIFTS:
        moved = sprites.roll(shift, (1, 2)).flatten(1)
        both = bits @ moved.t()
        either = bits.sum(1, keepdim=True) + known.sum(1) - both
        best = torch.maximum(best, both / either.clamp(min=1))
    found, nearest = best.max(1)
    return found.numpy(), nearest.numpy()


if __name__ == "__main__":
    sys.exit(main())
