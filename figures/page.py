"""Pages as HTML: one file each with everything inside it, opened without a network."""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from torch import Tensor, nn

from figures.canvas import mosaic, to_png
from figures.latents import Names, Nats, References, heading, sweep

VALUES = 13  # positions of a slider


class Table(NamedTuple):
    """A table of text; links: for each row where its first cell leads to, or none at all."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    links: Sequence[str] = ()


def run_page(
    model: nn.Module, references: References, nats: Nats, *, factor_names: Names, **content: Any
) -> bytes:
    """Return the page of a run: a slider for each active latent, pictures by caption, and more.

    That is: title, note, scores and facts (tables), commands (lines) and configuration.
    """
    moved = sweep(model, references, nats, factor_names, VALUES)
    stills = [_sprite(still[None, None]) for still in moved.stills]
    sprites = [_sprite(cells) for cells in moved.cells]
    content |= {
        "heading": heading("Move a latent", nats),
        "latents": list(zip(moved.names, moved.nearest[0], strict=True)),
        "references": list(zip(references, stills, sprites, strict=True)),
        "values": [f"{value:z.2f}" for value in moved.values],
    }
    return render("run.html", **content)


def _sprite(images: Tensor) -> str:
    """Return images (rows, columns, C, H, W) without lines between them as a data: address."""
    return _uri(to_png(mosaic(images, border=0)))


def _uri(data: bytes) -> str:
    """Return a PNG or GIF as a data: address."""
    kind = "gif" if data.startswith(b"GIF") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def render(template: str, *, pictures: dict[str, bytes], **content: Any) -> bytes:
    """Return a page of figures/templates with pictures by caption and other content.

    For study.html that is title, note, tables, commands (lines) and provenance (a table).
    """
    loader, undefined = jinja2.PackageLoader("figures"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=undefined, autoescape=True)
    shown = {caption: _uri(data) for caption, data in pictures.items()}
    return environment.get_template(template).render(content, pictures=shown).encode()
