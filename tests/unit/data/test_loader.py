from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress.data.loader import Augmentation, Batch, batch_count, batches
from compress.data.split import Split

AUGMENT = Augmentation(flip=True, shift_px=2)
VIEWS = replace(AUGMENT, views=5, view_seed=7)


def make_split(samples: int = 50, side: int = 6) -> Split:
    images = np.random.default_rng(0).integers(1, 256, (samples, 2, side, side), dtype=np.uint8)
    return Split("train", images, np.arange(samples) % 3, tuple(map(str, range(samples))))


def joined(given: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*given, strict=True)))


def test_sample_order_without_shuffle() -> None:
    split = make_split()
    given = list(batches(split, 8))
    images, labels, indices, views = joined(given)
    assert [len(batch.labels) for batch in given] == [8] * 6 + [2]
    assert indices.tolist() == list(range(50))
    assert views.tolist() == [0] * 50
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, torch.from_numpy(split.images) / 255)
    assert labels.tolist() == split.labels.tolist()


def test_drop_last_and_batch_count() -> None:
    assert [len(b.labels) for b in batches(make_split(), 8, drop_last=True)] == [8] * 6
    assert (batch_count(50, 8), batch_count(50, 8, drop_last=True), batch_count(48, 8)) == (7, 6, 6)


def test_the_same_seed_and_epoch_give_the_same_bytes_at_any_thread_count() -> None:
    split, threads = make_split(), torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(joined(list(batches(split, 8, seed=3, epoch=1, augment=AUGMENT, shuffle=True))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("seed", "epoch"), [(4, 1), (3, 2)])
def test_another_seed_or_epoch_gives_another_order_and_other_images(seed: int, epoch: int) -> None:
    split = make_split()
    first = joined(list(batches(split, 8, seed=3, epoch=1, augment=AUGMENT, shuffle=True)))
    second = joined(list(batches(split, 8, seed=seed, epoch=epoch, augment=AUGMENT, shuffle=True)))
    assert first[2].tolist() != second[2].tolist()
    assert sorted(first[2].tolist()) == sorted(second[2].tolist()) == list(range(50))
    assert not torch.equal(first[0][first[2].argsort()], second[0][second[2].argsort()])


def test_augmentation_depends_neither_on_batch_size_nor_shuffle() -> None:
    split = make_split()
    by_sample = []
    for size, shuffle in ((8, False), (50, False), (7, True)):
        images, _, indices, _ = joined(list(batches(split, size, augment=AUGMENT, shuffle=shuffle)))
        by_sample.append(images[indices.argsort()])
    assert torch.equal(by_sample[0], by_sample[1])
    assert torch.equal(by_sample[0], by_sample[2])


def test_every_image_is_a_flip_and_shift_with_zeros_entering() -> None:
    split = make_split(400)
    images = joined(list(batches(split, 64, augment=AUGMENT))).images
    seen: set[tuple[bool, int, int]] = set()
    for original, changed in zip(split.images, (images * 255).round().to(torch.uint8).numpy(), strict=True):
        fits = []
        for flip in (False, True):
            padded = np.pad(original[:, :, ::-1] if flip else original, ((0, 0), (2, 2), (2, 2)))
            fits += [
                (flip, top, left)
                for top in range(5)
                for left in range(5)
                if (padded[:, top : top + 6, left : left + 6] == changed).all()
            ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 50  # every flip with every shift came up


def test_flip_alone_leaves_half_as_it_is_and_the_data_untouched() -> None:
    split = make_split(400)
    before = split.images.copy()
    images, _, _, views = joined(list(batches(split, 64, augment=Augmentation(flip=True))))
    unchanged = (images == torch.from_numpy(before) / 255).all(dim=(1, 2, 3))
    assert 0.4 < unchanged.float().mean() < 0.6
    assert torch.equal(views == 0, unchanged)  # the view says which images were mirrored
    assert (split.images == before).all()
    assert not Augmentation().active
    assert (Augmentation().view_count, Augmentation(flip=True).view_count, AUGMENT.view_count) == (1, 2, None)


def test_without_views_the_bytes_are_those_of_earlier_versions() -> None:
    digest = hashlib.sha256()
    for augment in (None, Augmentation(flip=True), Augmentation(shift_px=1), AUGMENT):
        for batch in batches(make_split(), 8, seed=3, epoch=2, augment=augment, shuffle=True):
            for part in batch:
                digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == "f2751767b96b736527941683670abb00b48e8743c5dc2fac36ba75c584a8eb51"


def view_images(split: Split, augment: Augmentation) -> torch.Tensor:
    """Every view of every sample, (views, samples, channels, height, width)."""
    count = augment.view_count
    assert count is not None
    return torch.stack([joined(list(batches(split, 7, augment=augment, view=view))).images for view in range(count)])


@pytest.mark.parametrize("augment", [VIEWS, replace(VIEWS, flip=False), Augmentation(flip=True), Augmentation()])
def test_a_view_is_one_image_whatever_the_epoch_seed_and_batch(augment: Augmentation) -> None:
    split = make_split()
    expected = view_images(split, augment)
    seen = set()
    for seed, epoch, size, shuffle in [(0, 0, 8, True), (0, 1, 50, False), (9, 1, 3, True), (9, 2, 3, True)]:
        batch = joined(list(batches(split, size, seed=seed, epoch=epoch, augment=augment, shuffle=shuffle)))
        assert torch.equal(batch.images, expected[batch.views, batch.indices])
        seen |= set(batch.views.tolist())
    assert seen == set(range(len(expected)))


def test_a_view_depends_on_its_seed_its_number_and_the_sample_alone() -> None:
    views = view_images(make_split(50), VIEWS)
    other = view_images(make_split(50), replace(VIEWS, view_seed=8))
    assert torch.equal(view_images(make_split(20), VIEWS), views[:, :20])
    assert torch.equal(view_images(make_split(50), replace(VIEWS, views=9))[:5], views)
    assert len({view.numpy().tobytes() for view in (*views, *other)}) == 10


def test_views_are_flips_and_shifts_and_each_is_drawn_as_often() -> None:
    split = make_split(400)
    views = (view_images(split, replace(VIEWS, views=20)) * 255).round().to(torch.uint8).numpy()
    padded = np.pad(split.images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    mirrored = np.pad(split.images[..., ::-1], ((0, 0), (0, 0), (2, 2), (2, 2)))
    changes = [(source, top, left) for source in (padded, mirrored) for top in range(5) for left in range(5)]
    counts = [
        int((source[:, :, top : top + 6, left : left + 6] == views).all(axis=(2, 3, 4)).sum())
        for source, top, left in changes
    ]
    assert sum(counts) == views.shape[0] * 400  # each is one of them, and of no two
    assert max(abs(count - 160) for count in counts) < 50  # the deviation is 13
    drawn = joined(list(batches(split, 64, seed=1, epoch=3, augment=VIEWS))).views
    assert min(torch.bincount(drawn)) > 50  # of 80; the deviation is 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"batch_size": 4, "seed": -1}, "seed >= 0"),
        ({"batch_size": 4, "augment": Augmentation(shift_px=6)}, "shift_px is 6, expected 0 or more and below 6"),
        ({"batch_size": 4, "augment": replace(AUGMENT, views=0)}, "views is 0, expected 1 or more"),
        ({"batch_size": 4, "augment": VIEWS, "view": 5}, "view is 5, expected 0 or more and below 5"),
        ({"batch_size": 4, "augment": AUGMENT, "view": 0}, "view is 0, expected 0 or more and below 0"),
        ({"batch_size": 4, "view": 1}, "view is 1, expected 0 or more and below 1"),
    ],
)
def test_wrong_arguments_fail_at_the_call(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(make_split(), **options)
