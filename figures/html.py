"""Reports as HTML: one file each, everything inside it, opened from the disk without a network.

Tables come as cells of text, pictures as paths, models as in the other modules of this folder.
"""

import base64
import io
from collections.abc import Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
from PIL import Image
from torch import Tensor, nn

from figures.canvas import ACTIVE_NATS, replace
from figures.latents import SHARE, codes_of, rank, sweep

VALUES = 13  # frames of a slider
SIDE = 128  # pixels of a sprite on the screen: twice that of an image
LIMIT = 5_000_000  # bytes of a page
MARKUP = 100_000  # bytes of a page that are neither pictures nor tables, rounded up
MIME = {".png": "image/png", ".gif": "image/gif"}


class Table(NamedTuple):
    """A table of text; links: for each row where its first cell leads to, or none at all."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    links: Sequence[str] = ()


def study_page(path: str | PathLike, *, pictures: dict[str, Path], **content: Any) -> Path:
    """Write the page of a study.

    content: title, note, tables, commands (lines) and provenance (a table); pictures: what is said
    below each -> its file. Raises ValueError where the page would be larger than LIMIT.
    """
    return _write(path, "study.html", content, pictures)


@torch.inference_mode()
def run_page(
    path: str | PathLike,
    model: nn.Module,
    references: dict[str, Tensor],
    information: Sequence[float],
    *,
    factor_names: Sequence[str] | None,
    pictures: dict[str, Path],
    **content: Any,
) -> Path:
    """Write the page of a run, with a slider a latent over model.span.

    references and information (D,) as in `latents.traversal`, the first latents by information
    where not all fit; content: title, note, scores and
    facts (tables), how, commands (lines), configuration. Raises ValueError as `study_page` does.
    """
    order, nats = rank(model, information)
    values, codes = torch.linspace(*model.span, VALUES), codes_of(model, references)
    frames = sweep(model, codes, values)[:, order]  # (R, D, V, C, H, W)
    decoded = model.decode(codes).float().cpu()
    kept = len(order)
    while True:
        sprites = [_sprite(row[:kept]) for row in frames]
        if kept == 1 or sum(map(len, sprites)) <= LIMIT - 4 * MARKUP:
            break
        kept //= 2
    low, high = model.trained_span or model.span
    latents = [
        {
            "index": d,
            "nats": f"{nats[d]:z.2f}",
            "alive": nats[d] >= ACTIVE_NATS,
            "factor": factor_names[d] if factor_names and nats[d] >= ACTIVE_NATS else "",
            "start": int((values - codes[0, d].cpu()).abs().argmin()),
        }
        for d in order[:kept]
    ]
    shown = [
        {
            "name": name,
            "image": _sprite((image if image.ndim > 1 else decoded[r])[None, None]),
            "sprite": sprites[r],
        }
        for r, (name, image) in enumerate(references.items())
    ]
    names = [f"{value:z.2f}" for value in values.tolist()]
    outside = [not low - 1e-6 <= value <= high + 1e-6 for value in values.tolist()]
    content |= {"latents": latents, "references": shown, "values": names, "side": SIDE}
    content["beyond"] = [name for name, out in zip(names, outside, strict=True) if out]
    content["share"] = SHARE if factor_names else ""
    content |= {"information_name": model.information_name, "left_out": len(order) - kept}
    return _write(path, "run.html", content, pictures)


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as the address of themselves."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _sprite(images: Tensor) -> str:
    """Images (rows, columns, C, H, W) in [0, 1] as one PNG with nothing between them."""
    rows, columns, channels, height, width = images.shape
    pixels = images.float().cpu().clamp(0, 1).mul(255).round().byte()
    pixels = pixels.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    page = Image.fromarray(pixels.squeeze(-1).numpy())
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    return data_uri(data.getvalue(), "image/png")


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    settings = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **settings)


def _write(
    path: str | PathLike, template: str, content: dict[str, Any], pictures: dict[str, Path]
) -> Path:
    """Fill a template; the first pictures that fit under LIMIT are in the page, others named."""
    room = LIMIT - MARKUP - sum(len(str(value)) for value in content.values())
    embedded = []
    for title, file in pictures.items():
        uri = data_uri(file.read_bytes(), MIME[file.suffix])
        fits = len(uri) <= room
        room -= len(uri) if fits else 0
        embedded.append({"title": title, "file": file.name, "uri": uri if fits else ""})
    page = _templates().get_template(template).render(content, pictures=embedded).encode()
    if len(page) > LIMIT:
        raise ValueError(f"{path} would have {len(page):,} bytes; {LIMIT:,} are allowed")
    return replace(path, page)
