"""What codes that are measured exactly score: python benchmarks/moments.py [--images N]

Codes that a network with the right idea would learn, taken from the pixels without training: an
image's centre of mass, its area, and its elongation, in two components or as an angle. They show
what to expect of MIG: a heart turns about a point beside its centre of mass, the area tells shape
beside scale, and an orientation in two codes that share it has no gap.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # this folder has a `metrics` of its own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from data import load_dataset
from metrics import score_all

# What the codes are -> columns of moments().
CODES = {
    "centre": [0, 1],
    "centre, area": [0, 1, 2],
    "centre, area, elongation (2)": [0, 1, 2, 3, 4],
    "centre, area, elongation (1)": [0, 1, 2, 3],
    "centre, area, angle": [0, 1, 2, 5],
}


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=40_000, metavar="N")
    options = parser.parse_args()
    if options.images < 10_000:
        parser.error(f"--images: {options.images} is not allowed; allowed: 10000 or more")
    data = load_dataset("dsprites")
    if options.images > len(data):
        parser.error(f"--images: {options.images} is not allowed; allowed: up to {len(data)}")
    index = data.random_index(options.images, seed=1)
    factors = data.grid.factors(index.numpy())
    measured = torch.cat([moments(data.batch(part)) for part in index.split(1000)]).numpy()
    measured /= measured.std(axis=0)  # of hundredths the FactorVAE score would prune
    gaps = "".join(f"{name:>13}" for name in data.grid.names)
    print(f"{'codes':<30}{'FactorVAE':>10}{'MIG':>7}{gaps}")
    for name, columns in CODES.items():
        scores = score_all(measured[:, columns], factors, metrics=("mig", "factor_vae"))
        gaps = "".join(f"{gap:>13.3f}" for gap in scores["mig"]["per_factor"].values())
        factor_vae, mig = scores["factor_vae"]["score"], scores["mig"]["score"]
        print(f"{name:<30}{factor_vae:>10.3f}{mig:>7.3f}{gaps}")
    return 0


def moments(images: Tensor) -> Tensor:
    """Images (N, 1, H, W) in [0, 1], none of them empty -> (N, 6).

    Centre of mass x, y and area in pixels; the elongation along 0 and 45 degrees, differences of
    second central moments over the area; the angle of the long axis in radians, (-pi/2, pi/2].
    """
    pixels = images[:, 0]
    area = pixels.sum((1, 2))
    place = torch.arange(float(pixels.shape[1])), torch.arange(float(pixels.shape[2]))
    y, x = ((pixels.sum(2 - axis) * place[axis]).sum(1) / area for axis in (0, 1))
    dy, dx = place[0] - y[:, None], place[1] - x[:, None]
    xx = (pixels.sum(1) * dx.square()).sum(1) / area
    yy = (pixels.sum(2) * dy.square()).sum(1) / area
    xy = torch.einsum("nyx,ny,nx->n", pixels, dy, dx) / area
    along, across = (xx - yy) / area, 2 * xy / area
    return torch.stack([x, y, area, along, across, torch.atan2(across, along) / 2], 1)


if __name__ == "__main__":
    sys.exit(main())
