from __future__ import annotations

import numpy as np
import pytest

from compress.data.calibration_set import calibration_set
from compress.data.split import Split
from compress.errors import DataError


def make_split(samples: int, classes: int = 10, *, copies: int = 1) -> Split:
    values = np.repeat(np.arange(samples // copies), copies)
    images = np.stack([values % 256, values // 256], axis=1).astype(np.uint8).reshape(-1, 2, 1, 1)
    return Split("train", images, (values % classes).astype(np.int64), tuple(map(str, range(len(values)))))


def test_it_is_balanced_and_depends_on_content_alone() -> None:
    train = make_split(2000)
    chosen, warnings = calibration_set(train, 500)
    again, _ = calibration_set(train.take(np.arange(2000)[::-1]), 500)
    assert chosen.name == "calibration"
    assert np.bincount(chosen.labels).tolist() == [50] * 10
    assert set(chosen.digests()) == set(again.digests())
    assert warnings == ()


def test_identical_images_count_once() -> None:
    chosen, _ = calibration_set(make_split(1000, copies=4), 200)
    assert len(set(chosen.digests())) == 200


def test_few_samples_and_missing_classes_are_warned_of() -> None:
    _, few = calibration_set(make_split(1000), 256)
    _, absent = calibration_set(make_split(1000, 2), 500, ("cat", "dog", "wolf"))
    assert [w.split(":")[0] for w in few] == ["256 calibration samples are few"]
    assert absent == ("no calibration sample of class wolf",)


def test_more_classes_than_samples() -> None:
    _, warnings = calibration_set(make_split(1000, 101), 100)
    assert warnings[1] == "no calibration sample of class 100"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (99, "calibration set too small: got 99 samples, expected at least 100"),
        (301, "too few samples: the calibration set needs 301, train has 300 distinct images"),
    ],
)
def test_too_few_are_refused(samples: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        calibration_set(make_split(600, copies=2), samples)
    assert caught.value.exit_code == 5
