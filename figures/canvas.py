"""What pictures are made of: text, sprites in grids and tables, and PNG and GIF bytes."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate, pad

SPRITE = 64  # smaller images are enlarged by a whole factor until both sides reach this, in pixels
LINES = 140  # grey level of the lines between sprites
GAP = 12  # white pixels between parts
INK, BLUE = (30, 30, 30), (40, 110, 220)
MANY_COLOURS = 16384  # a page with more distinct colours shows colour images
COLOURS, GIF_COLOURS = 256, 32  # of pages with grey images


def text(string: str, size: int = 12) -> Image.Image:
    """Return text of one line or more as a picture; size in pixels.

    The font comes with matplotlib and is set in basic layout, so that all machines agree.
    """
    file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    font = ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), string, font)
    page = Image.new("RGB", (int(box[2]) + 1, int(box[3]) + 1), "white")
    ImageDraw.Draw(page).text((0, 0), string, INK, font, align="center")
    return page


def mosaic(images: Tensor, *, border: int = 1) -> Image.Image:
    """Set images (rows, columns, C, H, W) in [0, 1] as a grid with grey lines between them."""
    rows, columns = images.shape[:2]
    pixels = images.float().cpu().clamp(0, 1).mul(255).round().flatten(0, 1)
    pixels = interpolate(pixels, scale_factor=-(-SPRITE // min(images.shape[-2:])))
    pixels = pad(pixels, (border, 0, border, 0), value=LINES)  # each sprite's left and upper line
    pixels = pixels.expand(-1, 3, -1, -1).unflatten(0, (rows, columns))  # (rows, columns, 3, H, W)
    page = pixels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (rows * H, columns * W, 3)
    return Image.fromarray(pad(page, (0, 0, 0, border, 0, border), value=LINES).byte().numpy())


def table(
    cells: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    marks: Sequence[int] = (),
    size: int = 12,
) -> Image.Image:
    """Set images (rows, columns, C, H, W) in a grid, with names at the left and on top.

    `marks` has for each row the column of the cell that gets a blue frame; `size` is of the names.
    """
    grid = mosaic(cells)
    step_x, step_y = grid.width // cells.shape[1], grid.height // cells.shape[0]
    row_names = [text(name, size) for name in rows]
    column_names = [text(name, size) for name in columns]
    left = max(name.width for name in row_names) + GAP
    top = max((name.height + 4 for name in column_names), default=0)
    page = Image.new("RGB", (left + grid.width, top + grid.height), "white")
    page.paste(grid, (left, top))
    for row, name in enumerate(row_names):
        page.paste(name, (0, top + row * step_y + (step_y - name.height) // 2))
    for column, name in enumerate(column_names):
        x = left + column * step_x + (step_x - name.width) // 2
        page.paste(name, (x, top - name.height - 4))
    for row, column in enumerate(marks):
        x, y = left + column * step_x, top + row * step_y
        ImageDraw.Draw(page).rectangle((x, y, x + step_x, y + step_y), outline=BLUE, width=2)
    return page


def stack(*parts: Image.Image) -> Image.Image:
    """Put parts below each other on a white page with a margin."""
    width = max(part.width for part in parts)
    height = sum(part.height + GAP for part in parts)
    page, y = Image.new("RGB", (width + 2 * GAP, height + GAP), "white"), GAP
    for part in parts:
        page.paste(part, (GAP, y))
        y += part.height + GAP
    return page


def beside(*parts: Image.Image) -> Image.Image:
    """Put parts next to each other, with their lower edges on one line."""
    page = Image.new("RGB", (sum(p.width for p in parts), max(p.height for p in parts)), "white")
    x = 0
    for part in parts:
        page.paste(part, (x, page.height - part.height))
        x += part.width
    return page


def to_png(page: Image.Image) -> bytes:
    """Return a PNG without metadata, with a palette unless the page shows colour images."""
    if page.getcolors(MANY_COLOURS):
        page = page.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    return data.getvalue()


def to_gif(pages: Sequence[Image.Image], pauses: Sequence[int]) -> bytes:
    """Return pages of one size as an endless GIF; pauses in milliseconds."""
    colours = GIF_COLOURS if pages[-1].getcolors(MANY_COLOURS) else COLOURS
    first, *rest = [page.quantize(colours, Image.Quantize.MAXCOVERAGE) for page in pages]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=list(pauses), loop=0)
    return data.getvalue()
