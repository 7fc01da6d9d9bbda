from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from compress.errors import ModelError
from compress.measure.fidelity import ClassChange, compare_logits, kl_per_sample, parity, worst_class

LABELS = np.array([0, 1, 2, 1])
REFERENCE = np.array([[5, 1, 0], [0, 5, 1], [5, 0, 1], [0, 5, 1]], dtype=np.float32)  # right, right, wrong, right
CANDIDATE = np.array([[5, 1, 0], [5, 0, 1], [0, 1, 5], [5, 0, 1]], dtype=np.float32)  # right, wrong, right, wrong


def test_counts_by_hand() -> None:
    found = compare_logits(CANDIDATE, REFERENCE, LABELS)
    assert (found.n, found.correct, found.gained, found.lost) == (4, 2, 1, 2)
    assert found.top1 == 0.5
    assert found.agreement == 0.25


def test_a_model_against_itself_agrees_fully() -> None:
    found = compare_logits(REFERENCE, REFERENCE, LABELS)
    assert (found.agreement, found.mean_kl, found.gained, found.lost, found.top1) == (1.0, 0.0, 0, 0, 0.75)


def test_kl_by_hand_and_in_its_direction() -> None:
    reference = np.log(np.array([[0.5, 0.5]]))
    candidate = np.log(np.array([[0.25, 0.75]])) + 3.0  # a constant changes no softmax
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_per_sample(candidate, reference)[0] == pytest.approx(expected, abs=1e-12)
    backwards = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_per_sample(reference, candidate)[0] == pytest.approx(backwards, abs=1e-12)


def test_kl_equals_scipy_and_survives_large_logits() -> None:
    chance = np.random.default_rng(0)
    candidate, reference = chance.normal(0, 3, (2, 50, 10)).astype(np.float32)
    expected = [
        stats.entropy(special.softmax(p.astype(np.float64)), special.softmax(q.astype(np.float64)))
        for p, q in zip(reference, candidate, strict=True)
    ]
    np.testing.assert_allclose(kl_per_sample(candidate, reference), expected, rtol=1e-9, atol=1e-12)
    extreme = kl_per_sample(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))
    assert extreme[0] == pytest.approx(1e4)


def test_parity_by_hand() -> None:
    reference = np.array([[3.0, 4.0]], dtype=np.float32)
    found = parity(reference + np.float32(0.5), reference)
    assert found.max_abs == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.5), abs=1e-9)
    assert found.cosine == pytest.approx((3.5 * 3 + 4.5 * 4) / (5 * math.hypot(3.5, 4.5)), abs=1e-12)


@pytest.mark.parametrize(
    ("candidate", "reference", "cosine", "sqnr_db"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1.0, 200.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0, 200.0),
        ([0.0, 0.0], [1.0, 2.0], 0.0, 0.0),
        ([1.0, 2.0], [0.0, 0.0], 0.0, -200.0),
        ([-1.0, -2.0], [1.0, 2.0], -1.0, -6.0206),
    ],
)
def test_parity_at_its_ends(candidate: list[float], reference: list[float], cosine: float, sqnr_db: float) -> None:
    found = parity(np.array(candidate), np.array(reference))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.sqnr_db == pytest.approx(sqnr_db, abs=1e-4)


def test_sqnr_of_uniform_rounding_follows_theory() -> None:
    signal = np.random.default_rng(1).uniform(-1, 1, 100_000)
    scale = 1 / 127
    rounded = np.round(signal / scale) * scale
    # signal power 1/3, noise power scale^2 / 12
    assert parity(rounded, signal).sqnr_db == pytest.approx(10 * math.log10((1 / 3) / (scale**2 / 12)), abs=0.1)


def test_worst_class_is_named_with_its_count() -> None:
    assert worst_class(CANDIDATE, REFERENCE, LABELS) == ClassChange(label=1, change_pp=-100.0, n=2)
    assert worst_class(REFERENCE, REFERENCE, LABELS) == ClassChange(label=0, change_pp=0.0, n=1)


@pytest.mark.parametrize(
    ("candidate", "reference", "labels", "message"),
    [
        (CANDIDATE[:3], REFERENCE, LABELS, "equal shape"),
        (CANDIDATE[:, :2], REFERENCE, LABELS, "equal shape"),
        (CANDIDATE[0], REFERENCE[0], LABELS, "equal shape"),
        (CANDIDATE[:0], REFERENCE[:0], LABELS[:0], "equal shape"),
        (CANDIDATE, REFERENCE, LABELS[:3], r"labels of shape \(4,\), got \(3,\)"),
        (CANDIDATE, REFERENCE, np.array([0, 1, 2, 3]), r"labels in \[0, 3\), got 0 to 3"),
        (CANDIDATE, REFERENCE, np.array([0, 1, 2, -1]), r"labels in \[0, 3\), got -1 to 2"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(
    candidate: np.ndarray, reference: np.ndarray, labels: np.ndarray, message: str
) -> None:
    for function in (compare_logits, worst_class):
        with pytest.raises(ValueError, match=message):
            function(candidate, reference, labels)


def test_outputs_that_are_not_finite_are_the_models_fault() -> None:
    broken = CANDIDATE.copy()
    broken[1, 2] = np.nan
    broken[3, 0] = np.inf
    for function in (lambda: compare_logits(broken, REFERENCE, LABELS), lambda: parity(broken, REFERENCE)):
        with pytest.raises(ModelError, match="outputs of the candidate hold 2 values that are not finite") as error:
            function()
        assert error.value.exit_code == 5
        assert error.value.where == "first at index (1, 2)"
    with pytest.raises(ModelError, match="outputs of the reference"):
        kl_per_sample(REFERENCE, broken)


def test_parity_refuses_shapes_that_differ_or_are_empty() -> None:
    with pytest.raises(ValueError, match="expected equal shapes"):
        parity(CANDIDATE, REFERENCE[:2])
    with pytest.raises(ValueError, match="expected equal shapes"):
        parity(CANDIDATE[:0], REFERENCE[:0])
