"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): 70,000 grey 28x28 images of 10 kinds of clothing.

Any folder with the four IDX files of MNIST's names is read, plain or gzipped, whatever its image size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from compress.data.config import DataConfig
from compress.data.idx import find_idx, read_idx
from compress.data.published import check_classes, check_range, part_digests, shared_images, three_splits
from compress.data.split import Dataset, Split
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
        taken = _taken({split: read_idx(paths[0], 3) for split, paths in files.items()})
    return part_digests(config, hashes["train"], hashes["test"], taken, fraction(config))


def fraction(config: DataConfig) -> float:
    """Return the share of the training images that is kept for validation."""
    return config.validation_fraction or VALIDATION_FRACTION


def _taken(images: Mapping[str, tuple[tuple[int, ...], bytes]]) -> list[int]:
    return shared_images(_images(*images["train"]), _images(*images["test"]))


def _images(shape: tuple[int, ...], values: bytes) -> list[bytes]:
    size = shape[1] * shape[2]
    return [values[start : start + size] for start in range(0, len(values), size)]


def load(config: DataConfig, base: Path) -> Dataset:
    """Read the four files; images that are in both parts stay in test only.

    Raises:
        DataError: a file is missing or damaged, labels or shapes do not fit, a class is empty.
    """
    files = find_files(config, base)
    images = {split: read_idx(paths[0], 3) for split, paths in files.items()}
    train, test = (_split(split, images[split], files[split]) for split in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"wrong shape: test images are {test.images.shape[2:]}, expected {train.images.shape[2:]} like train",
            where=str(files["test"][0]),
        )
    return three_splits("fashion-mnist", CLASSES, train, test, _taken(images), fraction(config))


def _split(name: str, images: tuple[tuple[int, ...], bytes], paths: tuple[Path, Path]) -> Split:
    import numpy as np

    (count, *side), pixels = images
    (labelled,), labels = read_idx(paths[1], 1)
    if count != labelled:
        raise DataError(f"got {count} images in {paths[0].name} but {labelled} labels", where=str(paths[1]))
    values = np.frombuffer(labels, dtype=np.uint8)
    check_range(values, len(CLASSES), paths[1])
    ids = tuple(f"{name}/{index:05d}" for index in range(count))
    pictures = np.frombuffer(pixels, dtype=np.uint8).reshape(count, 1, *side)
    part = Split(name, pictures, values.astype(np.int64), ids)
    check_classes(part, CLASSES, paths[1])
    return part
