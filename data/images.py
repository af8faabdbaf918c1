"""A data set in memory: all images in one tensor, so that a batch is an index."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from data.cache import checksum
from data.grid import FactorGrid


class PackedImages:
    """Binary images at one bit a pixel, read like a uint8 tensor (N, C, H, W) of 0 and 1.

    packed: (N, C*H*W/8) uint8 in the order of np.packbits over the row-major pixels. Raises
    ValueError if packed and image_shape (C, H, W) do not fit.
    """

    def __init__(self, packed: Tensor, image_shape: tuple[int, int, int] = (1, 64, 64)) -> None:
        self.packed = packed
        self.shape = torch.Size((len(packed), *image_shape))
        if packed.dtype != torch.uint8 or packed.shape[1:].numel() * 8 != self.shape[1:].numel():
            raise ValueError(f"bits {packed.dtype} {packed.shape} do not make images {image_shape}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.packed)

    @property
    def device(self) -> torch.device:
        """Where the bits are and the unpacked images come out."""
        return self.packed.device

    def to(self, device: torch.device | str) -> "PackedImages":
        """Return the same images with their bits on the device."""
        return PackedImages(self.packed.to(device), self.shape[1:])

    def __getitem__(self, index: int | slice | np.ndarray | Tensor) -> Tensor:
        """Unpack images: an int gives (C, H, W) uint8, a slice or (n,) integers (n, C, H, W).

        Negative values count from the end. Raises IndexError out of range, TypeError for anything
        that is not an integer.
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = torch.as_tensor(index)
        if index.dtype.is_floating_point or index.dtype == torch.bool:
            raise TypeError(f"images are indexed with integers, got {index.dtype}")
        return self._unpack(self.packed[index.to(self.device, torch.int64)], torch.uint8)

    def batch(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpack the images at index (B,) int64 into (B, C, H, W) of dtype, 0 and 1."""
        return self._unpack(self.packed.index_select(0, index), dtype)

    def _unpack(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        # A table row per byte gives eight pixels in their final type, with no uint8 image between.
        pixels = _bit_table(dtype, rows.device).index_select(0, rows.flatten().int())  # (bytes, 8)
        return pixels.view(*rows.shape[:-1], *self.shape[1:])


def _sent(index: Tensor, device: torch.device) -> Tensor:
    """index on the device; to a GPU without waiting for what that still computes."""
    if device.type == "cuda" and index.device.type == "cpu":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)


@lru_cache
def _bit_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # (256, 8)
    return torch.from_numpy(bits).to(device, dtype)


@dataclass(frozen=True)
class ImageData:
    """A data set: images (N, C, H, W) uint8 and the factors that they run through, if known.

    levels is the uint8 value that means 1.0; references names the images (name -> index) that
    pictures start from, three spread over the set if none are given; digest is the cache.checksum
    of the images, where it is known. Raises ValueError if grid and images differ in length.
    """

    name: str
    images: Tensor | PackedImages
    grid: FactorGrid | None
    levels: int = 255
    references: dict[str, int] = field(default_factory=dict)
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and len(self.grid) != len(self):
            raise ValueError(f"factor sizes {self.grid.sizes} do not make {len(self)} images")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image (C, H, W)."""
        return tuple(self.images.shape[1:])

    def batch(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images ready for a network: (B, C, H, W) of dtype in [0, 1], on the images' device.

        index: (B,) int64, there or on the CPU. Raises IndexError out of range (on the CPU).
        """
        index = _sent(index, self.images.device)
        if isinstance(self.images, PackedImages):
            return self.images.batch(index, dtype)
        return self.images.index_select(0, index).to(dtype).div_(self.levels)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the images, and the factors: tells whether two data sets are the same."""
        images = self.images.packed if isinstance(self.images, PackedImages) else self.images
        return f"{self.digest or checksum(images.cpu().contiguous().numpy())} {self.grid}"

    def reference_images(self) -> dict[str, Tensor]:
        """The images that pictures start from: name -> (C, H, W) float32 in [0, 1]."""
        n = len(self)
        spread = {f"image {i:,}": i for i in (n // 6, n // 2, 5 * n // 6)}
        index = self.references or spread
        return {name: self.batch(torch.tensor([i]))[0] for name, i in index.items()}

    def random_index(self, n: int, seed: int) -> Tensor:
        """Rows of n images drawn with replacement, a function of the seed: (n,) int64."""
        return torch.randint(len(self), (n,), generator=torch.Generator().manual_seed(seed))

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the same data set with its images on the device."""
        return replace(self, images=self.images.to(device))
