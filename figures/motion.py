"""Moving pictures: latents going up and down, and a model as it learns."""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from figures.canvas import GAP, GREY, INK, Label, save_gif, table, text_width, tile, write
from figures.latents import beside, codes_of, fade, latent_label, rank, sweep, to_model, value_label

VALUES = 17  # from one end of the span to the other
TOP = 46  # pixels above the sprites, for the caption and the bar


@torch.inference_mode()
def traversal_gif(
    model: nn.Module,
    path: str | PathLike,
    references: dict[str, Tensor],
    information: Sequence[float],
    *,
    title: str = "Each latent moves alone",
) -> Path:
    """Draw all latents side by side, each moving alone over model.span and back, for ever.

    A row per reference, a column per latent, sorted and greyed as in `latents.traversal`.
    """
    order, nats = rank(model, information)
    codes, values = codes_of(model, references), torch.linspace(*model.span, VALUES)
    cells = sweep(model, codes, values)
    cells = torch.stack([fade(cells[:, d], nats[d]) for d in order], 1)  # (R, D, V, C, H, W)
    still = beside(references, model.decode(codes).float().cpu())
    unit = model.information_name.split()[0]
    labels = [latent_label(f"z{d}\n{unit} {nats[d]:z.1f}", nats[d]) for d in order]
    rows = [(name, INK) for name in references]
    low, high = model.span
    pages = []
    for index, value in enumerate(values.tolist()):
        moving = cells[:, :, index], labels
        text, colour = value_label(model, value)
        state = f"value {text} in {low:g} to {high:g}", colour
        picture = table("", rows, [still, moving], below=True)
        pages.append(_captioned(picture, title, state, index / (VALUES - 1)))
    way = [*range(VALUES), *range(VALUES - 2, 0, -1)]
    pauses = [500 if index in (0, VALUES - 1) else 100 for index in way]
    return save_gif([pages[index] for index in way], pauses, path)


@torch.inference_mode()
def frame(model: nn.Module, z: Tensor, *, columns: int = 12) -> np.ndarray:
    """Decode codes z (n, D) to one uint8 picture, (h, w) or (h, w, 3), for `training_gif`."""
    images = model.decode(to_model(model, z))
    pixels = np.asarray(tile(images, columns))
    return pixels[..., 0] if images.shape[1] == 1 else pixels


def training_gif(
    frames: Iterable[tuple[int, np.ndarray]], path: str | PathLike, *, title: str
) -> Path:
    """Show pictures from training one after another, each with its step; the last stays longer.

    frames are (step, uint8 (h, w) or (h, w, 3)) pairs of one size. Raises ValueError if there are
    none.
    """
    frames = sorted(frames, key=lambda pair: pair[0])
    if not frames:
        raise ValueError("frames: none given, at least one is needed")
    last = frames[-1][0]
    pages = [
        _captioned(Image.fromarray(pixels), title, (f"step {step:,}", INK), step / max(last, 1))
        for step, pixels in frames
    ]
    pause = min(250, max(60, 12000 // len(pages)))  # about 12 s in all, if there are many
    return save_gif(pages, [pause] * (len(pages) - 1) + [2500], path)


def _captioned(picture: Image.Image, title: str, state: Label, share: float) -> Image.Image:
    """A picture under its title, the state that it shows, and a bar with a share of it filled."""
    right = text_width(["value -0.0 in -3 to 3"])
    width = max(picture.width, text_width([title], bold=True) + right) + 2 * GAP
    page = Image.new("RGB", (width, TOP + picture.height + GAP), "white")
    page.paste(picture, (GAP, TOP))
    write(page, (GAP, 8), title, bold=True)
    write(page, (width - GAP, 8), *state, anchor="ra")
    draw, end = ImageDraw.Draw(page), GAP + (width - 2 * GAP) * share
    draw.rectangle((GAP, 32, width - GAP, 34), fill=GREY)
    draw.rectangle((GAP, 30, end, 36), fill=state[1])
    return page
