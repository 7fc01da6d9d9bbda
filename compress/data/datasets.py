"""Every dataset by name: digests for planning, arrays for work.

Importing this module, and `split_digests`, load no array library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compress.data import cifar, digits, fashion_mnist, imagefolder
from compress.data.config import DataConfig
from compress.data.split import Dataset, Split, file_sha256
from compress.errors import DataError
from compress.log import get_logger

__all__ = ["DATASETS", "Dataset", "Split", "load_dataset", "split_digests"]

Digests = Callable[[DataConfig, Path, Callable[[Path], str]], dict[str, str]]
Load = Callable[[DataConfig, Path], Dataset]

DATASETS: dict[str, tuple[Digests, Load]] = {
    "digits": (digits.digests, digits.load),
    "fashion-mnist": (fashion_mnist.digests, fashion_mnist.load),
    "cifar10": (cifar.digests, cifar.load),
    "cifar100": (cifar.digests, cifar.load),
    "imagefolder": (imagefolder.digests, imagefolder.load),
}


def split_digests(config: DataConfig, base: Path, hash_file: Callable[[Path], str] = file_sha256) -> dict[str, str]:
    """Return the SHA-256 that stands for the content of each split, before subsets are loaded.

    A digest covers the files a split is made of, the version of the split rule and the options that
    shape that split, and nothing of the others: new test images leave `train` as it is, unless
    they take images away from it.

    Args:
        config: the recipe's `data:`.
        base: folder that a relative `path` starts from.
        hash_file: SHA-256 of a file; a caller with a memo passes its own.

    Returns:
        Digests, hexadecimal, of `train`, `validation` and `test`, and of `unlabelled` where there are such images.

    Raises:
        DataError: files are missing, unreadable, or plainly no dataset.
    """
    digests, _ = DATASETS[config.dataset]
    try:
        return digests(config, base, hash_file)
    except OSError as error:
        raise _unreadable(error) from error


def load_dataset(config: DataConfig, base: Path) -> Dataset:
    """Read every image into memory as uint8 and split them.

    The split depends on the images' content alone, not on a seed, file names' order in the folder or
    the machine; train, validation and test share no image.

    Args:
        config: the recipe's `data:`.
        base: folder that a relative `path` starts from.

    Returns:
        The dataset; what was left out is in its notes, and logged.

    Raises:
        DataError: files are missing or damaged, images or labels malformed, or samples too few.
    """
    from compress.data.rules import subset

    _, load = DATASETS[config.dataset]
    try:
        whole = load(config, base)
    except OSError as error:
        raise _unreadable(error) from error
    for note in whole.notes:
        get_logger(__name__).info("%s: %s", whole.name, note)
    classes = whole.classes
    train, validation = whole.train, whole.validation
    if config.train_samples is not None:
        train = subset(train, config.train_samples, classes, "data.train_samples")
        share = max(len(classes), round(len(validation) * len(train) / len(whole.train)))
        validation = subset(validation, min(share, len(validation)), classes, "data.train_samples")
    test = subset(whole.test, config.test_samples, classes, "data.test_samples")
    return replace(whole, train=train, validation=validation, test=test)


def _unreadable(error: OSError) -> DataError:
    return DataError(f"cannot read the data: {error.strerror or error}", where=str(error.filename or ""))
