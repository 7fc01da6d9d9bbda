from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from compress.data.split import Split, document_digest, file_sha256


def make_split(images: np.ndarray) -> Split:
    return Split("train", images, np.zeros(len(images), dtype=np.int64), tuple(map(str, range(len(images)))))


def test_digests_are_of_the_pixels() -> None:
    images = np.arange(2 * 1 * 2 * 2, dtype=np.uint8).reshape(2, 1, 2, 2)
    assert make_split(images).digests() == (
        hashlib.sha256(bytes([0, 1, 2, 3])).hexdigest(),
        hashlib.sha256(bytes([4, 5, 6, 7])).hexdigest(),
    )


def test_take_keeps_the_given_order() -> None:
    split = make_split(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1))
    taken = split.take(np.array([3, 1]), "some")
    assert (taken.name, taken.ids, taken.images.ravel().tolist()) == ("some", ("3", "1"), [3, 1])


def test_channel_statistics_match_numpy_in_more_than_one_chunk() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 2, 3, 3), dtype=np.uint8)
    mean, std = make_split(images).channel_statistics()
    scaled = images.astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-10)


def test_a_constant_channel_has_a_deviation_to_divide_by() -> None:
    assert make_split(np.full((3, 1, 2, 2), 51, dtype=np.uint8)).channel_statistics() == ((0.2,), (1 / 255,))


@pytest.mark.parametrize(
    ("images", "labels", "ids", "message"),
    [
        (np.zeros((2, 1, 2, 2)), np.zeros(2, np.int64), ("a", "b"), "images: got float64"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.int64), ("a", "b"), "images: got uint8"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(3, np.int64), ("a", "b"), "labels: got int64"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64), ("a",), "ids: got 1, expected 2"),
    ],
)
def test_arrays_that_do_not_belong_together(
    images: np.ndarray, labels: np.ndarray, ids: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Split("train", images, labels, ids)


def test_file_and_document_digests(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert document_digest({"a": 1, "b": [2]}) == document_digest({"b": [2], "a": 1})
    assert document_digest({"a": 1}) != document_digest({"a": 2})
