"""dSprites (Matthey et al. 2017): 737,280 binary images of a square, an ellipse and a heart.

Rendered from their exact geometry, or read from the published file; either way at one bit a pixel.
"""

import hashlib
import http.client
import os
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.request import urlopen

import numpy as np
import torch
from tqdm import tqdm

from data import cache
from data.grid import FactorGrid
from data.images import ImageData, PackedImages
from data.npz import NPZ_ERRORS

GRID = FactorGrid(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
REFERENCES = {"square": 87040, "ellipse": 332800, "heart": 578560}  # of published traversals
SIDE = 64  # pixels
BYTES = SIDE * SIDE // 8  # per packed image
# cache.checksum(render()), the same on every machine; see _snap.
RENDERED_CHECKSUM = "e457ce7b27525b55531e0646755c1b73"

OFFICIAL_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
OFFICIAL_URL = (
    f"https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/{OFFICIAL_FILE}"
)
# The publishers give no checksum; independent public loaders agree on this one (latte, vaetc,
# regression-datasets and others). It guards against damage; the size is the one the server names.
OFFICIAL_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"


def load_dsprites(
    cache_dir: Path,
    *,
    source: Literal["render", "official"] = "render",
    path: str | None = None,
) -> ImageData:
    """Load all of dSprites, from the cache if it was made before.

    source "render": draw the images; "official": read the npz at path (the file, or the folder
    that has it or shall get it; default cache_dir), downloaded first if it is not there. Raises
    ValueError for another source, a path without use or a file of other content, ConnectionError
    if the download fails.
    """
    if source == "render":
        if path is not None:
            raise ValueError(f"dataset.path is {path}, but source 'render' reads no file")
        packed, digest = rendered(cache_dir), RENDERED_CHECKSUM
    elif source == "official":
        path = Path(os.path.expanduser(path)) if path else cache_dir  # unknown ~user: as it is
        is_file = path.is_file() or path.suffix == ".npz"
        packed, digest = official(path if is_file else path / OFFICIAL_FILE, cache_dir), None
    else:
        raise ValueError(f"dataset.source is '{source}', allowed are 'render' and 'official'")
    images = PackedImages(torch.from_numpy(packed))
    return ImageData("dsprites", images, GRID, levels=1, references=REFERENCES, digest=digest)


def rendered(cache_dir: Path) -> np.ndarray:
    """All images, drawn once and then mapped from cache_dir: (737280, 512) uint8, np.packbits."""
    path = cache_dir / "dsprites_rendered.bin"
    packed = cache.read(path, (len(GRID), BYTES), RENDERED_CHECKSUM)
    if packed is None:
        packed = render()
        cache.write(path, packed)
    return packed


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
    shapes, scales, orientations, positions, _ = GRID.sizes
    packed = np.empty((*GRID.sizes, SIDE), ">u8")  # a word a pixel row
    centre = 16 + 32 * np.arange(positions)[:, None] / (positions - 1)  # (32, 1), the same for x, y
    with tqdm(total=shapes * scales * orientations, desc="render dSprites", delay=1) as bar:
        for shape, (u, v) in enumerate(outlines()):
            for scale in range(scales):
                for orientation in range(orientations):
                    size, angle = 0.5 + 0.1 * scale, 2 * np.pi * orientation / (orientations - 1)
                    x = centre + size * (np.cos(angle) * u + np.sin(angle) * v)  # (32, V)
                    y = centre + size * (np.cos(angle) * v - np.sin(angle) * u)
                    packed[shape, scale, orientation] = _fill(_snap(x), _snap(y))
                    bar.update()
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


def official(
    path: Path,
    cache_dir: Path,
    grid: FactorGrid = GRID,
    url: str = OFFICIAL_URL,
    md5: str = OFFICIAL_MD5,
) -> np.ndarray:
    """The images of the published npz, packed once and then mapped: (N, 512) uint8, np.packbits.

    Downloads the file to path if neither it nor its packed form is there. A file with another MD5
    is used, with a line on stderr, if it holds the same grid. Raises ValueError for other content,
    ConnectionError if the download fails.
    """
    found = _md5(path) if path.exists() else md5
    if found != md5:
        print(f"{path} is not the published file (MD5 {found}); reading it anyway", file=sys.stderr)
    stored = cache_dir / f"dsprites_official_{found}.bin"
    packed = cache.read(stored, (len(grid), BYTES))
    if packed is None:
        if not path.exists():
            download(url, path, md5)
        packed = pack_official(path, grid)
        cache.write(stored, packed)
    return packed


def pack_official(path: Path, grid: FactorGrid = GRID) -> np.ndarray:
    """Read the pixels of a dSprites npz in pieces, 1 bit each: (N, 512) uint8, np.packbits.

    The array inside has 3 GB; less than half a GB is held. The pickled `metadata` is never opened.
    Raises ValueError if the file is damaged or its images do not run through the grid.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as member:
            packed = _pack_images(member, len(grid))
        with np.load(path, allow_pickle=False) as arrays:
            classes = arrays["latents_classes"]  # (N, 6), the first is the constant colour
        if not np.array_equal(classes[:, 1:], grid.factors(np.arange(len(grid)))):
            raise ValueError(f"latents_classes do not run through {grid.names} in row-major order")
    except (KeyError, *NPZ_ERRORS) as error:
        raise ValueError(f"{path} is not a dSprites npz: {error}") from error
    return packed


def _pack_images(member: BinaryIO, count: int) -> np.ndarray:
    np.lib.format.read_magic(member)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    if (shape, fortran_order, dtype) != ((count, SIDE, SIDE), False, np.uint8):
        raise ValueError(f"imgs are {dtype} {shape}, not uint8 {(count, SIDE, SIDE)}")
    packed = np.empty((count, BYTES), np.uint8)
    for start in tqdm(range(0, count, 4096), desc="read dSprites", delay=1):  # 16 MB at a time
        part = packed[start : start + 4096]
        pixels = np.frombuffer(member.read(len(part) * SIDE * SIDE), np.uint8)
        if pixels.max() > 1:
            raise ValueError(f"imgs hold {pixels.max()}, allowed are 0 and 1")
        part[:] = np.packbits(pixels.reshape(len(part), -1), axis=1)
    return packed


def download(url: str, path: Path, md5: str) -> None:
    """Fetch a file once: to a temporary file, which becomes path if size and MD5 are right.

    Raises ConnectionError, with one sentence on what to do, if it cannot be had whole.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urlopen(url, timeout=30) as response, cache.replacing(path) as file:
            size = int(response.headers.get("Content-Length", 0)) or None  # None: chunked transfer
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=1) as bar:
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    bar.update(len(piece))
            if size and file.tell() != size:
                raise ConnectionError(f"the transfer ended after {file.tell():,} of {size:,} bytes")
            if digest.hexdigest() != md5:
                raise ConnectionError(f"its MD5 is {digest.hexdigest()} instead of {md5}")
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"cannot download {url} ({error}); put the file at {path} yourself, "
            "or use `source: render`, which needs no file"
        ) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
