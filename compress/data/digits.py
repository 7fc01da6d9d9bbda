"""The digits that scikit-learn carries: 1,797 grey 8x8 images of 10 classes (UCI optical recognition)."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.config import DataConfig
from compress.data.split import RULE_VERSION, Dataset, Split, document_digest
from compress.errors import DataError, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = tuple("0123456789")
SAMPLES = 1797
TEST_SAMPLES = 450
VALIDATION_FRACTION = 0.12


def packaged_file() -> Path:
    """Return the packaged data file without importing scikit-learn.

    Raises:
        UnavailableError: scikit-learn is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise UnavailableError(
        "the digits data come with scikit-learn, which is not installed here", hint="pip install scikit-learn"
    )


def digests(config: DataConfig, base: Path, hash_file: Callable[[Path], str]) -> dict[str, str]:
    """Return the digest of each split; see `compress.data.datasets.split_digests`."""
    file = hash_file(packaged_file())
    learning = {"validation_fraction": fraction(config), "train_samples": config.train_samples}
    options = {"train": learning, "validation": learning, "test": {"test_samples": config.test_samples}}
    return {
        split: document_digest({"dataset": "digits", "rule": RULE_VERSION, "split": split, "file": file, **shaping})
        for split, shaping in options.items()
    }


def fraction(config: DataConfig) -> float:
    """Return the share of the non-test images that is kept for validation."""
    return config.validation_fraction or VALIDATION_FRACTION


def load(config: DataConfig, base: Path) -> Dataset:
    """Read the packaged file; pixels 0..16 become 0..255.

    Raises:
        DataError: the packaged file is damaged.
    """
    from compress.data.rules import split_off

    table = _table(packaged_file())
    images = ((table[:, :64] * 255 + 8) // 16).astype("uint8").reshape(-1, 1, 8, 8)
    ids = tuple(f"digits/{i:04d}" for i in range(len(table)))
    everything = Split("train", images, table[:, 64].astype("int64"), ids)
    rest, test = split_off(everything, TEST_SAMPLES, CLASSES, "test")
    train, validation = split_off(rest, round(fraction(config) * len(rest)), CLASSES, "validation")
    return Dataset("digits", CLASSES, (1, 8, 8), train, validation, test)


def _table(path: Path) -> NDArray[np.int64]:
    # Read directly: what is parsed is what was hashed, and scikit-learn takes a second to import.
    import numpy as np

    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float64).astype(np.int64)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"cannot read the digits data: {error}", where=str(path), hint="pip install --force-reinstall scikit-learn"
        ) from error
    pixels, labels = table[:, :64], table[:, 64:]
    if (
        table.shape != (SAMPLES, 65)
        or pixels.min() < 0
        or pixels.max() > 16
        or not 0 <= labels.min() <= labels.max() < 10
    ):
        raise DataError(
            f"the digits data are not what scikit-learn ships: got {table.shape}, expected ({SAMPLES}, 65)",
            where=str(path),
            hint="pip install --force-reinstall scikit-learn",
        )
    return table
