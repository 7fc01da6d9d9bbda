from __future__ import annotations

import base64
import math

import numpy as np
import pytest
from scipy import special, stats

from compress.errors import ModelError
from compress.measure.fidelity import (
    ChangedSample,
    ClassChange,
    ConfusionChange,
    agreement_bits,
    class_changes,
    compare_logits,
    confusion_changes,
    correct_bits,
    expected_calibration_error,
    kl_per_sample,
    most_changed,
    parity,
    worst_class,
)

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
    assert found.p99_kl == 0.0


def test_p99_of_kl_is_that_of_the_samples() -> None:
    chance = np.random.default_rng(3)
    candidate, reference = chance.normal(0, 1, (2, 500, 10)).astype(np.float32)
    found = compare_logits(candidate, reference, chance.integers(0, 10, 500))
    kl = kl_per_sample(candidate, reference)
    assert (found.mean_kl, found.p99_kl) == pytest.approx((kl.mean(), np.percentile(kl, 99)))


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


def test_classes_by_hand_and_the_worst_of_them() -> None:
    found = class_changes(CANDIDATE, REFERENCE, LABELS)
    assert found == [
        ClassChange(label=0, change_pp=0.0, n=1, top1=1.0),
        ClassChange(label=1, change_pp=-100.0, n=2, top1=0.0),
        ClassChange(label=2, change_pp=100.0, n=1, top1=1.0),
    ]
    assert worst_class(found) == found[1]
    assert worst_class(class_changes(REFERENCE, REFERENCE, LABELS)).label == 0
    some = np.array([2, 2, 2, 2])
    assert [change.label for change in class_changes(CANDIDATE, REFERENCE, some)] == [2]


def test_confusion_changes_by_hand() -> None:
    found = confusion_changes(CANDIDATE, REFERENCE, LABELS, 400)
    # Both samples of class 1 move from 1 to 0, the one of class 2 from 0 to 2.
    assert found == [
        ConfusionChange(1, 0, 2),
        ConfusionChange(1, 1, -2),
        ConfusionChange(2, 0, -1),
        ConfusionChange(2, 2, 1),
    ]
    assert confusion_changes(CANDIDATE, REFERENCE, LABELS, 1) == found[:1]
    assert confusion_changes(REFERENCE, REFERENCE, LABELS, 400) == []


def test_confusion_changes_equal_two_matrices() -> None:
    chance = np.random.default_rng(4)
    candidate, reference = chance.normal(0, 1, (2, 3000, 7))
    labels = chance.integers(0, 7, 3000)
    matrix = np.zeros((7, 7), np.int64)
    np.add.at(matrix, (labels, candidate.argmax(1)), 1)
    np.add.at(matrix, (labels, reference.argmax(1)), -1)
    found = confusion_changes(candidate, reference, labels, 400)
    rebuilt = np.zeros((7, 7), np.int64)
    for entry in found:
        rebuilt[entry.label, entry.predicted] = entry.change
    np.testing.assert_array_equal(rebuilt, matrix)
    sizes = [abs(entry.change) for entry in found]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes


def test_most_changed_samples_by_hand() -> None:
    found = most_changed(CANDIDATE, REFERENCE, 2)
    kl = kl_per_sample(CANDIDATE, REFERENCE)
    assert [entry.index for entry in found] == np.argsort(-kl, kind="stable")[:2].tolist()
    assert ChangedSample(1, 1, 0, float(kl[1])) in most_changed(CANDIDATE, REFERENCE, 12)
    assert [entry.index for entry in most_changed(CANDIDATE, REFERENCE, 12)] == [1, 3, 2]
    assert most_changed(REFERENCE, REFERENCE, 12) == []


def test_calibration_error_by_hand() -> None:
    # Confidences .62 (right), .64 (wrong) and .9 (right): bins (.6, .667] and (.867, .933].
    logits = np.log(np.array([[0.62, 0.38], [0.36, 0.64], [0.9, 0.1]]))
    expected = (abs((1 - 0.62) + (0 - 0.64)) + abs(1 - 0.9)) / 3
    assert expected_calibration_error(logits, np.array([0, 0, 0])) == pytest.approx(expected, abs=1e-12)
    # Sure and right: no error. Sure and wrong: all of it.
    sure = np.array([[1e3, 0.0]] * 4)
    assert expected_calibration_error(sure, np.zeros(4, np.int64)) == 0.0
    assert expected_calibration_error(sure, np.ones(4, np.int64)) == 1.0


def test_calibration_error_equals_a_loop_over_bins() -> None:
    chance = np.random.default_rng(5)
    logits, labels = chance.normal(0, 2, (2000, 10)), chance.integers(0, 10, 2000)
    confidence, right = special.softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)


def test_bits_of_right_answers_by_hand() -> None:
    # right, right, wrong, right, and four zeros: 1101 0000.
    assert base64.b64decode(correct_bits(REFERENCE, LABELS)) == bytes([0b1101_0000])


def test_bits_of_agreement() -> None:
    same = CANDIDATE.argmax(axis=1) == REFERENCE.argmax(axis=1)
    expected = "".join("1" if one else "0" for one in same).ljust(8, "0")
    assert base64.b64decode(agreement_bits(CANDIDATE, REFERENCE)) == bytes([int(expected, 2)])
    assert 0 < same.sum() < len(same), "the setting of this test"
    with pytest.raises(ValueError, match="equal shape"):
        agreement_bits(CANDIDATE[:3], REFERENCE)


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
    def confusion(*arrays: np.ndarray) -> object:
        return confusion_changes(*arrays, limit=3)

    for function in (compare_logits, class_changes, confusion):
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
