"""Images by class folder: `train/<class>/*.png`, `test/<class>/*.jpg`, optionally `validation/`.

Images whose class nobody knows may lie in `unlabelled/`, without class folders.

Pixels are taken as stored: no rotation by EXIF tags, no colour management.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.config import DataConfig
from compress.data.split import HIDDEN, RULE_VERSION, Dataset, Split, document_digest
from compress.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg")
VALIDATION_FRACTION = 0.1
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Folder:
    """What lies in an image folder: classes in label order, and each split's files, sorted by name."""

    root: Path
    classes: tuple[str, ...]
    files: dict[str, tuple[str, ...]]  # split -> paths relative to the root, with forward slashes


def list_folder(config: DataConfig, base: Path) -> Folder:
    """List the images of every split, whatever order the file system has.

    Raises:
        DataError: a folder is missing, a class is empty, there is one class only, splits have other
            classes, a file is no image by its name, or a link leads out of the folder.
    """
    root = base / Path(config.path or "").expanduser()
    splits = ["train", "test"] + (["validation"] if (root / "validation").is_dir() else [])
    listed = {split: _list_split(root, split) for split in splits}
    classes = tuple(sorted(listed["train"]))
    if len(classes) < 2:
        raise DataError(
            f"one class only: {root / 'train'} holds {list(classes)}, expected at least 2 class folders", where="train"
        )
    for split in splits[1:]:
        if set(listed[split]) != set(classes):
            missing, extra = set(classes) - set(listed[split]), set(listed[split]) - set(classes)
            raise DataError(
                f"classes of {split} differ from those of train: missing {sorted(missing)}, unknown {sorted(extra)}",
                where=str(root / split),
            )
    files = {split: tuple(sorted(f for names in listed[split].values() for f in names)) for split in splits}
    if (root / UNLABELLED).exists():
        files[UNLABELLED] = _list_unlabelled(root)
    return Folder(root, classes, files)


def _list_split(root: Path, split: str) -> dict[str, list[str]]:
    folder = root / split
    _check_contained(folder, root)
    if not folder.is_dir():
        raise DataError(
            f"missing folder {folder}",
            where=str(folder),
            hint="images go to train/<class>/ and test/<class>/ below data.path",
        )
    classes: dict[str, list[str]] = {}
    for entry in _visible(folder):
        _check_contained(entry, root)
        if not entry.is_dir():
            raise DataError(f"{split}/{entry.name} is not a class folder", where=str(entry), hint="move it elsewhere")
        classes[entry.name] = [_image_name(path, root, split) for path in _visible(entry)]
        if not classes[entry.name]:
            raise DataError(
                f"empty class folder {split}/{entry.name}", where=str(entry), hint="add images or remove it"
            )
    return classes


def _list_unlabelled(root: Path) -> tuple[str, ...]:
    folder = root / UNLABELLED
    _check_contained(folder, root)
    names = tuple(sorted(_image_name(path, root, UNLABELLED) for path in _visible(folder)))
    if not names:
        raise DataError(
            f"empty folder {UNLABELLED}: expected images, without class folders",
            where=str(folder),
            hint="add images, or remove the folder",
        )
    return names


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _image_name(path: Path, root: Path, split: str) -> str:
    _check_contained(path, root)
    name = f"{split}/{path.name}" if split == UNLABELLED else f"{split}/{path.parent.name}/{path.name}"
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"not an image: {name}, expected a file named {' or '.join(SUFFIXES)}",
            where=str(path),
            hint="convert it to PNG, or move it elsewhere",
        )
    return name


def _check_contained(path: Path, root: Path) -> None:
    target = Path(os.path.realpath(path))  # unlike Path.resolve, it does not fail on a loop
    if path.is_symlink() and not target.is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{path.relative_to(root).as_posix()} is a link out of the data folder, to {target}",
            where=str(path),
            hint="copy the images into the folder",
        )


def digests(config: DataConfig, base: Path, hash_file: Callable[[Path], str]) -> dict[str, str]:
    """Return the digest of each split; see `compress.data.datasets.split_digests`.

    Raises:
        DataError: besides what `list_folder` finds, one file is in two splits.
    """
    folder = list_folder(config, base)
    hashes = {split: {f: hash_file(folder.root / f) for f in files} for split, files in folder.files.items()}
    refuse_shared({split: [(h, f) for f, h in by_file.items()] for split, by_file in hashes.items()})
    learning = {"files": hashes["train"], "train_samples": config.train_samples}
    validating = {
        "files": hashes.get("validation"),
        "train": len(hashes["train"]),
        "train_samples": config.train_samples,
    }
    if "validation" not in hashes:
        learning["validation_fraction"] = fraction(config)
        validating = learning
    testing = {"files": hashes["test"], "test_samples": config.test_samples}
    shaping = {"train": learning, "validation": validating, "test": testing}
    if UNLABELLED in hashes:
        shaping[UNLABELLED] = {"files": hashes[UNLABELLED]}
    common = {"dataset": "imagefolder", "rule": RULE_VERSION, "size": config.size_hw}
    return {split: document_digest({**common, "split": split, **document}) for split, document in shaping.items()}


def fraction(config: DataConfig) -> float:
    """Return the share of the training images that is kept for validation where no folder is given."""
    return config.validation_fraction or VALIDATION_FRACTION


def refuse_shared(samples: dict[str, list[tuple[str, str]]]) -> None:
    """Refuse an image that is in two splits.

    Args:
        samples: split -> pairs of content digest and name.

    Raises:
        DataError: names the first such pair.
    """
    seen: dict[str, tuple[str, str]] = {}
    for split in ("test", "validation", "train", UNLABELLED):
        for digest, name in samples.get(split, ()):
            other, twin = seen.setdefault(digest, (split, name))
            if other != split:
                raise DataError(
                    f"same image in {split} and {other}: {name} and {twin}",
                    where=name,
                    hint="remove one of the two: an image that was learned proves nothing in a test",
                )


def load(config: DataConfig, base: Path) -> Dataset:
    """Read every image.

    Raises:
        DataError: besides what `list_folder` finds: a damaged image, grey and colour mixed, another
            shape without `size`, an image in two splits, too few samples to split.
    """
    from compress.data.images import read_images
    from compress.data.rules import split_off

    folder = list_folder(config, base)
    names = [name for split in folder.files for name in folder.files[split]]
    pixels = read_images(folder.root, names, config.size_hw)
    splits: dict[str, Split] = {}
    start = 0
    for split, files in folder.files.items():
        splits[split] = _split(split, files, pixels[start : start + len(files)], folder.classes)
        start += len(files)
    refuse_shared({name: list(zip(split.digests(), split.ids, strict=True)) for name, split in splits.items()})
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        train, validation = split_off(train, round(fraction(config) * len(train)), folder.classes, "validation")
    _, channels, height, width = pixels.shape
    shape, unlabelled = (channels, height, width), splits.get(UNLABELLED)
    notes = (f"{len(unlabelled)} unlabelled images, for steps with a teacher",) if unlabelled else ()
    return Dataset(
        "imagefolder", folder.classes, shape, train, validation, splits["test"], notes=notes, unlabelled=unlabelled
    )


def _split(name: str, files: tuple[str, ...], pixels: NDArray[np.uint8], classes: tuple[str, ...]) -> Split:
    import numpy as np

    label_of = {one: label for label, one in enumerate(classes)}
    labels = np.array([HIDDEN if name == UNLABELLED else label_of[f.split("/")[1]] for f in files], dtype=np.int64)
    return Split(name, pixels, labels, files)
