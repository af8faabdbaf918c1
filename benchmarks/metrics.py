"""Seconds of every metric on a full dSprites grid of 10 codes, beside the reference's.

    python benchmarks/metrics.py [--boosted] [--seeds 3]

Both run in this process on the same codes with the sizes of the 2019 study, in turns; the
median over seeds is shown. `--boosted` adds DCI with gradient boosting, which takes minutes.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # this folder has a `metrics` of its own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import scipy
import sklearn
from threadpoolctl import threadpool_limits

from benchmarks.reference import load_reference
from data.grid import FactorGrid
from metrics import METRICS, score_all

GRID = FactorGrid(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
SIZES = (10_000, 5_000)  # training and test samples


def make_codes() -> tuple[np.ndarray, np.ndarray]:
    """Means and log-variances (737280, 10) like those of a half-trained VAE: five live codes."""
    rng = np.random.default_rng(0)
    f = GRID.factors(np.arange(len(GRID)))
    z = (f - f.mean(axis=0)) / f.std(axis=0)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    live = z @ (np.eye(5) + 0.3 * turn) + 0.1 * rng.normal(size=z.shape)
    dead = 0.03 * rng.normal(size=z.shape)
    logvar = np.c_[np.full(z.shape, -4.0), np.full(z.shape, -0.01)]
    return np.c_[live, dead], logvar + 0.2 * rng.normal(size=logvar.shape)


def timed(function, *args, **kwargs) -> float:
    start = time.perf_counter()
    with threadpool_limits(1):  # ours does; without it the reference's small matrices wait
        function(*args, **kwargs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--boosted", action="store_true", help="DCI with gradient boosting too")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, median shown")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds: {args.seeds} is not allowed; allowed: 1 or more")
    codes, logvar = make_codes()
    reference = load_reference() or {}
    names = [key for key in METRICS if "dci_" not in key] + ["dci_fast"]
    names += ["dci"] if args.boosted else []
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}; median of {args.seeds}"
    )
    if not reference:
        print("reference absent: pip install --no-deps disentanglement-lib==1.5")
    print(f"{'metric':<28}{'ours / s':>10}{'reference / s':>15}{'ratio':>8}")
    total = 0.0
    for name in names:
        runs = []
        for seed in range(args.seeds if name != "dci" else 1):
            ours = timed(score_all, codes, GRID, metrics=[name], seed=seed, logvar=logvar)
            theirs = np.nan
            if name in reference:
                theirs = timed(reference[name], codes, GRID.sizes, seed, *SIZES)
            runs.append((ours, theirs))
        ours, theirs = (median(column) for column in zip(*runs, strict=True))
        total += ours if name != "dci" else 0
        beside = f"{theirs:>15.2f}{theirs / ours:>8.1f}" if name in reference else ""
        print(f"{name:<28}{ours:>10.2f}{beside}", flush=True)
    print(f"{'together, without dci':<28}{total:>10.2f}")


if __name__ == "__main__":
    main()
