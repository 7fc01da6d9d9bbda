"""Labels that may be read; all others are hidden before anything learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from compress.data.rules import subset_indices
from compress.data.split import HIDDEN, Dataset, Split

Labels = int | Literal["all", "none"]
UNLABELLED_PER_LABELLED = 7


def hide_labels(data: Dataset, labels: Labels, option: str, *, unlabelled: bool = False) -> Dataset:
    """Replace every training label that may not be read by -1; images and their order stay.

    Which labels may be read depends on content: of each class those of the images with the lowest digests. The choice
    looks at the labels of no image beyond the last chosen one, and at the size of a class only where it is too small.

    Args:
        data: as loaded.
        labels: all, none, or how many: at least one of each class, balanced.
        option: the option's name, for messages.
        unlabelled: append the images without label, if the data have any, to the training split.

    Raises:
        DataError: fewer labels than classes, or more than there are training images.
    """
    train = data.train
    if labels != "all":
        kept = np.zeros(0, np.int64) if labels == "none" else subset_indices(train, labels, data.classes, option)
        visible = np.full(len(train), HIDDEN, np.int64)
        visible[kept] = train.labels[kept]
        train = replace(train, labels=visible)
    if unlabelled and data.unlabelled is not None:
        train = _appended(train, data.unlabelled)
    return replace(data, train=train, unlabelled=None)


def _appended(train: Split, more: Split) -> Split:
    images, labels = np.concatenate((train.images, more.images)), np.concatenate((train.labels, more.labels))
    return Split(train.name, images, labels, train.ids + more.ids)


def labelled_alone(train: Split) -> Split:
    """The images with a label, repeated in turn to the length of the whole split: an epoch keeps its number of steps.

    A split with all labels, or with none, is returned as it is.
    """
    labelled = np.flatnonzero(train.labels != HIDDEN)
    if len(labelled) in (0, len(train)):
        return train
    return train.take(np.resize(labelled, len(train)))


def labelled_per_batch(train: Split, batch_size: int) -> int:
    """How many labelled images follow each batch that is drawn from all images, so that none lacks labels.

    One for each seven, as in FixMatch (Sohn et al., 2020, arXiv:2001.07685, mu = 7), where the labelled images are
    among all images too; 0 where all images have labels, or none has.
    """
    count = int((train.labels != HIDDEN).sum())
    return 0 if count in (0, len(train)) else -(-batch_size // UNLABELLED_PER_LABELLED)
