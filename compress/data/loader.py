"""Seeded batches: the same bytes for the same seed and epoch, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from compress.data.split import HIDDEN, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images.

    Attributes:
        flip: mirror every image left to right with probability 1/2.
        shift_px: move every image by up to so many pixels along each axis; what enters is zero.
        views: draw the changes of every image once, so many times over, and show one of these views in each epoch;
            >= 1. None: draw them anew in each epoch.
        view_seed: from which the views are drawn, >= 0; of no effect without `views`.
    """

    flip: bool = False
    shift_px: int = 0
    views: int | None = None
    view_seed: int = 0

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return self.flip or self.shift_px > 0

    @property
    def view_count(self) -> int | None:
        """How many images one sample can become, where those repeat exactly; else None."""
        if not self.active:
            return 1
        if self.views is None and self.shift_px == 0:
            return 2
        return self.views


class Batch(NamedTuple):
    """Some samples of a split.

    Attributes:
        images: (n, channels, height, width), float32 in [0, 1].
        labels: (n,), int64.
        indices: (n,), int64: positions in the split.
        views: (n,), int64: which of the augmentation's views each image is, from 0; where it has none, 1 says mirrored.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    views: torch.Tensor


def batch_count(samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Return how many batches `batches` yields for so many samples."""
    return samples // batch_size if drop_last else -(-samples // batch_size)


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    augment: Augmentation | None = None,
    view: int | None = None,
    shuffle: bool = False,
    drop_last: bool = False,
    labelled: int = 0,
) -> Iterator[Batch]:
    """Yield a split once, in sample order or shuffled.

    Order, and changes or views, are drawn for the whole epoch from (seed, epoch); what becomes of a sample does not
    depend on the batch size. View v of sample i is one image, given by (view_seed, v, i) alone.

    Args:
        split: the samples.
        batch_size: samples in a batch, >= 1.
        seed: of the run, >= 0.
        epoch: counted from 0.
        augment: changes to the images; None for none.
        view: show this view of every sample, in [0, view_count), instead of drawing one.
        shuffle: another order each epoch.
        drop_last: leave out a last batch with fewer samples.
        labelled: so many samples with a label follow in every batch; they are drawn in turn, in an order of their own.

    Raises:
        ValueError: batch_size or views < 1, seed or epoch < 0, shift_px < 0 or beyond the image, or no such view.
    """
    if batch_size < 1 or seed < 0 or epoch < 0:
        raise ValueError(f"expected batch_size >= 1, seed >= 0, epoch >= 0; got {batch_size}, {seed}, {epoch}")
    augment = augment or Augmentation()
    _check_augmentation(augment, view, min(split.images.shape[2:]))
    # Separate streams, so that augmenting does not change the order.
    order_stream, change_stream = _stream(seed, epoch, 0), _stream(seed, epoch, 1)
    order = order_stream.permutation(len(split)) if shuffle else np.arange(len(split))
    count = batch_count(len(split), batch_size, drop_last=drop_last)
    if labelled:
        order = _with_labelled(order, split, batch_size, count, labelled, _stream(seed, epoch, 4))
        batch_size += labelled
    changes = _changes(augment, change_stream, len(split), view) if augment.active else None
    return _batches(split, order.astype(np.int64), batch_size, count, changes)


def _with_labelled(
    order: NDArray[np.int64], split: Split, batch_size: int, count: int, labelled: int, stream: np.random.Generator
) -> NDArray[np.int64]:
    """Put `labelled` indices of labelled samples behind every `batch_size` indices of an order."""
    pool = np.flatnonzero(split.labels != HIDDEN)
    rounds = -(-count * labelled // len(pool))
    extra = np.concatenate([stream.permutation(pool) for _ in range(rounds)])
    parts = [
        part
        for number in range(count)
        for part in (order[number * batch_size :][:batch_size], extra[number * labelled :][:labelled])
    ]
    return np.concatenate(parts)


def _check_augmentation(augment: Augmentation, view: int | None, side: int) -> None:
    if not 0 <= augment.shift_px < side:
        raise ValueError(f"shift_px is {augment.shift_px}, expected 0 or more and below {side}")
    if augment.views is not None and augment.views < 1:
        raise ValueError(f"views is {augment.views}, expected 1 or more")
    if view is not None and not 0 <= view < (augment.view_count or 0):
        raise ValueError(f"view is {view}, expected 0 or more and below {augment.view_count or 0}")


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key))


def _batches(
    split: Split, order: NDArray[np.int64], batch_size: int, count: int, changes: _Changes | None
) -> Iterator[Batch]:
    for number in range(count):
        chosen = order[number * batch_size : (number + 1) * batch_size]
        pixels = split.images[chosen]
        views = np.zeros(len(chosen), np.int64)
        if changes is not None:
            pixels = changes.apply(pixels, chosen)
            views = changes.views[chosen]
        images = torch.from_numpy(pixels).to(torch.float32).div_(255)
        yield Batch(images, torch.from_numpy(split.labels[chosen]), torch.from_numpy(chosen), torch.from_numpy(views))


class _Changes(NamedTuple):
    """What becomes of every sample in one epoch."""

    views: NDArray[np.int64]  # (samples,)
    flips: NDArray[np.bool_]  # (samples,)
    corners: NDArray[np.int64]  # (samples, 2): top and left of the window into the padded image
    shift_px: int

    def apply(self, pixels: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return changed copies of the samples at `indices`."""
        flips = self.flips[indices]
        pixels[flips] = pixels[flips, :, :, ::-1]
        if not self.shift_px:
            return pixels
        height, width = pixels.shape[2:]
        padding = (self.shift_px, self.shift_px)
        padded = np.pad(pixels, ((0, 0), (0, 0), padding, padding))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        top, left = self.corners[indices].T
        return np.ascontiguousarray(windows[np.arange(len(pixels)), :, top, left])


def _changes(augment: Augmentation, stream: np.random.Generator, samples: int, view: int | None) -> _Changes:
    """Flips and shifts of every sample: drawn from the epoch's stream, or those of a view."""
    if augment.views is not None:
        views = np.full(samples, view) if view is not None else stream.integers(0, augment.views, samples)
        return _changes_of_views(augment, views)
    flips, corners = _draw(augment, stream, stream, samples)
    if view is not None:  # as it is, or mirrored
        flips = np.full(samples, view == 1)
    return _Changes(flips.astype(np.int64), flips, corners, augment.shift_px)


def _changes_of_views(augment: Augmentation, views: NDArray[np.int64]) -> _Changes:
    flips, corners = np.zeros(len(views), np.bool_), np.zeros((len(views), 2), np.int64)
    for view in np.unique(views).tolist():
        chosen = views == view
        # Two streams: what comes for sample i does not depend on how many samples there are.
        flip_stream, shift_stream = _stream(augment.view_seed, view, 2), _stream(augment.view_seed, view, 3)
        its_flips, its_corners = _draw(augment, flip_stream, shift_stream, len(views))
        flips[chosen], corners[chosen] = its_flips[chosen], its_corners[chosen]
    return _Changes(views, flips, corners, augment.shift_px)


def _draw(
    augment: Augmentation, flip_stream: np.random.Generator, shift_stream: np.random.Generator, samples: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    flips = flip_stream.random(samples) < (0.5 if augment.flip else 0.0)
    return flips, shift_stream.integers(0, 2 * augment.shift_px + 1, size=(samples, 2))
