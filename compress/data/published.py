"""Datasets published as a training and a test part: what is checked, and how they become three splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.config import DataConfig
from compress.data.split import RULE_VERSION, Dataset, Split, document_digest
from compress.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def shared_images(train: Iterable[bytes], test: Iterable[bytes]) -> list[int]:
    """Return the indices of training images that are in the test part too; an image is its pixels."""
    tested = set(test)
    return [index for index, image in enumerate(train) if image in tested]


def part_digests(
    config: DataConfig, train_files: Sequence[str], test_files: Sequence[str], taken: Sequence[int], fraction: float
) -> dict[str, str]:
    """Return the digest of each split; see `compress.data.datasets.split_digests`.

    Args:
        config: the recipe's `data:`.
        train_files: SHA-256 of each file that shapes the training part.
        test_files: the same of the test part.
        taken: indices of training images that are in the test part too.
        fraction: share of the training part that is kept for validation.
    """
    # What the test set takes away from training shapes training, though the test set itself does not.
    learning = {
        "files": train_files,
        "taken": document_digest({"indices": taken}),
        "validation_fraction": fraction,
        "train_samples": config.train_samples,
    }
    testing = {"files": test_files, "test_samples": config.test_samples}
    shaping = {"train": learning, "validation": learning, "test": testing}
    return {
        split: document_digest({"dataset": config.dataset, "rule": RULE_VERSION, "split": split, **document})
        for split, document in shaping.items()
    }


def check_range(labels: NDArray[np.uint8], count: int, path: Path, what: str = "label") -> None:
    """Refuse labels that are not in [0, count).

    Args:
        labels: (n,), n >= 1, in the order of the file.
        count: of classes.
        path: the file, for the message.
        what: kind of label, for the message.

    Raises:
        DataError: one is out of range.
    """
    if labels.max() >= count:
        index = int(labels.argmax())
        raise DataError(
            f"{what} out of range: got {labels[index]} at index {index}, expected 0..{count - 1}", where=str(path)
        )


def check_classes(part: Split, classes: Sequence[str], path: Path) -> None:
    """Refuse a part without any sample of some class.

    Raises:
        DataError: names the classes and the file or folder given.
    """
    import numpy as np

    counts = np.bincount(part.labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        raise DataError(f"too few samples: {part.name} has none of class {', '.join(absent)}", where=str(path))


def three_splits(
    name: str, classes: tuple[str, ...], train: Split, test: Split, taken: Sequence[int], fraction: float
) -> Dataset:
    """Leave out of `train` what `test` has too, and split validation off what remains.

    Args:
        name: the dataset's, in the recipe.
        classes: names in label order.
        train: the published training part.
        test: the published test part.
        taken: indices in `train`, from `shared_images`.
        fraction: share of the whole training part that is kept for validation, in (0, 0.5].

    Raises:
        DataError: a class has too few samples.
    """
    import numpy as np

    from compress.data.rules import split_off

    notes = (f"{len(taken)} training images that are in the test set too were left out",) if taken else ()
    total = round(fraction * len(train))
    rest = train.take(np.setdiff1d(np.arange(len(train)), taken))
    train, validation = split_off(rest, total, classes, "validation")
    channels, height, width = train.images.shape[1:]
    return Dataset(name, classes, (channels, height, width), train, validation, test, notes)
