"""dSprites (Matthey et al. 2017): 737,280 binary images of a square, an ellipse and a heart."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import files
from data.cache import cached
from data.decoration import PATCH, Decoration, colour, noisy, scream
from data.images import FactorGrid, ImageData, PackedImages
from data.mapped import find_files, foreign

GRID = FactorGrid(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
REFERENCES = {"square": 208400, "ellipse": 454160, "heart": 699920}  # large, tilted, central
SIDE = 64  # pixels
BYTES = SIDE * SIDE // 8  # per packed image
RENDERED_CHECKSUM = "e457ce7b27525b55531e0646755c1b73"  # on every machine, see _snap

OFFICIAL_URL = (
    "https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/"
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
)
# The publishers give no checksum; independent public loaders (latte, vaetc) agree on this one.
OFFICIAL_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"


def load_dsprites(
    cache_dir: Path, *, source: Literal["render", "official"] = "render", path: str | None = None
) -> ImageData:
    """All of dSprites: 64x64 binary images of every combination of five factors.

    Args:
        source: draw the images, or read the published file.
        path: the published npz file, which is downloaded if it does not exist.
    """
    if source == "render":
        if path is not None:
            raise ValueError(f"dataset.path: {path} is not allowed with dataset.source=render")
        packed = cached(cache_dir / "dsprites_rendered.npy", render, RENDERED_CHECKSUM)
    else:
        file = Path(path or cache_dir / Path(OFFICIAL_URL).name).expanduser()
        packed = cached(cache_dir / "dsprites_official.npy", lambda: read_official(file))
    images = PackedImages(torch.from_numpy(packed))
    return ImageData("dsprites", images, GRID, levels=1, references=REFERENCES)


def load_colour(cache_dir: Path) -> ImageData:
    """dSprites with a random colour for each sprite, drawn anew at every step."""
    return replace(load_dsprites(cache_dir), name="colour_dsprites", decoration=Decoration(colour))


def load_noisy(cache_dir: Path) -> ImageData:
    """dSprites in front of uniform noise in three channels, drawn anew at every step."""
    return replace(load_dsprites(cache_dir), name="noisy_dsprites", decoration=Decoration(noisy))


def load_scream(cache_dir: Path, *, path: str) -> ImageData:
    """dSprites as inverted colours of a random patch of a picture, drawn anew at every step.

    Args:
        path: a picture, originally The Scream by Munch; it is scaled to at most 350x274 pixels.
    """
    file = find_files(path, (), "put a picture there, such as a photograph of The Scream")[0]
    with foreign(path), Image.open(file) as image:
        picture = image.convert("RGB")
        picture.thumbnail((350, 274))  # as disentanglement_lib does
    if min(picture.size) <= PATCH:
        size = f"{picture.width}x{picture.height} pixels once it fits into 350x274"
        raise ValueError(f"dataset.path: {path} has {size}; allowed: sides of more than {PATCH}")
    decoration = Decoration(scream, (torch.from_numpy(np.array(picture)),))
    return replace(load_dsprites(cache_dir), name="scream_dsprites", decoration=decoration)


def outlines() -> list[np.ndarray]:
    """Polygons of square, ellipse and heart at scale 1: (2, V) each, x right and y down, pixels."""
    square = 9.6 * np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]])
    t = 2 * np.pi * np.arange(100) / 100
    ellipse = 9.6 * np.stack([1.33 * np.cos(t), np.sin(t) / 1.33])
    t = 2 * np.pi * np.arange(150) / 150
    curve = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    heart = np.stack([9.6 * np.sin(t) ** 3, -19.2 / 29 * curve - 1.44])
    return [square, ellipse, heart]


def render() -> np.ndarray:
    """Draw every image of the grid: (737280, 512) uint8, np.packbits of the row-major pixels.

    The geometry was fitted to the published pictures; 3 pixels differ in 20,000 of them, where a
    vertex or an edge falls within the last bit of the publishers' arithmetic.
    """
    packed = np.empty((*GRID.sizes, SIDE), ">u8")  # a word a pixel row
    centre = 16 + 32 * np.arange(32)[:, None] / 31  # (32, 1), the same for x and y
    polygons, cells = outlines(), list(np.ndindex(GRID.sizes[:3]))
    for shape, scale, orientation in tqdm(cells, desc="render dSprites", delay=1):
        u, v = polygons[shape]
        size, angle = 0.5 + 0.1 * scale, 2 * np.pi * orientation / 39
        x = centre + size * (np.cos(angle) * u + np.sin(angle) * v)  # (32, V)
        y = centre + size * (np.cos(angle) * v - np.sin(angle) * u)
        packed[shape, scale, orientation] = _fill(_snap(x), _snap(y))
    return packed.view(np.uint8).reshape(len(GRID), BYTES)


def _snap(x: np.ndarray) -> np.ndarray:
    # A GPU rounds vertices to 1/256 px. No vertex of the set is nearer than 2.8e-7 to a tie, far
    # more than any float64 sine differs by, so every machine draws the same pictures.
    return np.floor(256 * x + 0.5).astype(np.int64)


def _fill(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fill a polygon at all positions, as a GPU does: a pixel is 1 if its centre is inside.

    x: (X, V), y: (Y, V) vertices in 1/256 px. Returns (X, Y, 64) uint64, a word a pixel row, the
    first pixel in the highest bit. Even-odd rule: each edge flips all pixels right of where it
    crosses a row's centre line. Centres on an edge: left in, right out; bottom in, top out.
    """
    next_x, next_y = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    # An edge crosses the rows whose centre 256 r + 128 is in (min, max] of its two y.
    first = (np.minimum(y, next_y) - 128) // 256 + 1  # (Y, V)
    count = (np.maximum(y, next_y) - 128) // 256 + 1 - first  # (Y, V)
    # One entry per crossing, the same for all X; sorted by the row that it flips.
    edge = np.repeat(np.arange(count.size), count.ravel())
    row = first.ravel()[edge] + np.arange(len(edge)) - (np.cumsum(count) - count.ravel())[edge]
    line = edge // y.shape[1] * SIDE + row  # the rows of all Y images, one below the other
    order = np.argsort(line, kind="stable")
    edge, row, line = edge[order], row[order], line[order]

    vertex = edge % y.shape[1]
    x0, dx = x[:, vertex], (next_x - x)[:, vertex]  # (X, crossings)
    y0, dy = y.ravel()[edge], (next_y - y).ravel()[edge]  # (crossings,)
    # First column c whose centre 256 c + 128 is not left of the crossing x0 + dx (yc - y0) / dy.
    over = ((x0 - 128) * dy + dx * (256 * row + 128 - y0)) * np.sign(dy)
    column = -(-over // (256 * np.abs(dy)))
    flips = np.uint64(2**SIDE - 1) >> column.astype(np.uint64)

    starts = np.flatnonzero(np.diff(line, prepend=-1))
    words = np.zeros((len(x), len(y) * SIDE), np.uint64)
    words[:, line[starts]] = np.bitwise_xor.reduceat(flips, starts, axis=1)
    return words.reshape(len(x), len(y), SIDE)


def read_official(path: Path, url: str = OFFICIAL_URL, md5: str = OFFICIAL_MD5) -> np.ndarray:
    """Read the published npz, downloaded first if it does not exist: (N, 512) uint8, np.packbits.

    It takes 4 GB of memory once. The pickled metadata in the file is never opened.
    """
    from torchvision.datasets.utils import check_integrity, download_url  # slow to import

    if not path.exists():
        try:
            files.write(path, lambda file: download_url(url, file.parent, file.name, md5))
        except (OSError, RuntimeError) as error:
            advice = f"put it at {path} yourself, or use dataset.source=render"
            raise ValueError(f"cannot download {url} ({error}); {advice}") from error
    if not check_integrity(path, md5):
        raise ValueError(f"dataset.path: {path} is not the published file; its MD5 is not {md5}")
    with np.load(path) as arrays:
        images = arrays["imgs"]  # (N, 64, 64) uint8 of 0 and 1
    return np.packbits(images.reshape(len(images), -1), axis=1)
