"""Published data sets, read from the files of their authors."""

import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from data.images import FactorGrid, ImageData
from data.mapped import Parts, Size, find_files, foreign, load_mapped, slices

SHAPES3D = FactorGrid(
    ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"), (10, 10, 10, 8, 4, 15)
)
CARS3D = FactorGrid(("car", "azimuth", "elevation"), (183, 24, 4))
SMALLNORB = FactorGrid(
    ("category", "instance", "elevation", "azimuth", "lighting"), (5, 10, 9, 18, 6)
)
NORB_FILES = (
    "smallnorb-5x46789x9x18x6x2x96x96-training",
    "smallnorb-5x01235x9x18x6x2x96x96-testing",
)
NORB_TYPES = {507333717: np.dtype("u1"), 507333716: np.dtype("<i4")}  # magic number -> type
MPI3D_NAMES = (
    *("object_colour", "object_shape", "object_size", "camera_height", "background_colour"),
    *("horizontal_axis", "vertical_axis"),
)
MPI3D_SIZES = ((4, 4, 2, 3, 3, 40, 40), (6, 6, 2, 3, 3, 40, 40))  # of the two published lengths


def load_shapes3d(cache_dir: Path, *, path: str, size: Size = 64) -> ImageData:
    """3D Shapes (Burgess & Kim 2018): 480,000 pictures of an object in a room, six factors.

    Args:
        path: the published file 3dshapes.h5.
        size: pixels; the published pictures have 64.
    """
    url = "https://storage.googleapis.com/3d-shapes/3dshapes.h5"
    files = find_files(path, (".h5",), f"download {url} and put it there")
    parts = partial(read_shapes3d, files[0])
    return load_mapped("shapes3d", cache_dir, path, files, parts, SHAPES3D, size=size)


def read_shapes3d(file: str) -> Parts:
    """Yield the images of 3dshapes.h5; its labels must be the full row-major grid."""
    import h5py  # optional

    with h5py.File(file) as content:
        columns = content["labels"][:].T  # of float64 values
        values = [np.unique(column, return_inverse=True)[1] for column in columns]
        factors = SHAPES3D.factors(np.arange(len(SHAPES3D)))
        if not np.array_equal(np.stack(values, axis=1), factors):
            raise ValueError(f"labels {columns.T.shape} are not the grid {SHAPES3D.sizes}")
        for rows in slices(len(content["images"])):
            yield rows, content["images"][rows]


def load_cars3d(cache_dir: Path, *, path: str, size: Size = 64) -> ImageData:
    """Cars3D (Reed et al. 2015): 17,568 pictures of 183 cars, azimuth and elevation.

    Args:
        path: the published archive, or the folder `cars` in it.
        size: pixels; the published pictures have 128.
    """
    url = "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz"
    files = find_files(path, (".mat",), f"download {url} and put it there")
    parts = partial(read_cars3d, files)
    return load_mapped("cars3d", cache_dir, path, files, parts, CARS3D, size=size)


def read_cars3d(files: list[str]) -> Parts:
    """Yield the pictures of a car at a time; cars are numbered by the names of their files."""
    from scipy.io import loadmat

    cars, views = CARS3D.sizes[0], prod(CARS3D.sizes[1:])
    with _mat_files(files) as (names, contents):
        if len(names) != cars:
            raise ValueError(f"there are {len(names)} files of cars, not {cars}")
        for name, content in contents:
            images = loadmat(content, variable_names=["im"])["im"]  # (128, 128, 3, 24, 4)
            if images.shape[3:] != CARS3D.sizes[1:]:
                raise ValueError(f"{name}: im is {images.shape}")
            images = images.transpose(3, 4, 0, 1, 2).reshape(views, *images.shape[:3])
            start = sorted(names).index(name) * views
            yield slice(start, start + views), images


@contextmanager
def _mat_files(files: list[str]) -> Iterator[tuple[list[str], Iterator[tuple[str, str | IO]]]]:
    """The names of the files of cars, and pairs of a name and what loadmat reads."""
    if files[0].endswith(".mat"):
        yield files, zip(files, files, strict=True)
        return
    with tarfile.open(files[0]) as tar:  # read twice in its own order, as it is compressed
        members = [m for m in tar if "/cars/" in f"/{m.name}" and m.name.endswith(".mat")]
        yield [m.name for m in members], ((m.name, tar.extractfile(m)) for m in members)


def load_smallnorb(cache_dir: Path, *, path: str, size: Size = 64) -> ImageData:
    """SmallNORB (LeCun et al. 2004): 48,600 grey pictures of 50 toys, by the left camera.

    The toy of a category (`instance`) is a nuisance factor: it is not scored.

    Args:
        path: the folder with the six published files, unpacked.
        size: pixels; the published pictures have 96.
    """
    advice = (
        "download the six files at https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/, unpack them "
        "with gunzip and put them there"
    )
    files = find_files(path, (".mat",), advice)
    parts = partial(read_smallnorb, os.path.expanduser(path))
    settings = {"size": size, "channels": 1, "nuisance": ("instance",)}
    return load_mapped("smallnorb", cache_dir, path, files, parts, SMALLNORB, **settings)


def read_smallnorb(folder: str) -> Parts:
    """Yield the pictures of both splits, which fill the grid together."""
    for prefix in NORB_FILES:
        names = [f"{folder}/{prefix}-{part}.mat" for part in ("dat", "cat", "info")]
        images, category, info = map(read_norb, names)  # (N, 2, 96, 96), (N,), (N, 4)
        instance, elevation, azimuth, lighting = info.T
        factors = category, instance, elevation, azimuth // 2, lighting  # it is 0, 2, ..., 34
        rows = np.ravel_multi_index(factors, SMALLNORB.sizes)
        for part in slices(len(images)):
            yield rows[part], np.array(images[part, 0, :, :, None])


def read_norb(file: str) -> np.ndarray:
    """Map the array in a file of SmallNORB: magic number, dimensions, sizes, values."""
    magic, ndim = np.fromfile(file, "<i4", 2)
    if magic not in NORB_TYPES:
        raise ValueError(f"{file} starts with {magic}; allowed: {', '.join(map(str, NORB_TYPES))}")
    dtype, offset = NORB_TYPES[magic], 4 * (2 + max(3, ndim))  # there are three sizes at least
    shape = np.fromfile(file, "<i4", ndim, offset=8)
    if os.path.getsize(file) != offset + prod(shape.tolist()) * dtype.itemsize:
        raise ValueError(f"{file} is truncated")
    return np.memmap(file, dtype, "r", offset, tuple(shape))


def load_mpi3d(cache_dir: Path, *, path: str, size: Size = 64) -> ImageData:
    """MPI3D (Gondal et al. 2019): 460,800 or 1,036,800 pictures of a robot arm, seven factors.

    Args:
        path: one of the published files mpi3d_toy.npz, mpi3d_realistic.npz and mpi3d_real.npz.
        size: pixels; the published pictures have 64.
    """
    url = "https://github.com/rr-learning/disentanglement_dataset"
    files = find_files(path, (".npz",), f"download a file that {url} links to and put it there")
    grids = {prod(sizes): FactorGrid(MPI3D_NAMES, sizes) for sizes in MPI3D_SIZES}
    with foreign(path), _npz_images(files[0]) as (_, shape):
        if shape[0] not in grids:
            raise ValueError(f"it has {shape[0]:,} images; allowed: {', '.join(map(str, grids))}")
    parts, grid = partial(read_mpi3d, files[0]), grids[shape[0]]
    return load_mapped("mpi3d", cache_dir, path, files, parts, grid, size=size)


def read_mpi3d(file: str) -> Parts:
    """Yield the images of an npz file, which is never unpacked as a whole."""
    with _npz_images(file) as (stream, shape):
        for rows in slices(shape[0]):
            content = stream.read((rows.stop - rows.start) * prod(shape[1:]))
            yield rows, np.frombuffer(bytearray(content), np.uint8).reshape(-1, *shape[1:])


@contextmanager
def _npz_images(file: str) -> Iterator[tuple[IO, tuple[int, ...]]]:
    """The bytes of the array `images` in an npz file, and its shape."""
    with zipfile.ZipFile(file) as archive, archive.open("images.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # np.savez's
        if is_fortran or dtype != np.uint8 or len(shape) != 4:
            raise ValueError(f"images are {dtype} {shape}")
        yield stream, shape
