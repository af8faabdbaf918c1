"""Codes that no run of ours makes: files of any model, and representations without training.

The latter are rows of Figure 6 in Higgins et al. 2017: https://openreview.net/forum?id=Sy2fzU9gl
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA

import runs
from data import FactorGrid, FactorTable, ImageData
from data.npz import factors_in, read_npz
from models.likelihoods import nll

COMPONENTS = 10  # of PCA and ICA, as in the paper
FITTED = 20_000  # random images that PCA and ICA are fitted to
RECON_IMAGES = 2_000
UNTRAINED = Path(__file__).resolve().parent / "config" / "twoD_vae.yaml"


def pack_codes(codes: np.ndarray, logvar: np.ndarray | None, labels: Any) -> bytes:
    """The content of a codes.npz; `labels` is a FactorGrid or FactorTable of the rows, or None."""
    arrays = {"codes": codes} | ({} if logvar is None else {"logvar": logvar})
    if isinstance(labels, FactorGrid):
        arrays |= {"sizes": labels.sizes, "names": labels.names}
    elif labels is not None:
        arrays |= {"factors": labels.values, "names": labels.names}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_codes(path: Path) -> tuple[np.ndarray, FactorGrid | FactorTable | None, Any]:
    """Codes (N, D) in a codes.npz, their factors, and their log-variances or None."""
    arrays = read_npz(path, "--codes")
    if "codes" not in arrays:
        raise ValueError(f"--codes: {path} holds {', '.join(arrays)}; needed: codes (N, D)")
    return arrays["codes"], factors_in(arrays), arrays.get("logvar")


def part_of(encode: Callable[[], tuple], rows: np.ndarray) -> tuple:
    """What `encode` returns, for these rows (n,) only: codes, their factors, log-variances."""
    codes, labels, logvar = encode()
    labels = labels and FactorTable(labels.names, labels.factors(rows))
    return codes[rows], labels, None if logvar is None else logvar[rows]


@torch.inference_mode()
def recon(run: runs.Run, rows: np.ndarray) -> float | None:
    """Mean -log p(x | z) in nats of 2,000 random images among `rows`; None for an InfoGAN."""
    if not hasattr(run.model, "likelihood"):
        return None
    rows, nats = np.random.default_rng(0).permutation(rows)[:RECON_IMAGES], 0.0
    torch.manual_seed(0)  # of the samples of the posterior
    for index in torch.as_tensor(rows).split(runs.ENCODE_BATCH):
        x = run.data.batch(index, run.model.dtype)
        nats += float(nll(run.model.likelihood, run.model(x)[0], x))
    return nats / len(rows)


def true_factors(data: ImageData, seed: int) -> np.ndarray:
    """The factors themselves (N, K), each with standard deviation 1."""
    values = data.grid.factors(np.arange(len(data)))
    return values / values.std(axis=0)


class RawPixels:
    """The pixels as codes (N, 4096), unpacked only where a metric asks for rows."""

    def __init__(self, data: ImageData, seed: int):
        self.data, self.shape = data, (len(data), int(np.prod(data.image_shape)))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Pixels of these images, (n, 4096)."""
        return self.data.batch(torch.as_tensor(rows)).flatten(1).numpy()


def pca(data: ImageData, seed: int) -> np.ndarray:
    """The first principal components (N, 10) of the pixels."""
    images = data.batch(data.random_index(FITTED, seed)).flatten(1).numpy()
    fitted = PCA(COMPONENTS, svd_solver="covariance_eigh").fit(images)
    mean, axes = (torch.from_numpy(np.float32(a)) for a in (fitted.mean_, fitted.components_))
    parts = torch.arange(len(data)).split(4096)
    return torch.cat([(data.batch(part).flatten(1) - mean) @ axes.T for part in parts]).numpy()


def ica(data: ImageData, seed: int) -> np.ndarray:
    """Independent components (N, 10) of the principal components, by FastICA."""
    components = pca(data, seed)
    fitted = FastICA(COMPONENTS, whiten="unit-variance", max_iter=1000, random_state=seed)
    fitted.fit(components[data.random_index(FITTED, seed).numpy()])
    return fitted.transform(components)


def untrained_vae(data: ImageData, seed: int) -> np.ndarray:
    """Posterior means (N, 10) of a VAE with its initial weights, scaled to standard deviation 1.

    Unscaled they vary by a few hundredths, which metrics would take for inactive codes.
    """
    values = runs.resolve(UNTRAINED, [f"seed={seed}", "train.precision=fp32", "train.device=cpu"])
    _, model = runs.build(values, torch.device("cpu"))
    codes, _ = runs.encode(model.eval(), data, label=f"untrained VAE {seed}")
    return codes / codes.std(axis=0)


BASELINES = {  # f(data, seed) -> codes (N, D)
    "true_factors": true_factors,
    "raw_pixels": RawPixels,
    "pca": pca,
    "ica": ica,
    "untrained_vae": untrained_vae,
}
