"""What a model's latents do: traversals, samples, reconstructions, and a model as it learns."""

import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from figures.canvas import beside, mosaic, stack, table, text, to_gif, to_png

ACTIVE_NATS = 0.05  # a latent below it carries nothing that a decoder could use
FIXED_SEED = 20170424  # of the fixed noise: the same in every run and at every step
VALUES, GIF_VALUES = 9, 17  # of a latent: columns of a traversal, pages there of a GIF
COMPARED = (4, 5)  # values of a latent and latents of a model in model_traversals
PAIRS = 10  # columns of reconstructions
SAMPLES = (9, 12)  # rows and columns of samples
NOISE_COLUMNS = 12  # of a frame of training.gif
FRAMES = 200  # of a training GIF; of more, evenly spaced ones are shown
TITLE = 16  # pixels


References = dict[str, Tensor]  # name -> image (C, H, W) in [0, 1], or code (D,)
Nats = Sequence[float]  # of each latent, as `measure` returns them
Names = Sequence[str] | None  # the factor that each latent follows, or ""


class Sweep(NamedTuple):
    """R references decoded with each of L active latents set to V values in turn."""

    names: list[str]  # of the latents, as "posX  z3  2.9 nats"
    values: list[float]
    cells: Tensor  # (R, L, V, C, H, W)
    stills: Tensor  # (R, C, H, W): the references; decoded where they are codes
    nearest: list[list[int]]  # (R, L): index of the value that is nearest to the reference's own

    @property
    def columns(self) -> list[str]:
        """The names in several short lines, for heads of columns."""
        return [re.sub(r"  | \+ ", "\n", name) for name in self.names]


def to_model(model: nn.Module, x: Tensor) -> Tensor:
    """Move a tensor to the model's device, as float32."""
    return x.to(next(model.parameters(), x).device, torch.float32)


def fixed_noise(model: nn.Module, n: int) -> Tensor:
    """Return n codes drawn from the model's prior, always the same: (n, D) on the CPU."""
    return model.sample(n, torch.Generator().manual_seed(FIXED_SEED))


@torch.inference_mode()
def measure(model: nn.Module, images: Tensor) -> list[float]:
    """Return the nats that each latent carries about images (B, C, H, W), or nan: it is active."""
    if not hasattr(model, "information"):
        return [math.nan] * model.latent_dim
    parts = to_model(model, images).split(256)
    return torch.stack([model.information(part) for part in parts]).mean(0).tolist()


@torch.inference_mode()
def sweep(
    model: nn.Module, references: References, nats: Nats, factor_names: Names, count: int
) -> Sweep:
    """Move each active latent, most informative first, to `count` values of the model's span.

    If no latent is active, the most informative one is moved.
    """
    order = sorted(range(len(nats)), key=lambda d: -nats[d])
    latents = [d for d in order if not nats[d] < ACTIVE_NATS] or order[:1]
    names, sizes = [], getattr(model, "category_sizes", {})
    for d in latents:
        amount = "" if math.isnan(nats[d]) else f"{nats[d]:z.1f} nats"
        name = f"category z{d}" if d in sizes else f"z{d}"
        parts = (factor_names[d] if factor_names else "", name, amount)
        names.append("  ".join(part for part in parts if part))

    # Encode images, take codes as they are, and decode each with one latent moved.
    inputs = [to_model(model, reference) for reference in references.values()]
    codes = torch.stack([r if r.ndim == 1 else model.encode(r[None])[0].float() for r in inputs])
    stills = [model.decode(r[None])[0].float() if r.ndim == 1 else r for r in inputs]
    span = torch.linspace(*model.span, count)
    steps = torch.arange(count)  # a category takes each of its values for a part of the span
    values = [steps * sizes[d] // count if d in sizes else span for d in latents]
    values = to_model(model, torch.stack([v.float() for v in values]))  # (L, V)
    moved = codes[:, None, None].repeat(1, len(latents), count, 1)  # (R, L, V, D)
    for row, d in enumerate(latents):
        moved[:, row, :, d] = values[row]
    cells = torch.stack([model.decode(block.flatten(0, 1)).float().cpu() for block in moved])
    cells = cells.unflatten(1, moved.shape[1:3])
    nearest = (values - codes[:, latents, None]).abs().argmin(-1).tolist()
    return Sweep(names, span.tolist(), cells, torch.stack(stills).cpu(), nearest)


def heading(title: str, nats: Nats) -> str:
    """Return a title with the number of inactive latents, if there are any, in brackets."""
    inactive = sum(value < ACTIVE_NATS for value in nats)
    return f"{title} ({inactive} of {len(nats)} latents inactive)" if inactive else title


def traversal(
    model: nn.Module, references: References, nats: Nats, *, title: str, factor_names: Names = None
) -> bytes:
    """Draw what each active latent does: a PNG with a block for each reference."""
    moved = sweep(model, references, nats, factor_names, VALUES)
    columns = ["reference", *(f"{value:zg}" for value in moved.values)]
    note = "Each row varies one latent; the others are fixed. Blue: nearest to the reference."
    parts = [text(heading(title, nats), TITLE), text(note)]
    if hasattr(model, "information"):
        parts.append(text(f"Numbers: {model.information_name} of each latent in nats."))
    for r, name in enumerate(references):
        stills = moved.stills[r].expand(len(moved.names), 1, -1, -1, -1)
        cells = torch.cat([stills, moved.cells[r]], 1)
        marks = [column + 1 for column in moved.nearest[r]]  # the first column is the reference
        parts += [text(name, size=14), table(cells, moved.names, columns, marks)]
    return to_png(stack(*parts))


def model_traversals(
    models: dict[str, tuple[nn.Module, Nats, Names]], reference: Tensor, *, title: str
) -> bytes:
    """Draw what the most informative latents of models do to an image: a PNG, a column a latent."""
    blocks, (count, most) = [], COMPARED
    for name, (model, nats, factor_names) in models.items():
        moved = sweep(model, {"": reference}, nats, factor_names, count)
        rows = ["image", *(f"{value:z.2g}" for value in moved.values)]
        stills = moved.stills.unsqueeze(1).expand(-1, len(moved.names), -1, -1, -1)
        cells = torch.cat([stills, moved.cells[0].transpose(0, 1)])[:, :most]
        grid = table(cells, rows, moved.columns[:most], size=14)
        blocks.append(stack(text(name, TITLE), grid))
    notes = (
        f"Each column varies one latent over the values at the left ({most} most informative).",
        "Above a column: the factors that the latent follows most, its name and its information.",
    )
    lines = [text(note, 14) for note in notes]
    return to_png(stack(text(title, TITLE), *lines, beside(*blocks)))


@torch.inference_mode()
def samples(model: nn.Module, nats: Nats, *, seed: int, title: str) -> bytes:
    """Draw images decoded from codes of the prior, as a PNG; a CPU generator draws the codes."""
    codes = model.sample(math.prod(SAMPLES), torch.Generator().manual_seed(seed))
    images = model.decode(to_model(model, codes)).unflatten(0, SAMPLES)
    return to_png(stack(text(heading(title, nats), TITLE), mosaic(images)))


@torch.inference_mode()
def reconstructions(
    models: dict[str, nn.Module], x: Tensor, *, title: str, columns: int = PAIRS
) -> bytes:
    """Draw images x (B, C, H, W) above what each model (name -> model) makes of them, as a PNG."""
    decoded = [model.decode(model.encode(to_model(model, x))) for model in models.values()]
    rows = torch.stack([images.float().cpu() for images in (x, *decoded)])
    bands = [table(band, ["image", *models], [], size=14) for band in rows.split(columns, 1)]
    return to_png(stack(text(title, TITLE), *bands))


def traversal_gif(
    model: nn.Module, references: References, nats: Nats, *, factor_names: Names = None
) -> bytes:
    """Show each active latent (a column) move over model.span and back, by reference: a GIF."""
    moved = sweep(model, references, nats, factor_names, GIF_VALUES)
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
    return to_png(mosaic(images.unflatten(0, (-1, min(NOISE_COLUMNS, len(z))))))


def training_gif(frames: list[tuple[int, bytes]], *, title: str) -> bytes:
    """Show frames (step, PNG) of one size, in the order of their steps; the last stays longer."""
    stride = -(-len(frames) // FRAMES)
    pages = []
    for step, png in frames[::-stride][::-1]:
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        pages.append(stack(text(title), text(f"step {step:,}"), picture))
    return to_gif(pages, [100] * (len(pages) - 1) + [2500])
