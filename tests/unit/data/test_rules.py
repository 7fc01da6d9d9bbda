from __future__ import annotations

import numpy as np
import pytest

from compress.data.rules import balanced_quota, pick, proportional_quota, split_off, subset
from compress.data.split import Split
from compress.errors import DataError

CLASSES = ("a", "b", "c")


def make_split(values: list[int], labels: list[int]) -> Split:
    images = np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split("train", images, np.array(labels, dtype=np.int64), tuple(f"id{i}" for i in range(len(values))))


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [([10, 10], 4, [2, 2]), ([12, 2], 5, [4, 1]), ([2, 2, 2], 3, [1, 1, 1]), ([7, 7, 7], 10, [4, 3, 3])],
)
def test_proportional_quota(counts: list[int], total: int, expected: list[int]) -> None:
    assert proportional_quota(counts, total) == expected


def test_proportional_quota_adds_up_and_leaves_some_of_every_class() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(2, 40, rng.integers(2, 12)).tolist()
        total = int(rng.integers(len(counts), sum(counts) - len(counts) + 1))
        quota = proportional_quota(counts, total)
        assert sum(quota) == total
        assert all(1 <= q < count for q, count in zip(quota, counts, strict=True))


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [([9, 9, 9], 7, [3, 2, 2]), ([1, 9, 9], 7, [1, 3, 3]), ([0, 2, 1], 3, [0, 2, 1]), ([5], 0, [0])],
)
def test_balanced_quota(counts: list[int], total: int, expected: list[int]) -> None:
    assert balanced_quota(counts, total) == expected


def test_pick_keeps_identical_images_together() -> None:
    labels = np.array([0, 0, 0, 0])
    assert pick(labels, ["x", "a", "x", "b"], [2]).tolist() == [False, True, False, True]
    assert pick(labels, ["a", "x", "a", "y"], [2]).tolist() == [True, False, True, False]
    assert pick(labels, ["a", "x", "a", "y"], [1]).tolist() == [False, True, False, False]  # the pair does not fit


def test_split_off_depends_on_content_and_not_on_order() -> None:
    split = make_split(list(range(30)), [i % 3 for i in range(30)])
    order = np.random.default_rng(1).permutation(30)
    rest, part = split_off(split, 9, CLASSES, "validation")
    shuffled_rest, shuffled_part = split_off(split.take(order), 9, CLASSES, "validation")
    assert part.name == "validation"
    assert np.bincount(part.labels).tolist() == [3, 3, 3]
    assert set(part.ids) == set(shuffled_part.ids)
    assert set(rest.ids) == set(shuffled_rest.ids)
    assert not set(rest.digests()) & set(part.digests())


def test_split_off_puts_duplicates_on_one_side() -> None:
    split = make_split([i // 2 for i in range(60)], [(i // 2) % 3 for i in range(60)])
    rest, part = split_off(split, 12, CLASSES, "validation")
    assert len(part) == 12
    assert not set(rest.digests()) & set(part.digests())


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([1, 2, 3, 4, 5], [0, 0, 1, 1, 2], "class 'c' has 1 distinct image"),
        ([1, 2, 3, 4, 9, 9], [0, 0, 1, 1, 2, 2], "class 'c' has 1 distinct image"),
        ([1, 2, 3, 4], [0, 0, 1, 1], "class 'c' has 0 distinct image"),
    ],
    ids=["single", "twins", "none"],
)
def test_split_off_needs_two_distinct_images_of_every_class(values: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=f"too few samples: {message}") as caught:
        split_off(make_split(values, labels), 3, CLASSES, "validation")
    assert caught.value.exit_code == 5


def test_subset_is_balanced_nested_and_ordered() -> None:
    split = make_split(list(range(90)), [i % 3 for i in range(90)])
    small, large = (subset(split, n, CLASSES, "data.train_samples") for n in (12, 30))
    assert np.bincount(small.labels).tolist() == [4, 4, 4]
    assert set(small.ids) < set(large.ids)
    assert list(small.ids) == sorted(small.ids, key=lambda i: int(i[2:]))
    assert subset(split, None, CLASSES, "data.train_samples") is split


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (2, "data.train_samples is 2, expected at least one for each of 3 classes"),
        (99, "is 99, but train has 9 samples"),
    ],
)
def test_subset_of_impossible_size(samples: int, message: str) -> None:
    split = make_split(list(range(9)), [i % 3 for i in range(9)])
    with pytest.raises(DataError, match=message) as caught:
        subset(split, samples, CLASSES, "data.train_samples")
    assert caught.value.exit_code == 5
    assert "--set data.train_samples=" in caught.value.hint
