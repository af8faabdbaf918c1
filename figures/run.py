"""All pictures of one run, with the names that they have in its folder."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from figures.canvas import replace
from figures.charts import loss_curves
from figures.latents import measure, random_grid, reconstructions, traversal
from figures.motion import frame, training_gif, traversal_gif

FIXED_SEED = 20170424  # of the fixed noise: the same in every run and at every step
RANDOM_REFERENCES = 3
CODE_ROWS = 5  # base draws that a latent is moved from


def fixed_noise(model: nn.Module, n: int) -> Tensor:
    """n codes drawn from the model's prior, always the same: (n, latent_dim) on the CPU."""
    return model.sample(n, torch.Generator().manual_seed(FIXED_SEED))


class Frames:
    """What the fixed noise looks like as training proceeds, one small file each in `folder`.

    Frames after `step` (made between the last checkpoint and a crash), and one off the grid of
    `every` steps that is not the `last` (the end of a run that now goes on), are dropped first.
    """

    def __init__(
        self, folder: Path, step: int, every: int, last: int, model: nn.Module, n: int = 48
    ):
        self.folder, self.model, self.z = Path(folder), model, fixed_noise(model, n)
        for path, made in self._paths():
            if made > step or (made % every and made != last):
                path.unlink()

    def add(self, step: int) -> None:
        """Decode the noise (model in eval mode) and keep the picture under this step."""
        path = self.folder / f"{step:08d}.png"
        data = io.BytesIO()
        Image.fromarray(frame(self.model, self.z)).save(data, "PNG")
        replace(path, data.getvalue())

    def all(self) -> list[tuple[int, np.ndarray]]:
        """(step, picture) of all frames so far, in order, but for files that are none."""
        found = []
        for path, made in self._paths():
            with contextlib.suppress(OSError):  # torn by a power cut
                found.append((made, np.asarray(Image.open(path))))
        return found

    def _paths(self) -> list[tuple[Path, int]]:
        paths = sorted(self.folder.glob("*.png"))
        return [(path, int(path.stem)) for path in paths if path.stem.isdecimal()]


@torch.inference_mode()
def draw_run(
    model: nn.Module,
    folder: Path,
    references: dict[str, Tensor],
    images: Tensor,
    *,
    title: str,
    factor_names: list[str] | None = None,
) -> None:
    """Write fixed.png, random.png, codes.png, recon.png and traversal.gif; model in eval mode.

    references: name -> image (C, H, W) in [0, 1]; images (B, C, H, W): drawn at random from the
    data set; the information of each latent is measured on all of them, the first few are drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    information = measure(model, images)
    fixed = references | {"fixed noise": fixed_noise(model, 1)[0]}
    random = {f"random image {i + 1}": images[i] for i in range(RANDOM_REFERENCES)}
    traversal(
        model,
        folder / "fixed.png",
        fixed,
        information,
        title=f"{title}: traversals from fixed references",
        factor_names=factor_names,
    )
    random_grid(
        model,
        folder / "random.png",
        random,
        information,
        seed=FIXED_SEED + 1,
        title=f"{title}: random samples",
    )
    draws = {f"draw {i + 1}": code for i, code in enumerate(fixed_noise(model, CODE_ROWS))}
    random_grid(
        model,
        folder / "codes.png",
        draws,
        information,
        seed=FIXED_SEED,
        title=f"{title}: fixed noise, and what each latent does to it",
        factor_names=factor_names,
        by_latent=True,
        rows=4,
    )
    reconstructions(model, images[:20], folder / "recon.png", title=f"{title}: reconstructions")
    traversal_gif(model, folder / "traversal.gif", fixed, information)


def draw_training(folder: Path, frames: list[tuple[int, np.ndarray]], *, title: str) -> None:
    """Write curves.png from log.csv (where it is), and training.gif from frames, into a folder."""
    folder = Path(folder)
    if (folder / "log.csv").exists():
        loss_curves(folder / "log.csv", folder / "curves.png", title=title)
    training_gif(frames, folder / "training.gif", title=title)
