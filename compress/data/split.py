"""What a dataset is in memory; imports no array library, so that planning can name these types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RULE_VERSION = 1  # bump when the same files would be split or selected in another way
HIDDEN = -1  # the label of a sample whose label may not be read


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split, with their labels.

    Attributes:
        name: train, validation, test or calibration.
        images: (n, channels, height, width), uint8.
        labels: (n,), int64, in [0, classes); HIDDEN where there is none, or none that may be read.
        ids: where each sample came from, e.g. `train/cat/07.png`.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            ValueError: dtype, rank or sample counts are wrong.
        """
        if str(self.images.dtype) != "uint8" or self.images.ndim != 4:
            raise ValueError(f"images: got {self.images.dtype} {self.images.shape}, expected uint8 (n, c, h, w)")
        if str(self.labels.dtype) != "int64" or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: got {self.labels.dtype} {self.labels.shape}, expected int64 (n,)")
        if len(self.ids) != len(self.images):
            raise ValueError(f"ids: got {len(self.ids)}, expected {len(self.images)}")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def digests(self) -> tuple[str, ...]:
        """Return the SHA-256 of each image's pixels, hexadecimal, in sample order."""
        return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in self.images)

    def take(self, indices: NDArray[np.int64], name: str | None = None) -> Split:
        """Return the samples at `indices`, (k,), in that order."""
        ids = tuple(self.ids[i] for i in indices.tolist())
        return Split(name or self.name, self.images[indices], self.labels[indices], ids)

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel, of pixels / 255.

        The deviation is at least 1 / 255, so that a constant channel can be divided by it.
        Sums are of integers, hence the same on every machine.
        """
        sums, squares = [0] * self.images.shape[1], [0] * self.images.shape[1]
        for start in range(0, len(self), 4096):  # wide integers of the whole split would need 16 times its memory
            pixels = self.images[start : start + 4096].astype("uint64")
            for channel in range(len(sums)):
                sums[channel] += int(pixels[:, channel].sum())
                squares[channel] += int((pixels[:, channel] ** 2).sum())
        n = self.images[:, 0].size
        mean = tuple(s / n / 255 for s in sums)
        variances = [(q * n - s * s) / (n * n) for s, q in zip(sums, squares, strict=True)]
        return mean, tuple(max(v**0.5, 1.0) / 255 for v in variances)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits and perhaps images without label, disjoint by content.

    Attributes:
        name: the dataset's name in the recipe.
        classes: class names in label order.
        image_shape: (channels, height, width).
        notes: sentences for people, e.g. how many duplicates were left out.
        unlabelled: training images without label, or None.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()
    unlabelled: Split | None = None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, hexadecimal, whatever the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
