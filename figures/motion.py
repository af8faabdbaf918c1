"""Moving pictures: latents going up and down, and a model as it learns."""

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from figures.canvas import mosaic, stack, table, text, to_gif, to_png
from figures.latents import heading, sweep, to_model

VALUES = 17  # from one end of the span to the other
COLUMNS = 12  # of the fixed noise
FRAMES = 200  # of a training GIF; of more, evenly spaced ones are shown


def traversal_gif(
    model: nn.Module,
    references: dict[str, Tensor],
    nats: Sequence[float],
    *,
    factor_names: Sequence[str] | None = None,
) -> bytes:
    """Show all active latents side by side, each moving alone over model.span and back: a GIF.

    There is a row for each reference, which stands at the left, and a column for each latent. The
    arguments are those of `latents.traversal`.
    """
    moved = sweep(model, references, nats, factor_names, VALUES)
    columns = ["reference", *moved.columns]
    title = text(heading("Each latent varies alone", nats))
    pages = []
    for index, value in enumerate(moved.values):
        images = torch.cat([moved.stills[:, None], moved.cells[:, :, index]], 1)
        state = text(f"value of the latent: {value:z.1f}")
        pages.append(stack(title, state, table(images, list(references), columns)))
    pages += pages[-2:0:-1]  # and back
    return to_gif(pages, [100] * len(pages))


@torch.inference_mode()
def frame(model: nn.Module, z: Tensor) -> bytes:
    """Decode codes z (n, D), n below 12 or a multiple of it, to one PNG for `training_gif`."""
    images = model.decode(to_model(model, z))
    return to_png(mosaic(images.unflatten(0, (-1, min(COLUMNS, len(z))))))


def training_gif(frames: list[tuple[int, bytes]], *, title: str) -> bytes:
    """Show frames (step, PNG) of one size, in the order of their steps; the last stays longer."""
    stride = -(-len(frames) // FRAMES)
    pages = []
    for step, png in frames[::-stride][::-1]:
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        pages.append(stack(text(title), text(f"step {step:,}"), picture))
    return to_gif(pages, [100] * (len(pages) - 1) + [2500])
