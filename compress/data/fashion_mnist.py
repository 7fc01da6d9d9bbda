"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): 70,000 grey 28x28 images of 10 kinds of clothing.

Any folder with the four IDX files of MNIST's names is read, plain or gzipped, whatever its image size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compress.data.config import DataConfig
from compress.data.idx import find_idx, read_idx
from compress.data.split import RULE_VERSION, Dataset, Split, document_digest
from compress.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION_FRACTION = 1 / 12  # 5,000 of 60,000

# SHA-256 of Debian's image files, train and test, which share no image: spares planning the comparison.
DEBIAN_IMAGES = (
    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
)


def find_files(config: DataConfig, base: Path) -> dict[str, tuple[Path, Path]]:
    """Return the image and the label file of train and test.

    Raises:
        DataError: the folder or a file is missing.
    """
    folder = DEBIAN_FOLDER if config.path is None else base / Path(config.path).expanduser()
    found = {split: [find_idx(folder, name) for name in names] for split, names in FILES.items()}
    missing = [
        name for split, names in FILES.items() for name, path in zip(names, found[split], strict=True) if not path
    ]
    if missing:
        raise DataError(
            f"fashion-mnist is not in {folder}: missing {', '.join(f'{name}[.gz]' for name in missing)}",
            where=str(folder),
            hint="apt-get install dataset-fashion-mnist, or --set data.path=FOLDER with the four IDX files",
        )
    return {split: (paths[0], paths[1]) for split, paths in found.items() if paths[0] and paths[1]}


def digests(config: DataConfig, base: Path, hash_file: Callable[[Path], str]) -> dict[str, str]:
    """Return the digest of each split; see `compress.data.datasets.split_digests`."""
    files = find_files(config, base)
    hashes = {split: [hash_file(path) for path in paths] for split, paths in files.items()}
    taken: list[int] = []
    if (hashes["train"][0], hashes["test"][0]) != DEBIAN_IMAGES:
        taken = shared_images(read_idx(files["train"][0], 3), read_idx(files["test"][0], 3))
    # What the test set takes away from training shapes training, though the test set itself does not.
    learning = {
        "files": hashes["train"],
        "taken": document_digest({"indices": taken}),
        "validation_fraction": fraction(config),
        "train_samples": config.train_samples,
    }
    testing = {"files": hashes["test"], "test_samples": config.test_samples}
    shaping = {"train": learning, "validation": learning, "test": testing}
    return {
        split: document_digest({"dataset": "fashion-mnist", "rule": RULE_VERSION, "split": split, **document})
        for split, document in shaping.items()
    }


def fraction(config: DataConfig) -> float:
    """Return the share of the training images that is kept for validation."""
    return config.validation_fraction or VALIDATION_FRACTION


def shared_images(train: tuple[tuple[int, ...], bytes], test: tuple[tuple[int, ...], bytes]) -> list[int]:
    """Return the indices of training images that are in the test set too; both as `read_idx` gives them."""
    tested = set(_images(*test))
    return [index for index, image in enumerate(_images(*train)) if image in tested]


def _images(shape: tuple[int, ...], values: bytes) -> list[bytes]:
    size = shape[1] * shape[2]
    return [values[start : start + size] for start in range(0, len(values), size)]


def load(config: DataConfig, base: Path) -> Dataset:
    """Read the four files; images that are in both parts stay in test only.

    Raises:
        DataError: a file is missing or damaged, labels or shapes do not fit, a class is empty.
    """
    import numpy as np

    from compress.data.rules import split_off

    files = find_files(config, base)
    images = {split: read_idx(paths[0], 3) for split, paths in files.items()}
    train, test = (_split(split, images[split], files[split]) for split in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"wrong shape: test images are {test.images.shape[2:]}, expected {train.images.shape[2:]} like train",
            where=str(files["test"][0]),
        )
    total = round(fraction(config) * len(train))
    taken = shared_images(images["train"], images["test"])
    notes = (f"{len(taken)} training images that are in the test set too were left out",) if taken else ()
    rest = train.take(np.setdiff1d(np.arange(len(train)), taken))
    train, validation = split_off(rest, total, CLASSES, "validation")
    shape = (1, train.images.shape[2], train.images.shape[3])
    return Dataset("fashion-mnist", CLASSES, shape, train, validation, test, notes)


def _split(name: str, images: tuple[tuple[int, ...], bytes], paths: tuple[Path, Path]) -> Split:
    import numpy as np

    (count, *side), pixels = images
    (labelled,), labels = read_idx(paths[1], 1)
    if count != labelled:
        raise DataError(f"got {count} images in {paths[0].name} but {labelled} labels", where=str(paths[1]))
    array = np.frombuffer(labels, dtype=np.uint8).astype(np.int64)
    if array.max() >= len(CLASSES):
        index = int(array.argmax())
        raise DataError(
            f"label out of range: got {array[index]} at index {index}, expected 0..{len(CLASSES) - 1}",
            where=str(paths[1]),
        )
    absent = [CLASSES[c] for c in np.flatnonzero(np.bincount(array, minlength=len(CLASSES)) == 0)]
    if absent:
        raise DataError(f"too few samples: {name} has none of class {', '.join(absent)}", where=str(paths[1]))
    ids = tuple(f"{name}/{index:05d}" for index in range(count))
    return Split(name, np.frombuffer(pixels, dtype=np.uint8).reshape(count, 1, *side), array, ids)
