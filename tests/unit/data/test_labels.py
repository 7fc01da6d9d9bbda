from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset
from compress.data.labels import hide_labels, labelled_alone, labelled_per_batch
from compress.data.loader import batches
from compress.data.split import HIDDEN, Dataset, Split
from compress.errors import DataError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(dataset="digits", train_samples=200), Path())


def visible(split: Split) -> np.ndarray:
    return np.flatnonzero(split.labels != HIDDEN)


def test_the_labels_that_stay_are_balanced_and_true(digits: Dataset) -> None:
    hidden = hide_labels(digits, 20, "labels")
    kept = visible(hidden.train)
    assert np.bincount(hidden.train.labels[kept]).tolist() == [2] * 10
    assert (hidden.train.labels[kept] == digits.train.labels[kept]).all()
    assert (hidden.train.images == digits.train.images).all()
    assert hidden.train.ids == digits.train.ids
    assert hidden.validation is digits.validation


def test_all_and_none(digits: Dataset) -> None:
    assert hide_labels(digits, "all", "labels").train is digits.train
    assert (hide_labels(digits, "none", "labels").train.labels == HIDDEN).all()


def test_more_labels_hold_the_fewer(digits: Dataset) -> None:
    few, more = (visible(hide_labels(digits, count, "labels").train) for count in (20, 60))
    assert set(few) < set(more)


def test_the_choice_depends_on_content_not_on_order(digits: Dataset) -> None:
    order = np.random.default_rng(1).permutation(len(digits.train))
    shuffled = replace(digits, train=digits.train.take(order))
    first, second = (hide_labels(one, 30, "labels").train for one in (digits, shuffled))
    assert {first.ids[i] for i in visible(first)} == {second.ids[i] for i in visible(second)}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (9, "steps.student.labels is 9, expected at least one for each of 10 classes"),
        (201, "steps.student.labels is 201, but train has 200 samples"),
    ],
)
def test_too_few_and_too_many(digits: Dataset, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        hide_labels(digits, count, "steps.student.labels")
    assert caught.value.exit_code == 5
    assert "--set steps.student.labels=" in caught.value.hint


def test_labelled_images_alone_fill_the_epoch(digits: Dataset) -> None:
    hidden = hide_labels(digits, 30, "labels").train
    alone = labelled_alone(hidden)
    assert len(alone) == len(hidden)
    assert (alone.labels != HIDDEN).all()
    times = np.unique(alone.ids, return_counts=True)[1]
    assert len(times) == 30
    assert set(times) <= {200 // 30, 200 // 30 + 1}
    assert labelled_alone(digits.train) is digits.train


def test_every_batch_has_labelled_images_and_all_of_them_come_in_turn(digits: Dataset) -> None:
    train = hide_labels(digits, 10, "labels").train
    extra = labelled_per_batch(train, 32)
    assert extra == 5
    assert labelled_per_batch(digits.train, 32) == labelled_per_batch(hide_labels(digits, "none", "").train, 32) == 0
    plain = list(batches(train, 32, seed=3, epoch=1, shuffle=True, drop_last=True))
    mixed = list(batches(train, 32, seed=3, epoch=1, shuffle=True, drop_last=True, labelled=extra))
    assert len(mixed) == len(plain) == 6
    for ours, theirs in zip(mixed, plain, strict=True):
        assert len(ours.indices) == 37
        assert (ours.indices[:32] == theirs.indices).all()
        assert (ours.labels[32:] != HIDDEN).all()
        assert (
            (ours.images[32:] * 255)
            .round()
            .byte()
            .equal(type(ours.images)(train.images[ours.indices[32:].numpy()]).byte())
        )
    drawn = np.concatenate([one.indices[32:].numpy() for one in mixed])
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == sorted(visible(train))


def test_an_incomplete_last_batch_gets_labelled_images_too(digits: Dataset) -> None:
    train = hide_labels(digits, 10, "labels").train
    sizes = [len(batch.indices) for batch in batches(train, 64, labelled=4)]
    assert sizes == [68, 68, 68, 12]
