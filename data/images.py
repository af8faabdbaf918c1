"""A data set in memory: all images in one tensor, so that a batch is an index, and the factors."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from data.batches import Batches
from data.cache import checksum
from data.decoration import Decoration

SAMPLED_IMAGES = 256  # of a large set, for its fingerprint


@dataclass(frozen=True)
class FactorGrid:
    """Names and sizes of K factors; image i shows the i-th of all combinations, row-major."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return prod(self.sizes)

    def factors(self, index: np.ndarray) -> np.ndarray:
        """Return the factor values of some images: index (n,) -> (n, K) int64."""
        return np.stack(np.unravel_index(index, self.sizes), axis=-1)


@dataclass(frozen=True, eq=False)
class FactorTable:
    """Names of K factors and their values (N, K) for every image, integers or floats."""

    names: tuple[str, ...]
    values: np.ndarray

    def __repr__(self) -> str:
        return f"FactorTable(names={self.names}, values={checksum(self.values)})"

    def __len__(self) -> int:
        return len(self.values)

    def factors(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


class PackedImages:
    """Binary images (N, C, H, W) as np.packbits of their row-major pixels: (N, C*H*W/8) uint8."""

    def __init__(self, packed: Tensor, image_shape: tuple[int, int, int] = (1, 64, 64)) -> None:
        self.packed, self.device = packed, packed.device
        self.shape = torch.Size((len(packed), *image_shape))

    def to(self, device: torch.device | str) -> "PackedImages":
        return PackedImages(self.packed.to(device), self.shape[1:])

    def batch(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Unpack the images at index (B,) int64 into (B, C, H, W) of dtype, 0 and 1."""
        rows = self.packed.index_select(0, index)  # (B, bytes)
        # a table row per byte gives eight pixels in their final type, with no uint8 image between
        table = _bit_table(dtype, self.device)  # (256, 8)
        return table.index_select(0, rows.flatten().int()).view(len(rows), *self.shape[1:])


@lru_cache
def _bit_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(bits).to(device, dtype)


@dataclass(frozen=True)
class ImageData:
    """A data set: its images and the factors behind them, if these are known."""

    name: str
    images: Tensor | PackedImages  # (N, C, H, W) uint8
    grid: FactorGrid | FactorTable | None
    levels: int = 255  # the uint8 value that means 1.0
    references: dict[str, int] = field(default_factory=dict)  # name -> index, see reference_images
    is_sampled: bool = False  # the fingerprint reads some images, as the set may exceed the memory
    nuisance: tuple[str, ...] = ()  # names of factors that are not scored
    decoration: Decoration | None = None  # of packed sprites, drawn into every batch
    kept: Tensor | None = None  # rows (n,) int64 of the images that are trained on, if not all
    cumulative: Tensor | None = None  # (n,) float64, see Batches

    def __post_init__(self) -> None:
        if self.grid is not None and len(self.grid) != len(self):
            raise ValueError(f"there are {len(self)} images, but factors for {len(self.grid)}")

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def num_training(self) -> int:
        """The number of different images that are trained on."""
        return len(self) if self.kept is None else len(self.kept)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """Rows of the images that are trained on and of the others; none if all are."""
        if self.kept is None:
            return {}
        held_out = np.delete(np.arange(len(self)), self.kept.numpy())
        return {"kept": self.kept.numpy(), "held_out": held_out}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        shape = tuple(self.images.shape[1:])
        return shape if self.decoration is None else (3, *shape[1:])

    def batch(
        self, index: Tensor, dtype: torch.dtype = torch.float32, key: int | Tensor = 0
    ) -> Tensor:
        """Return the images at index (B,) int64 as (B, C, H, W) of dtype in [0, 1].

        Args:
            key: selects the decoration of each image, if there is one; 0 is for evaluation.
        """
        device = self.images.device
        if device.type == "cuda" and index.device.type == "cpu":
            index = index.pin_memory()  # so that the copy does not wait for queued work
        index = index.to(device, non_blocking=True)
        if self.decoration is not None:
            sprites = self.images.batch(index, torch.float32)
            return self.decoration(sprites, index, key).to(dtype)
        if isinstance(self.images, PackedImages):
            return self.images.batch(index, dtype)
        return self.images.index_select(0, index).to(dtype).div_(self.levels)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the images, and the factors; equal only for equal data sets."""
        images = self.images.packed if isinstance(self.images, PackedImages) else self.images
        if self.is_sampled:
            rows = torch.linspace(0, len(self) - 1, SAMPLED_IMAGES, dtype=torch.float64).long()
            sample = images[rows.to(images.device)].cpu().contiguous().numpy()
            return f"{checksum(sample)} of {tuple(images.shape)} {self.grid}"
        suffix = "" if self.decoration is None else f" {self.decoration}"
        return f"{checksum(images.cpu().contiguous().numpy())} {self.grid}{suffix}"

    def reference_images(self) -> dict[str, Tensor]:
        """Return the images that pictures start from: name -> (C, H, W) float32 in [0, 1]."""
        n = len(self)
        index = self.references or {f"image {i:,}": i for i in (n // 6, n // 2, 5 * n // 6)}
        return {name: self.batch(torch.tensor([i]))[0] for name, i in index.items()}

    def random_index(self, n: int, seed: int) -> Tensor:
        """Return the index of n images drawn with replacement, a function of the seed."""
        return torch.randint(len(self), (n,), generator=torch.Generator().manual_seed(seed))

    def training_index(self, n: int, seed: int) -> Tensor:
        """Return the index of n random images, as frequent as in training."""
        if self.kept is None and self.cumulative is None:
            return self.random_index(n, seed)
        return Batches(self.num_training, n, seed, kept=self.kept, cumulative=self.cumulative)[0]

    def to(self, device: torch.device | str) -> "ImageData":
        decoration = self.decoration and self.decoration.to(device)
        return replace(self, images=self.images.to(device), decoration=decoration)
