"""Coloured squares of disent (Michlo et al. 2023), https://github.com/nmichlo/disent."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.images import FactorGrid, ImageData, PackedImages

SIDE = 64  # pixels of an image
PLACES, SQUARE = 8, 8  # of XYSquares: places a side, pixels
SCALES = range(7, 16, 2)  # of XYObject: pixels
STRIDE = 2  # of XYObject: pixels between places
HUES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])
COLOURS = np.concatenate([255 * HUES * level // 4 for level in (1, 2, 3, 4)])  # (24, 3)


def load_xysquares(cache_dir: Path, *, spacing: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 8) -> ImageData:
    """XYSquares: a red, a green and a blue square of 8 pixels, each at 8x8 places.

    Args:
        spacing: pixels between places; squares at neighbouring places overlap below 8.
    """
    offset = (SIDE - SQUARE - (PLACES - 1) * spacing) // 2
    masks = np.zeros((PLACES, PLACES, SIDE, SIDE), np.uint8)
    for x, y in np.ndindex(PLACES, PLACES):
        left, top = offset + spacing * x, offset + spacing * y
        masks[x, y, top : top + SQUARE, left : left + SQUARE] = 1
    squares = np.packbits(masks.reshape(PLACES**2, -1), axis=1)  # (64, 512)
    packed = np.empty((*3 * (PLACES**2,), 3, squares.shape[1]), np.uint8)
    packed[..., 0, :] = squares[:, None, None]
    packed[..., 1, :] = squares[:, None]
    packed[..., 2, :] = squares
    grid = FactorGrid(("x_R", "y_R", "x_G", "y_G", "x_B", "y_B"), 6 * (PLACES,))
    images = PackedImages(torch.from_numpy(packed.reshape(len(grid), -1)), (3, SIDE, SIDE))
    return ImageData("xysquares", images, grid, levels=1)


def load_xyobject(cache_dir: Path) -> ImageData:
    """XYObject: one square at 25x25 places, in five sizes and 24 colours, as in disent 0.3."""
    places = (SIDE - SCALES[-1]) // STRIDE + 1
    grid = FactorGrid(("x", "y", "scale", "color"), (places, places, len(SCALES), len(COLOURS)))
    images = np.zeros((*grid.sizes, 3, SIDE, SIDE), np.uint8)
    for x, y, scale in np.ndindex(grid.sizes[:3]):
        size = SCALES[scale]
        margin = (SCALES[-1] - size) // 2
        left, top = STRIDE * x + margin, STRIDE * y + margin
        images[x, y, scale, :, :, top : top + size, left : left + size] = COLOURS[..., None, None]
    return ImageData("xyobject", torch.from_numpy(images.reshape(-1, 3, SIDE, SIDE)), grid)
