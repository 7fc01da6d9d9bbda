"""How samples are assigned to splits and subsets: by content, never by seed, name or order.

Within a class, samples are ranked by the SHA-256 of their pixels. The ranking is as good as random,
is the same on every machine, and keeps identical images next to each other and thus on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.data.split import Split
from compress.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Labels = NDArray[np.int64]


def proportional_quota(counts: Sequence[int], total: int) -> list[int]:
    """Share `total` among classes in proportion to their counts, at least one each and never a whole class.

    Args:
        counts: samples per class, each >= 2.
        total: samples wanted, in [classes, sum(counts) - classes].

    Returns:
        Samples per class; they add up to `total`.
    """
    room = [count - 2 for count in counts]
    spare = total - len(counts)
    exact = [spare * r / max(1, sum(room)) for r in room]
    quota = [1 + int(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda c: (int(exact[c]) - exact[c], c))
    for c in by_remainder[: total - sum(quota)]:
        quota[c] += 1
    return quota


def balanced_quota(counts: Sequence[int], total: int) -> list[int]:
    """Share `total` equally; what a small class cannot give, the others do.

    Args:
        counts: samples per class, >= 0.
        total: samples wanted, at most sum(counts).

    Returns:
        Samples per class; they add up to `total`.
    """
    quota = [0] * len(counts)
    left = total
    while left:
        unfilled = [c for c, count in enumerate(counts) if quota[c] < count]
        share, extra = divmod(left, len(unfilled))
        for rank, c in enumerate(unfilled):
            more = min(share + (rank < extra), counts[c] - quota[c])
            quota[c] += more
            left -= more
    return quota


def pick(labels: Labels, digests: Sequence[str], quota: Sequence[int]) -> Mask:
    """Choose `quota[c]` samples of each class c in the order of their digests, identical images together.

    A group of identical images that would exceed its class's quota is passed over, so a class
    with many duplicates may yield fewer.

    Args:
        labels: (n,), class of each sample.
        digests: n content digests.
        quota: samples per class.

    Returns:
        (n,), true where chosen.
    """
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    left = list(quota)
    chosen = np.zeros(len(labels), dtype=bool)
    owners = labels.tolist()
    for digest in sorted(groups):
        members = groups[digest]
        owner = owners[members[0]]
        if len(members) <= left[owner]:
            left[owner] -= len(members)
            chosen[members] = True
    return chosen


def split_off(split: Split, total: int, classes: Sequence[str], name: str) -> tuple[Split, Split]:
    """Move a class-stratified, fixed part of a split into a new one.

    Args:
        split: samples of every class, at least two distinct ones each.
        total: samples of the part; raised to one per class.
        classes: class names in label order.
        name: of the part.

    Returns:
        The rest under the old name, and the part.

    Raises:
        DataError: a class has too few samples to be on both sides.
    """
    counts = np.bincount(split.labels, minlength=len(classes)).tolist()
    for label, count in enumerate(counts):
        if count < 2:
            raise _too_few(split.name, name, classes[label], count)
    total = min(max(total, len(classes)), len(split) - len(classes))
    chosen = pick(split.labels, split.digests(), proportional_quota(counts, total))
    for mask in (chosen, ~chosen):
        got = np.bincount(split.labels[mask], minlength=len(classes))
        if not got.all():
            label = int(got.argmin())
            raise _too_few(split.name, name, classes[label], 1)
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen), name)


def _too_few(source: str, part: str, label: str, distinct: int) -> DataError:
    return DataError(
        f"too few samples: class {label!r} has {distinct} distinct image(s) to share between {source} and {part},"
        " expected at least 2",
        where=source,
        hint="add images of this class",
    )


def subset(split: Split, samples: int | None, classes: Sequence[str], option: str) -> Split:
    """Keep a class-balanced, fixed subset; a smaller one is part of a larger one's classes' ranking.

    Args:
        split: what to choose from; sample order is kept.
        samples: how many; None keeps all.
        classes: class names in label order.
        option: the option's name, for messages.

    Raises:
        DataError: fewer than one per class, or more than there are.
    """
    return split if samples is None else split.take(subset_indices(split, samples, classes, option))


def subset_indices(split: Split, samples: int, classes: Sequence[str], option: str) -> NDArray[np.int64]:
    """Return the indices, ascending, of the samples that `subset` keeps; raises what it raises."""
    if samples < len(classes):
        raise DataError(
            f"too few samples: {option} is {samples}, expected at least one for each of {len(classes)} classes",
            hint=f"--set {option}={len(classes)} or more",
        )
    if samples > len(split):
        raise DataError(
            f"{option} is {samples}, but {split.name} has {len(split)} samples",
            hint=f"--set {option}={len(split)} or fewer, or leave it out to use all",
        )
    return ranked(split, balanced_quota(_counts(split, classes), samples))


def _counts(split: Split, classes: Sequence[str]) -> list[int]:
    return np.bincount(split.labels, minlength=len(classes)).tolist()


def ranked(split: Split, quota: Sequence[int]) -> NDArray[np.int64]:
    """Return the indices, ascending, of the `quota[c]` samples of each class c with the lowest digests."""
    digests, labels = split.digests(), split.labels.tolist()
    left, chosen = list(quota), []
    for index in sorted(range(len(labels)), key=lambda i: (digests[i], i)):
        if left[labels[index]]:
            left[labels[index]] -= 1
            chosen.append(index)
    return np.array(sorted(chosen), dtype=np.int64)
