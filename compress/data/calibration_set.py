"""The samples from which activation ranges are measured."""

from __future__ import annotations

from collections.abc import Sequence

from compress.data.split import Split
from compress.errors import DataError

MIN_SAMPLES = 100
ADVISED_SAMPLES = 500


def calibration_set(train: Split, samples: int, classes: Sequence[str] = ()) -> tuple[Split, tuple[str, ...]]:
    """Choose a class-balanced, fixed, unaugmented part of the training images.

    The choice depends on the images' content alone; identical images count once.

    Args:
        train: the training split.
        samples: how many images, >= 100.
        classes: class names in label order; left out, the classes are those that `train` has.

    Returns:
        The split `calibration`, in the order of `train`, and warnings for people: fewer than 500
        samples, or a class without any.

    Raises:
        DataError: fewer than 100 were asked for, or `train` has fewer distinct images than asked for.
    """
    import numpy as np

    from compress.data.rules import balanced_quota, ranked

    if samples < MIN_SAMPLES:
        raise DataError(
            f"calibration set too small: got {samples} samples, expected at least {MIN_SAMPLES}",
            hint=f"samples: {ADVISED_SAMPLES}",
        )
    _, first = np.unique(np.array(train.digests()), return_index=True)
    distinct = train.take(np.sort(first))
    if len(distinct) < samples:
        raise DataError(
            f"too few samples: the calibration set needs {samples}, {train.name} has {len(distinct)} distinct images",
            hint="ask for fewer samples, or raise data.train_samples",
        )
    names = classes or [str(label) for label in range(int(train.labels.max()) + 1)]
    quota = balanced_quota(np.bincount(distinct.labels, minlength=len(names)).tolist(), samples)
    chosen = distinct.take(ranked(distinct, quota), "calibration")
    warnings: list[str] = []
    if samples < ADVISED_SAMPLES:
        warnings.append(f"{samples} calibration samples are few: {ADVISED_SAMPLES} or more give steadier ranges")
    absent = [names[label] for label, count in enumerate(quota) if not count]
    if absent:
        warnings.append(f"no calibration sample of class {', '.join(absent)}")
    return chosen, tuple(warnings)
