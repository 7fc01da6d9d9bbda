"""How close a candidate's outputs are to a reference's, sample by sample."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import ModelError

SQNR_CAP_DB = 200.0
CALIBRATION_BINS = 15
_ROWS = 1024

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Fidelity:
    """A candidate against a reference on the same labelled samples.

    `agreement` is the share of samples on which both predict the same class; `mean_kl` and `p99_kl` are the mean and
    the 99th percentile of KL(reference || candidate), nats per sample; `gained` counts the samples that only the
    candidate has right, `lost` those that only the reference has right.
    """

    n: int
    correct: int
    agreement: float
    mean_kl: float
    p99_kl: float
    gained: int
    lost: int

    @property
    def top1(self) -> float:
        """Share of samples whose largest logit is the label's, as a fraction."""
        return self.correct / self.n


@dataclass(frozen=True)
class Parity:
    """Distance of two outputs: largest absolute difference (logits), cosine, signal to quantization noise (dB)."""

    max_abs: float
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of one class, a fraction of its `n` samples, and candidate minus reference in percentage points."""

    label: int
    change_pp: float
    n: int
    top1: float


@dataclass(frozen=True)
class ConfusionChange:
    """How many more samples of class `label` the candidate takes for `predicted` than the reference (or fewer: < 0)."""

    label: int
    predicted: int
    change: int


@dataclass(frozen=True)
class ChangedSample:
    """A sample, by its index, with both predictions and KL(reference || candidate) in nats."""

    index: int
    reference: int
    predicted: int
    kl: float


def compare_logits(candidate: Logits, reference: Logits, labels: Labels) -> Fidelity:
    """Compare the predictions of two models on the same samples.

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.
        labels: (samples,), integers in [0, classes).

    Returns:
        Counts, and means over the samples; the largest logit predicts, the first one among equals.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, labels)
    predicted, expected = candidate.argmax(axis=1), reference.argmax(axis=1)
    right, reference_right = predicted == labels, expected == labels
    kl = _kl(candidate, reference)
    return Fidelity(
        n=len(labels),
        correct=int(right.sum()),
        agreement=float((predicted == expected).mean()),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.percentile(kl, 99)),
        gained=int((right & ~reference_right).sum()),
        lost=int((~right & reference_right).sum()),
    )


def kl_per_sample(candidate: Logits, reference: Logits) -> NDArray[np.float64]:
    """KL(reference || candidate) of the softmax outputs (Kullback and Leibler, 1951, doi:10.1214/aoms/1177729694).

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.

    Returns:
        Nats, (samples,), float64, >= 0.

    Raises:
        ValueError: shapes differ, or are not (samples, classes).
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, None)
    return _kl(candidate, reference)


def parity(candidate: Logits, reference: Logits) -> Parity:
    """How far two outputs of any equal shape are apart.

    SQNR is 10 log10(sum reference^2 / sum (reference - candidate)^2), over all elements in float64. It is clipped to
    +-200 dB, far beyond what float32 resolves, so that identical outputs have a number that JSON can carry.

    Args:
        candidate: any shape, float.
        reference: the same shape, float.

    Returns:
        Largest absolute difference, cosine in [-1, 1] (1 for two zero outputs, 0 for one), SQNR in dB.

    Raises:
        ValueError: shapes differ, or are empty.
        ModelError: an element is not finite.
    """
    if candidate.shape != reference.shape or not candidate.size:
        raise ValueError(f"expected equal shapes that are not empty, got {candidate.shape} and {reference.shape}")
    _check_finite(candidate, "candidate")
    _check_finite(reference, "reference")
    got, want = candidate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    noise, signal, power = float(((got - want) ** 2).sum()), float((want**2).sum()), float((got**2).sum())
    if signal == 0 or power == 0:
        cosine = 1.0 if signal == power else 0.0
    else:
        cosine = float(np.clip(got @ want / (np.sqrt(signal) * np.sqrt(power)), -1.0, 1.0))
    if noise == 0:
        sqnr_db = SQNR_CAP_DB
    elif signal == 0:
        sqnr_db = -SQNR_CAP_DB
    else:
        sqnr_db = float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -SQNR_CAP_DB, SQNR_CAP_DB))
    return Parity(float(np.abs(got - want).max()), cosine, sqnr_db)


def expected_calibration_error(logits: Logits, labels: Labels) -> float:
    """How far confidence and accuracy are apart (Guo et al., 2017, arXiv:1706.04599), with 15 bins of equal width.

    Args:
        logits: (samples, classes), float.
        labels: (samples,), integers in [0, classes).

    Returns:
        Mean over the samples of |accuracy - mean confidence| of their bin, within [0, 1]. A bin holds its upper edge.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(logits, logits, labels)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64).sum(axis=1)
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64).clip(1, CALIBRATION_BINS) - 1
    distance = (logits.argmax(axis=1) == labels) - confidence
    return float(np.abs(np.bincount(bins, weights=distance, minlength=CALIBRATION_BINS)).sum() / len(labels))


def class_changes(candidate: Logits, reference: Logits, labels: Labels) -> list[ClassChange]:
    """Accuracy of each class, and its change.

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.
        labels: (samples,), integers in [0, classes).

    Returns:
        The classes that have samples, by label.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, labels)
    right = (candidate.argmax(axis=1) == labels).astype(np.int64)
    change = right - (reference.argmax(axis=1) == labels)
    present, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rights, changes = (np.bincount(inverse, weights=of, minlength=len(present)) / counts for of in (right, change))
    return [
        ClassChange(int(label), float(100 * changes[i]), int(counts[i]), float(rights[i]))
        for i, label in enumerate(present)
    ]


def worst_class(changes: list[ClassChange]) -> ClassChange:
    """Name the class whose accuracy changed most for the worse (or least for the better).

    Args:
        changes: from `class_changes`.

    Returns:
        The smallest change; the lowest label among equals.
    """
    return min(changes, key=lambda found: (found.change_pp, found.label))


def confusion_changes(candidate: Logits, reference: Logits, labels: Labels, limit: int) -> list[ConfusionChange]:
    """Compare the confusion matrices of two models, right answers included.

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.
        labels: (samples,), integers in [0, classes).
        limit: entries at most.

    Returns:
        The entries that changed, largest first; among equals by label, then prediction.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, labels)
    predicted, expected = candidate.argmax(axis=1), reference.argmax(axis=1)
    differ = np.flatnonzero(predicted != expected)
    moved = np.concatenate([predicted[differ], expected[differ]])
    cells, inverse = np.unique(np.tile(labels[differ], 2) * candidate.shape[1] + moved, return_inverse=True)
    changes = np.bincount(inverse, weights=np.repeat([1, -1], len(differ)), minlength=len(cells)).astype(np.int64)
    order = np.argsort(-np.abs(changes), kind="stable")  # cells ascend already
    found = [(*divmod(int(cells[i]), candidate.shape[1]), int(changes[i])) for i in order[:limit] if changes[i]]
    return [ConfusionChange(*entry) for entry in found]


def most_changed(candidate: Logits, reference: Logits, limit: int) -> list[ChangedSample]:
    """Find the samples on which a candidate is farthest from the reference.

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.
        limit: samples at most.

    Returns:
        Largest KL first, those without any difference left out; the lowest index among equals.

    Raises:
        ValueError: shapes differ, or are not (samples, classes).
        ModelError: a logit is not finite.
    """
    kl = kl_per_sample(candidate, reference)
    order = [int(i) for i in np.argsort(-kl, kind="stable")[:limit] if kl[i] > 0]
    return [ChangedSample(i, int(reference[i].argmax()), int(candidate[i].argmax()), float(kl[i])) for i in order]


def correct_bits(logits: Logits, labels: Labels) -> str:
    """Which samples are right, as text for a report.

    Args:
        logits: (samples, classes), float.
        labels: (samples,), integers in [0, classes).

    Returns:
        Base64 of one bit a sample, first sample highest, filled up with zeros to a whole byte.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(logits, logits, labels)
    return _packed(logits.argmax(axis=1) == labels)


def agreement_bits(candidate: Logits, reference: Logits) -> str:
    """Which samples get the reference's prediction, as text for a report.

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.

    Returns:
        The same form as `correct_bits`.

    Raises:
        ValueError: shapes differ, or are not (samples, classes).
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, None)
    return _packed(candidate.argmax(axis=1) == reference.argmax(axis=1))


def _packed(answers: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(answers).tobytes()).decode("ascii")


def _kl(candidate: Logits, reference: Logits) -> NDArray[np.float64]:
    found = np.empty(len(candidate))
    for start in range(0, len(candidate), _ROWS):  # what fits in a cache takes a fifth of the time
        rows = slice(start, start + _ROWS)
        log_p, log_q = _log_softmax(reference[rows]), _log_softmax(candidate[rows])
        found[rows] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    # Rounding can leave equal distributions a hair below 0.
    return np.maximum(found, 0.0)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _check(candidate: Logits, reference: Logits, labels: Labels | None) -> None:
    if candidate.ndim != 2 or candidate.shape != reference.shape or 0 in candidate.shape:
        raise ValueError(
            f"expected logits of equal shape (samples, classes), got {candidate.shape} and {reference.shape}"
        )
    if labels is not None:
        classes = candidate.shape[1]
        if labels.shape != candidate.shape[:1]:
            raise ValueError(f"expected labels of shape {candidate.shape[:1]}, got {labels.shape}")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"expected labels in [0, {classes}), got {labels.min()} to {labels.max()}")
    _check_finite(candidate, "candidate")
    _check_finite(reference, "reference")


def _check_finite(values: Logits, role: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ModelError(
            f"the outputs of the {role} hold {int((~finite).sum())} values that are not finite, expected 0",
            where=f"first at index {first}",
            hint="look for NaN weights, or an overflow in a reduced precision",
        )
