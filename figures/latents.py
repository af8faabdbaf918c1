"""What a model's latents do: traversals, samples and reconstructions as pages of sprites."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from figures.canvas import (
    ACTIVE_NATS,
    GREY,
    INK,
    NO_MARK,
    ORANGE,
    Label,
    heading,
    save_png,
    stack,
    table,
    tile,
)

VALUES = 10  # columns of a traversal
PAIRS = 10  # columns of a page of reconstructions
SHARE = "Beside it the factor that it follows best: that factor's part of all that it tells, in %."


def to_model(model: nn.Module, x: Tensor) -> Tensor:
    """Move a tensor to the model's device, as float32."""
    return x.to(next(model.parameters(), x).device, torch.float32)


def codes_of(model: nn.Module, references: dict[str, Tensor]) -> Tensor:
    """Return the codes (R, D) of references: an image's are its means, a code is one already."""
    given = [to_model(model, reference) for reference in references.values()]
    return torch.stack([r if r.ndim == 1 else model.encode(r[None])[0].float() for r in given])


def sweep(model: nn.Module, z: Tensor, values: Tensor) -> Tensor:
    """Decode codes z (R, D) with each latent in turn set to values (V,): (R, D, V, C, H, W)."""
    moved = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)[:, None]  # (D, 1, D)
    codes = torch.where(moved, to_model(model, values)[:, None], z[:, None, None])  # (R, D, V, D)
    images = [model.decode(block.flatten(0, 1)).float().cpu() for block in codes]
    return torch.stack(images).unflatten(1, codes.shape[1:3])


@torch.inference_mode()
def measure(model: nn.Module, images: Tensor) -> list[float]:
    """Return the nats (D,) that each latent carries about images (B, C, H, W), in parts of 256."""
    images = to_model(model, images)
    return torch.stack([model.information(part) for part in images.split(256)]).mean(0).tolist()


def rank(model: nn.Module, information: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the latents' order, most informative first, and the information (D,) as floats.

    Raises ValueError if there is not one value for each latent.
    """
    nats = [float(value) for value in information]
    if len(nats) != model.latent_dim:
        raise ValueError(f"information: {len(nats)} values given for {model.latent_dim} latents")
    return sorted(range(len(nats)), key=lambda d: -nats[d]), nats


def fade(images: Tensor, nats: float) -> Tensor:
    """Draw images of a latent that carries nothing grey in grey."""
    return images if nats >= ACTIVE_NATS else 0.6 + 0.25 * images


def latent_label(text: str, nats: float) -> Label:
    """Return a label in ink, or in grey for a latent that carries nothing."""
    return text, INK if nats >= ACTIVE_NATS else GREY


def value_label(model: nn.Module, value: float) -> Label:
    """Return a latent's value as a label, orange outside the range that training covered."""
    low, high = model.trained_span or model.span
    return f"{value:z.1f}", INK if low - 1e-6 <= value <= high + 1e-6 else ORANGE


def beside(references: dict[str, Tensor], decoded: Tensor) -> tuple[Tensor, list[Label]]:
    """Return what stands before the moving cells, (R, S, C, H, W), and its S labels.

    The references' images, if any has one (white for those that have none), and decoded (R, ...).
    """
    if all(reference.ndim == 1 for reference in references.values()):
        return decoded[:, None], [("decoded", INK)]
    white = torch.ones_like(decoded[0])
    images = [r.float().cpu() if r.ndim > 1 else white for r in references.values()]
    return torch.stack([torch.stack(images), decoded], 1), [("image", INK), ("decoded", INK)]


@torch.inference_mode()
def traversal(
    model: nn.Module,
    path: str | PathLike,
    references: dict[str, Tensor],
    information: Sequence[float],
    *,
    title: str,
    factor_names: Sequence[str] | None = None,
    values: int = VALUES,
    by_latent: bool = False,
) -> Path:
    """Draw latents moving one at a time, the latent's value from left to right.

    A block for each reference with a row per latent, or by_latent: a block for each latent with a
    row per reference. information (D,) in nats sorts the latents, most first; those under
    ACTIVE_NATS are grey. factor_names (D,) is written beside them. Raises ValueError if the length
    of one of the two does not fit.
    """
    blocks = _blocks(model, references, information, factor_names, values, by_latent)
    return save_png(stack([heading(title, *_explain(model, factor_names)), *blocks]), path)


@torch.inference_mode()
def random_grid(
    model: nn.Module,
    path: str | PathLike,
    references: dict[str, Tensor] | None = None,
    information: Sequence[float] = (),
    *,
    seed: int,
    title: str,
    factor_names: Sequence[str] | None = None,
    by_latent: bool = False,
    rows: int = 9,
    columns: int = 12,
) -> Path:
    """Draw rows x columns images decoded from the prior; under them traversals of references.

    The codes are drawn by a CPU generator with this seed; the rest is as in `traversal`.
    """
    z = model.sample(rows * columns, torch.Generator().manual_seed(seed))
    parts = [heading(title, f"{len(z)} images decoded from codes drawn from the prior.")]
    parts.append(tile(model.decode(to_model(model, z)), columns))
    if references:
        below = "One block a latent" if by_latent else "Traversals from random images"
        parts.append(heading(below, *_explain(model, factor_names)))
        parts += _blocks(model, references, information, factor_names, by_latent=by_latent)
    return save_png(stack(parts), path)


@torch.inference_mode()
def reconstructions(model: nn.Module, x: Tensor, path: str | PathLike, *, title: str) -> Path:
    """Draw images x (B, C, H, W) in [0, 1], each above what the model makes of it."""
    decoded = model.decode(model.encode(to_model(model, x))).float().cpu()
    pairs = torch.stack([x.float().cpu(), decoded]).split(PAIRS, 1)
    rows = [("image", INK), ("decoded", INK)]
    bands = [table("", rows, [(pair, [("", INK)] * pair.shape[1])]) for pair in pairs]
    return save_png(stack([heading(title), *bands]), path)


def _explain(model, factor_names=None) -> list[str]:
    """How to read the blocks."""
    lines = [
        "Along a row one latent takes the values above the columns; all else stays as it is.",
        f"Ordered by {model.information_name} in nats; grey: below {ACTIVE_NATS}, carries nothing. "
        "Blue frame: nearest to the reference.",
    ]
    if factor_names is not None:
        lines.append(SHARE)
    if model.trained_span:
        low, high = model.trained_span
        lines.append(f"Orange values are outside the range seen in training, {low:g} to {high:g}.")
    return lines


def _blocks(model, references, information, factor_names=None, values=VALUES, by_latent=False):
    """The tables that `traversal` stacks."""
    order, nats = rank(model, information)
    factors = [""] * len(nats) if factor_names is None else factor_names
    if len(factors) != len(nats):
        raise ValueError(f"factor_names: {len(factors)} names given for {len(nats)} latents")
    factors = [name if n >= ACTIVE_NATS else "" for name, n in zip(factors, nats, strict=True)]
    texts = [f"z{d}  {model.information_name} {n:z.1f}\n{factors[d]}" for d, n in enumerate(nats)]
    labels = [latent_label(text.strip(), n) for text, n in zip(texts, nats, strict=True)]
    steps, codes = torch.linspace(*model.span, values), codes_of(model, references)
    columns = [value_label(model, value) for value in steps.tolist()]
    cells, decoded = sweep(model, codes, steps), model.decode(codes).float().cpu()
    nearest = (steps - codes.cpu()[..., None]).abs().argmin(-1)  # (R, D)
    nearest[:, torch.tensor(nats) < ACTIVE_NATS] = NO_MARK
    blocks = []
    for d in order if by_latent else []:
        name, rows = labels[d][0].replace("\n", "   "), [(name, INK) for name in references]
        groups = [(fade(cells[:, d], nats[d]), columns)]
        blocks.append(table(name, rows, groups, marks=nearest[:, d].tolist()))
    sides, names = beside(references, decoded)
    for r, name in enumerate(references if not by_latent else []):
        lines = torch.stack([fade(torch.cat([sides[r], cells[r, d]]), nats[d]) for d in order])
        groups = [(lines[:, : len(names)], names), (lines[:, len(names) :], columns)]
        rows = [labels[d] for d in order]
        blocks.append(table(name, rows, groups, marks=nearest[r, order].tolist()))
    return blocks
