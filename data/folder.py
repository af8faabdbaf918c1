"""Folders of pictures with a table of labels: one's own, and CelebA."""

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from data.images import FactorTable, ImageData
from data.mapped import Parts, Size, find_files, load_mapped, slices

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


def load_folder(
    cache_dir: Path,
    *,
    path: str,
    labels: str | None = None,
    size: Size = 64,
    channels: Literal[1, 3] = 3,
) -> ImageData:
    """The pictures in a folder and the folders below it, sorted by name, with labels if known.

    The middle square of each picture is scaled to the size.

    Args:
        path: the folder.
        labels: a CSV file; its first column names a picture of the folder, the others are factors.
        size: pixels.
        channels: 1 turns colours to grey.
    """
    files = find_files(path, SUFFIXES, f"put pictures there ({', '.join(SUFFIXES)})")
    table = None if labels is None else _table(labels, path, files)
    parts = partial(read_pictures, files, size, channels)
    settings = {"size": size, "channels": channels}
    return load_mapped("folder", cache_dir, path, files, parts, table, **settings)


def load_celeba(cache_dir: Path, *, path: str, size: Size = 64) -> ImageData:
    """CelebA (Liu et al. 2015): 202,599 faces; 40 attributes, if their file is there.

    Args:
        path: the folder with the folder img_align_celeba and the file list_attr_celeba.txt.
        size: pixels of the middle square; the published pictures have 178x218.
    """
    root = Path(path).expanduser()
    url = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    advice = f"download img_align_celeba.zip ({url}) and unpack it there"
    pictures, attributes = root / "img_align_celeba", root / "list_attr_celeba.txt"
    files = find_files(pictures, SUFFIXES, advice)
    table = None
    if attributes.exists():  # the first line is the number of pictures, the values are -1 and 1
        table = _table(attributes, pictures, files, sep=r"\s+", skiprows=1)
        table = FactorTable(table.names, (table.values > 0).astype(np.int64))
    parts = partial(read_pictures, files, size, 3)
    return load_mapped("celeba", cache_dir, pictures, files, parts, table, size=size)


def read_pictures(files: list[str], size: int, channels: int) -> Parts:
    """Yield the middle squares of picture files, scaled with antialiasing."""
    mode, box = "L" if channels == 1 else "RGB", (size, size)
    for rows in slices(len(files)):
        images = np.empty((len(files[rows]), *box, channels), np.uint8)
        for row, file in enumerate(files[rows]):
            try:
                with Image.open(file) as picture:
                    square = ImageOps.fit(picture.convert(mode), box, Image.Resampling.BILINEAR)
            except (OSError, SyntaxError, ValueError) as error:  # of Pillow, at other content
                raise ValueError(f"{file}: {error}") from error
            images[row] = np.asarray(square).reshape(*box, channels)
        yield rows, images


def _table(path: str | Path, folder: str | Path, files: list[str], **options: Any) -> FactorTable:
    """The labels in a text file with one row a picture; text becomes the number of a class."""
    where = f"dataset.labels: {path}"
    try:
        frame = pd.read_csv(Path(path).expanduser(), **options)
    except ValueError as error:
        raise ValueError(f"{where} is no table of labels ({error})") from error
    if isinstance(frame.index, pd.RangeIndex):  # else there is one name less than columns
        frame = frame.set_index(frame.columns[0])
    start = len(os.path.join(os.path.normpath(os.path.expanduser(folder)), ""))
    names = [file[start:] for file in files]
    rows, pictures = set(frame.index.tolist()), set(names)
    if absent := sorted(pictures - rows):
        raise ValueError(f"{where} has no row for the picture {absent[0]}")
    if absent := sorted(rows - pictures):
        raise ValueError(f"{where} has a row for {absent[0]}, but there is no such picture")
    if len(frame) > len(names) or frame.shape[1] == 0 or frame.isna().any(axis=None):
        raise ValueError(f"{where} needs one row a picture, a factor at least and no empty cell")
    frame = frame.loc[names]
    for name in frame.select_dtypes(exclude="number"):
        frame[name] = np.unique(frame[name].astype(str), return_inverse=True)[1]
    return FactorTable(tuple(map(str, frame.columns)), np.ascontiguousarray(frame.to_numpy()))
