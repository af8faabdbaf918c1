"""What pictures are made of: sprites as tiles and tables, text, pages, atomic PNG and GIF files."""

import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

ACTIVE_NATS = 0.05  # a latent below it carries nothing that a decoder could use: drawn grey
SPRITE = 64  # smaller images are enlarged by a whole factor until both sides reach this, in pixels
BORDER = 1  # grey line between sprites
GAP = 12  # white space between parts
TEXT, LINE = 13, 17  # size and line height in pixels; 12 px are 9 pt on a screen
INK, GREY, ORANGE, BLUE = (30, 30, 30), (125, 125, 125), (205, 85, 0), (40, 110, 220)
MANY_COLOURS = 4096  # a page with more distinct colours shows colour images and is not reduced
COLOURS = 64  # of a page of grey sprites: no shade is off by more than 2 %
GIF_COLOURS = 32
NO_MARK = -1  # for a row of a table without a frame
Label = tuple[str, tuple[int, int, int]]  # text of one line or more, and its colour


def tile(images: Tensor, columns: int) -> Image.Image:
    """Set images (n, C, H, W) in [0, 1] as a grid, row by row, each SPRITE pixels or more."""
    zoom = -(-SPRITE // min(images.shape[-2:]))
    images = images.float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    images = images.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
    if len(images) == 1:  # make_grid leaves a single image without its border
        grid = pad(images[0], [BORDER] * 4, value=0.55)
    else:
        grid = make_grid(images, nrow=columns, padding=BORDER, pad_value=0.55)
    return Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy())


def table(
    title: str,
    rows: Sequence[Label],
    groups: Sequence[tuple[Tensor, Sequence[Label]]],
    *,
    marks: Sequence[int] = (),
    below: bool = False,
) -> Image.Image:
    """Set sprites in labelled rows and columns.

    Each group is cells (rows, columns, C, H, W) with the labels of its columns, above or below it;
    groups stand side by side. marks has for each row the column of the last group to frame in blue.
    """
    grids = [tile(cells.flatten(0, 1), len(columns)) for cells, columns in groups]
    lines = max(text.count("\n") + bool(text) for _, columns in groups for text, _ in columns)
    left = text_width([text for text, _ in rows]) + GAP
    top = 24 * bool(title) + (0 if below else LINE * lines + 4)
    width = left + sum(grid.width + GAP for grid in grids) - GAP
    bottom = top + grids[0].height
    page = Image.new("RGB", (width, bottom + below * (LINE * lines + 4)), "white")
    write(page, (0, 0), title, size=15, bold=True)
    height = (grids[0].height - BORDER) // len(rows)
    for row, (text, colour) in enumerate(rows):
        write(page, (0, top + (row + 0.5) * height), text, colour, anchor="lm")
    for grid, (_, columns) in zip(grids, groups, strict=True):
        page.paste(grid, (left, top))
        width, start = (grid.width - BORDER) // len(columns), left
        for column, (text, colour) in enumerate(columns):
            at = (left + (column + 0.5) * width, bottom + 4 if below else top - 4)
            write(page, at, text, colour, anchor="ma" if below else "md")
        left += grid.width + GAP
    for row, column in enumerate(marks):
        if column != NO_MARK:
            x, y = start + column * width, top + row * height
            ImageDraw.Draw(page).rectangle((x, y, x + width, y + height), outline=BLUE, width=2)
    return page


@cache
def font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans as it comes with matplotlib; basic layout, so that all machines agree."""
    file = Path(matplotlib.get_data_path(), "fonts/ttf", f"DejaVuSans{'-Bold' * bold}.ttf")
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def text_width(texts: Sequence[str], size: int = TEXT, bold: bool = False) -> int:
    """Return the width in pixels of the longest line of all texts (0 without any)."""
    lines = [line for text in texts for line in text.split("\n")]
    return max((int(font(size, bold).getlength(line)) + 1 for line in lines), default=0)


def write(
    page: Image.Image, xy: tuple, text: str, fill=INK, *, size=TEXT, bold=False, anchor="la"
) -> None:
    """Write text at xy; anchor as in Pillow: "la" its left top, "mm" its middle."""
    align = "left" if anchor[0] == "l" else "center"
    ImageDraw.Draw(page).text(xy, text, fill, font(size, bold), anchor, align=align)


def heading(title: str, *lines: str) -> Image.Image:
    """Return a title with explaining lines under it."""
    width = max(text_width([title], 18, True), text_width(lines))
    page = Image.new("RGB", (width, 28 + LINE * len(lines)), "white")
    write(page, (0, 0), title, size=18, bold=True)
    write(page, (0, 28), "\n".join(lines))
    return page


def stack(parts: Sequence[Image.Image]) -> Image.Image:
    """Put parts under each other, left-aligned, on a white page."""
    width = max(part.width for part in parts) + 2 * GAP
    page = Image.new("RGB", (width, GAP + sum(part.height + GAP for part in parts)), "white")
    y = GAP
    for part in parts:
        page.paste(part, (GAP, y))
        y += part.height + GAP
    return page


def save_png(page: Image.Image, path: str | os.PathLike, colours: int = COLOURS) -> Path:
    """Write a page as a PNG without metadata, with a palette where its colours are few."""
    if page.getcolors(MANY_COLOURS):
        page = page.quantize(colours, Image.Quantize.MAXCOVERAGE)
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    return replace(path, data.getvalue())


def save_gif(pages: Sequence[Image.Image], pauses: Sequence[int], path: str | os.PathLike) -> Path:
    """Write pages of one size as an endless GIF with one palette; pauses in milliseconds."""
    width, height = pages[0].size
    film = Image.new("RGB", (width, height * len(pages)))
    for index, page in enumerate(pages):
        film.paste(page, (0, index * height))
    colours = GIF_COLOURS if film.getcolors(MANY_COLOURS) else 256
    film = film.quantize(colours, Image.Quantize.MAXCOVERAGE)
    first, *rest = (film.crop((0, y, width, y + height)) for y in range(0, film.height, height))
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=list(pauses), loop=0)
    return replace(path, data.getvalue())


def replace(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file atomically, making its folder: readers see the old bytes or all the new ones."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
