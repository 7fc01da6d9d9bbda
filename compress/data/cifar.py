"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 60,000 colour 32x32 images of 10 or 100 kinds of things.

The binary version of https://www.cs.toronto.edu/~kriz/cifar.html is read: records of one label byte (CIFAR-10) or two,
coarse and fine (CIFAR-100), and 3,072 bytes of pixels, the red plane first. The fine label is the class. The Python
version is pickles, which are never opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.config import DataConfig
from compress.data.published import check_classes, check_range, part_digests, shared_images, three_splits
from compress.data.split import Dataset, Split
from compress.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
VALIDATION_FRACTION = 1 / 10  # 5,000 of 50,000, as in He et al., 2016 (arXiv:1512.03385, section 4.2)
PUBLISHED = (50_000, 10_000)  # images of train and test
URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Layout:
    """How one of the two datasets lies in its folder.

    Attributes:
        names: text file with one class a line, in label order.
        files: the binary files of each part.
        labels: what each label byte of a record is, and how many classes it tells apart; the last is the class.
        archive: name of the published archive.
    """

    names: str
    files: Mapping[str, tuple[str, ...]]
    labels: tuple[tuple[str, int], ...]
    archive: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.labels[-1][1]

    @property
    def record_bytes(self) -> int:
        """Bytes of a record: labels and pixels."""
        return len(self.labels) + IMAGE_BYTES


LAYOUTS = {
    "cifar10": Layout(
        names="batches.meta.txt",
        files={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
        labels=(("label", 10),),
        archive="cifar-10-binary.tar.gz",
    ),
    "cifar100": Layout(
        names="fine_label_names.txt",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        labels=(("coarse label", 20), ("fine label", 100)),
        archive="cifar-100-binary.tar.gz",
    ),
}


def find_files(config: DataConfig, base: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Return the file of class names, and the binary files of train and test.

    Raises:
        DataError: the folder or a file is missing.
    """
    assert config.path is not None, "the recipe's `data:` has been validated"
    layout, folder = LAYOUTS[config.dataset], base / Path(config.path).expanduser()
    binaries = [name for names in layout.files.values() for name in names]
    missing = [name for name in (*binaries, layout.names) if not (folder / name).is_file()]
    if missing:
        pickles = [name for name in missing if name in binaries and (folder / name).with_suffix("").is_file()]
        reason = ", only the Python version, pickles that are never opened" if pickles else ""
        raise DataError(
            f"the binary version of {config.dataset} is not in {folder}{reason}: missing {', '.join(missing)}",
            where=str(folder),
            hint=f"curl -L {URL}{layout.archive} | tar -xz makes the folder that data.path must name",
        )
    return folder / layout.names, {part: [folder / name for name in names] for part, names in layout.files.items()}


def digests(config: DataConfig, base: Path, hash_file: Callable[[Path], str]) -> dict[str, str]:
    """Return the digest of each split; see `compress.data.datasets.split_digests`."""
    layout = LAYOUTS[config.dataset]
    names, files = find_files(config, base)
    hashes = {part: [hash_file(path) for path in (*paths, names)] for part, paths in files.items()}
    taken = _taken(layout, {part: [_read(layout, path) for path in paths] for part, paths in files.items()})
    return part_digests(config, hashes["train"], hashes["test"], taken, fraction(config))


def fraction(config: DataConfig) -> float:
    """Return the share of the training images that is kept for validation."""
    return config.validation_fraction or VALIDATION_FRACTION


def load(config: DataConfig, base: Path) -> Dataset:
    """Read the files; images that are in both parts stay in test only.

    Raises:
        DataError: a file is missing or truncated, a label is out of range, a class has no name or no image.
    """
    layout = LAYOUTS[config.dataset]
    names, files = find_files(config, base)
    classes = _read_names(names, layout.classes)
    records = {part: [_read(layout, path) for path in paths] for part, paths in files.items()}
    train, test = (_part(part, layout, files[part], records[part], classes) for part in ("train", "test"))
    data = three_splits(config.dataset, classes, train, test, _taken(layout, records), fraction(config))
    if (len(train), len(test)) == PUBLISHED:
        return data
    # Whole records may be missing from a truncated file, which nothing else would show.
    note = f"got {len(train)} training and {len(test)} test images, published are {PUBLISHED[0]} and {PUBLISHED[1]}"
    return replace(data, notes=(note, *data.notes))


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != count or len(names) != count:
        raise DataError(
            f"got {len(names)} class names, {len(set(names))} of them distinct, expected {count}", where=str(path)
        )
    return names


def _read(layout: Layout, path: Path) -> bytes:
    """Read a binary file, whole records only."""
    values = path.read_bytes()
    if not values or len(values) % layout.record_bytes:
        raise DataError(
            f"damaged CIFAR file: got {len(values)} bytes, expected one or more records of {layout.record_bytes} bytes",
            where=str(path),
            hint=f"fetch it again: {URL}{layout.archive}",
        )
    return values


def _taken(layout: Layout, records: Mapping[str, list[bytes]]) -> list[int]:
    return shared_images(_images(layout, records["train"]), _images(layout, records["test"]))


def _images(layout: Layout, files: list[bytes]) -> Iterator[bytes]:
    for values in files:
        for end in range(layout.record_bytes, len(values) + 1, layout.record_bytes):
            yield values[end - IMAGE_BYTES : end]


def _part(part: str, layout: Layout, paths: list[Path], files: list[bytes], classes: tuple[str, ...]) -> Split:
    import numpy as np

    tables: list[NDArray[np.uint8]] = []
    ids: list[str] = []
    for path, values in zip(paths, files, strict=True):
        table = np.frombuffer(values, dtype=np.uint8).reshape(-1, layout.record_bytes)
        for column, (what, count) in enumerate(layout.labels):
            check_range(table[:, column], count, path, what)
        tables.append(table)
        ids += [f"{path.stem}/{index:05d}" for index in range(len(table))]
    whole = np.concatenate(tables)
    images = np.ascontiguousarray(whole[:, -IMAGE_BYTES:]).reshape(-1, *IMAGE_SHAPE)
    split = Split(part, images, whole[:, len(layout.labels) - 1].astype(np.int64), tuple(ids))
    check_classes(split, classes, paths[0].parent)
    return split
