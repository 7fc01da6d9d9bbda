"""Data that cannot be used, through the command line: each ends with its exit code and names the sample."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

IMAGES = """
name: wrong
data: {dataset: imagefolder, path: images}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
"""


def test_missing_data(wrong, assert_refused):
    assert_refused(wrong(IMAGES), 5, r"missing folder .*images")


def test_label_out_of_range(wrong, tmp_path, assert_refused):
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, count in (("train", 120), ("t10k", 40)):
        labels = bytes(index % 10 for index in range(count - 1)) + b"\x0a"
        images = bytes(index % 256 for index in range(count * 36))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 6, 6) + images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels)

    refused = wrong(IMAGES.replace("imagefolder, path: images", "fashion-mnist, path: idx"))

    assert_refused(refused, 5, r"label out of range: got 10 at index \d+, expected 0\.\.9")


def test_a_truncated_cifar_file(wrong, tmp_path, assert_refused, tiny_cifar):
    path = tiny_cifar(tmp_path / "cifar", "cifar100") / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])

    refused = wrong(IMAGES.replace("imagefolder, path: images", "cifar100, path: cifar"))

    assert_refused(refused, 5, r"(?s)got 307399 bytes, expected .* records of 3074 bytes.*cifar/test\.bin")


@pytest.fixture
def images(root, tmp_path) -> Path:
    """A copy of the example's images, to be spoiled."""
    return Path(shutil.copytree(root / "examples" / "bring_your_own" / "images", tmp_path / "images"))


def picture(folder: Path) -> Path:
    """The first picture of a folder."""
    return sorted(folder.glob("*.png"))[0]


def corrupt(images: Path) -> None:
    path = picture(images / "train" / "0")
    path.write_bytes(path.read_bytes()[:40])


def colour(images: Path) -> None:
    from PIL import Image

    path = picture(images / "train" / "1")
    Image.open(path).convert("RGB").save(path)


def larger(images: Path) -> None:
    from PIL import Image

    path = picture(images / "train" / "2")
    Image.open(path).resize((9, 9)).save(path)


def empty_class(images: Path) -> None:
    for path in (images / "train" / "3").glob("*"):
        path.unlink()


def one_class(images: Path) -> None:
    for split in ("train", "test"):
        for label in "123":
            shutil.rmtree(images / split / label)


def leak(images: Path) -> None:
    shutil.copy(picture(images / "train" / "0"), images / "test" / "0" / "copied.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (corrupt, r"(?s)corrupt image: .*train/0/\S+\.png"),
        (colour, r"mixed grey and colour: train/1/\S+ is colour, expected grey like train/0/"),
        (larger, r"wrong shape: train/2/\S+ is 9x9, expected 8x8 like"),
        (empty_class, r"empty class folder train/3"),
        (one_class, r"one class only: .*expected at least 2 class folders"),
        (leak, r"same image in .*test/0/copied\.png|same image in .*copied\.png and"),
    ],
)
def test_images_that_cannot_be_used(spoil, message, wrong, images, assert_refused):
    spoil(images)

    assert_refused(wrong(IMAGES), 5, message)
