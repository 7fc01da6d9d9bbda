from __future__ import annotations

import gzip
import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from compress.data import fashion_mnist
from compress.data.config import DataConfig
from compress.data.datasets import load_dataset, split_digests
from compress.data.idx import read_idx
from compress.errors import DataError

CONFIG = DataConfig(dataset="fashion-mnist", path="idx")


def write_idx(path: Path, values: np.ndarray) -> None:
    data = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_dataset(base: Path, *, side: int = 6, test_side: int = 6) -> Path:
    folder = base / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count, pixels in (("train", 120, side), ("t10k", 40, test_side)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, pixels, pixels)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def test_a_twelfth_of_the_training_images_is_validation(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    data = load_dataset(CONFIG, tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (110, 10, 40)
    assert np.bincount(data.validation.labels).tolist() == [1] * 10
    assert data.image_shape == (1, 6, 6)
    assert data.test.ids[0] == "test/00000"


def test_images_of_the_test_set_leave_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_dataset(tmp_path)
    before = split_digests(CONFIG, tmp_path)
    _, pixels = read_idx(folder / "train-images-idx3-ubyte.gz", 3)
    shape, tested = read_idx(folder / "t10k-images-idx3-ubyte.gz", 3)
    write_idx(
        folder / "t10k-images-idx3-ubyte.gz",
        np.frombuffer(pixels[: 2 * 36] + tested[2 * 36 :], dtype=np.uint8).reshape(shape),
    )
    with caplog.at_level(logging.INFO, logger="compress"):
        data = load_dataset(CONFIG, tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (118, 40)
    assert data.notes == ("2 training images that are in the test set too were left out",)
    assert "2 training images" in caplog.text
    after = split_digests(CONFIG, tmp_path)
    assert before["train"] != after["train"]  # two images less: learned from something else
    assert before["test"] != after["test"]


def test_other_test_images_leave_the_training_digest_alone(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    before = split_digests(CONFIG, tmp_path)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", (np.arange(40) + 1) % 10)
    after = split_digests(CONFIG, tmp_path)
    assert before["test"] != after["test"]
    assert (before["train"], before["validation"]) == (after["train"], after["validation"])


def test_duplicates_inside_train_stay_on_one_side(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    images = np.repeat(np.random.default_rng(1).integers(0, 256, (60, 6, 6)), 2, axis=0)
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(120) // 2 % 10)
    data = load_dataset(CONFIG.model_copy(update={"validation_fraction": 0.3}), tmp_path)
    assert len(data.validation) >= 20
    assert not set(data.train.digests()) & set(data.validation.digests())


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    packed = load_dataset(CONFIG, tmp_path)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load_dataset(CONFIG, tmp_path).train.digests() == packed.train.digests()


def test_a_missing_folder_says_how_to_get_the_data(tmp_path: Path) -> None:
    for use in (load_dataset, split_digests):
        with pytest.raises(DataError, match=r"missing train-images-idx3-ubyte\[\.gz\], train-labels") as caught:
            use(CONFIG, tmp_path)
        assert caught.value.exit_code == 5
        assert "apt-get install dataset-fashion-mnist" in caught.value.hint
        assert "--set data.path=" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("train-labels", np.arange(120) % 11, "label out of range: got 10 at index 10, expected 0..9"),
        ("t10k-labels", np.arange(39) % 10, "got 40 images in t10k-images-idx3-ubyte.gz but 39 labels"),
        ("t10k-labels", np.arange(40) % 9, "too few samples: test has none of class ankle-boot"),
        ("train-labels", np.zeros(120), "too few samples: train has none of class trouser"),
        (
            "train-labels",
            np.r_[np.arange(111) % 9, np.full(9, 9)[:1], np.zeros(8)],
            "class 'ankle-boot' has 1 distinct",
        ),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, file: str, values: np.ndarray, message: str) -> None:
    folder = write_dataset(tmp_path)
    write_idx(folder / f"{file}-idx1-ubyte.gz", values)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(CONFIG, tmp_path)
    assert caught.value.exit_code == 5


def test_a_label_out_of_range_is_named_with_its_place(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.r_[np.arange(39) % 10, 255])
    with pytest.raises(DataError) as caught:
        load_dataset(CONFIG, tmp_path)
    assert caught.value.exit_code == 5
    assert caught.value.message == "label out of range: got 255 at index 39, expected 0..9"
    assert caught.value.where == str(path)


def test_test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, test_side=5)
    with pytest.raises(DataError, match=r"wrong shape: test images are \(5, 5\), expected \(6, 6\)") as caught:
        load_dataset(CONFIG, tmp_path)
    assert caught.value.where.endswith("t10k-images-idx3-ubyte.gz")


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_published_data() -> None:
    data = load_dataset(DataConfig(dataset="fashion-mnist"), Path())
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert np.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.notes == ()  # no image is in both parts: what planning takes for granted
    assert not set(data.train.digests()) & set(data.validation.digests())
