from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.data.loader import Augmentation, Batch, batch_count, batches
from compress.data.split import Split

AUGMENT = Augmentation(flip=True, shift_px=2)


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
    assert (Augmentation().views, Augmentation(flip=True).views, AUGMENT.views) == (1, 2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"batch_size": 4, "seed": -1}, "seed >= 0"),
        ({"batch_size": 4, "augment": Augmentation(shift_px=6)}, "shift_px is 6, expected 0 or more and below 6"),
    ],
)
def test_wrong_arguments_fail_at_the_call(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(make_split(), **options)
