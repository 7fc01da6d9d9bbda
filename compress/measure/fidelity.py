"""How close a candidate's outputs are to a reference's, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import ModelError

SQNR_CAP_DB = 200.0

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Fidelity:
    """A candidate against a reference on the same labelled samples.

    `agreement` is the share of samples on which both predict the same class; `mean_kl` is
    KL(reference || candidate), nats per sample; `gained` counts the samples that only the candidate has right,
    `lost` those that only the reference has right.
    """

    n: int
    correct: int
    agreement: float
    mean_kl: float
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
    """Change of one class's accuracy, candidate minus reference, in percentage points over its `n` samples."""

    label: int
    change_pp: float
    n: int


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
    return Fidelity(
        n=len(labels),
        correct=int(right.sum()),
        agreement=float((predicted == expected).mean()),
        mean_kl=float(kl_per_sample(candidate, reference).mean()),
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
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    # Rounding can leave equal distributions a hair below 0.
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


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


def worst_class(candidate: Logits, reference: Logits, labels: Labels) -> ClassChange:
    """Name the class whose accuracy changed most for the worse (or least for the better).

    Args:
        candidate: logits, (samples, classes), float.
        reference: logits, (samples, classes), float.
        labels: (samples,), integers in [0, classes).

    Returns:
        The smallest change among classes that have samples; the lowest label among equals.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    _check(candidate, reference, labels)
    right = (candidate.argmax(axis=1) == labels).astype(np.int64)
    change = right - (reference.argmax(axis=1) == labels)
    present, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    changes = np.bincount(inverse, weights=change, minlength=len(present)) / counts * 100
    worst = int(changes.argmin())
    return ClassChange(int(present[worst]), float(changes[worst]), int(counts[worst]))


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


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
