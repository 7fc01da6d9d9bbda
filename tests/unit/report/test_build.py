from __future__ import annotations

import numpy as np
import pytest

from compress.measure.comparison import paired_counts
from compress.measure.fidelity import agreement_bits, compare_logits, correct_bits, parity
from compress.measure.latency import LatencySamples, Measurement
from compress.measure.statistics import Drift, wilson
from compress.report.build import (
    CHANGED_ROWS,
    Timing,
    detail_of,
    latency_rows,
    measured_variant,
    ratio_rows,
    variant_not_run,
)
from compress.report.document import ClassRow, Confusion, FreshRow

LABELS = np.arange(200) % 4
REFERENCE = np.eye(4, dtype=np.float32)[LABELS] * 5
CANDIDATE = np.where((np.arange(200) < 6)[:, None], np.roll(REFERENCE, 1, axis=1), REFERENCE)

CLASSES = ("zero", "one", "two", "three")
IDS = tuple(f"s{i}" for i in range(200))


def measurement(**block_ms: tuple[float, ...]) -> Measurement:
    samples = {name: LatencySamples((blocks * 200,) * 2, blocks) for name, blocks in block_ms.items()}
    return Measurement(samples, {name: Drift(0.01, 0.5, name == "shaky") for name in samples}, 1)


def test_a_measured_variant_carries_its_statistics() -> None:
    found = measured_variant(
        "int8",
        "quantized_onnx",
        session="onnxruntime cpu",
        against_reference=compare_logits(CANDIDATE, REFERENCE, LABELS),
        against_float=compare_logits(CANDIDATE, REFERENCE, LABELS),
        parity_to_float=parity(CANDIDATE, REFERENCE),
        detail=detail_of(CANDIDATE, REFERENCE, LABELS, classes=CLASSES, ids=IDS),
        timing=Timing(fresh=[FreshRow(batch=1, medians_ms=[1.0, 1.1])]),
        parameters=10,
        size_bytes=20,
    )
    interval = wilson(194, 200)
    assert (found.status, found.top1, found.agreement) == ("measured", 0.97, 0.97)
    assert found.top1_interval == (interval.low, interval.high)
    assert found.paired_to_reference is not None
    assert (found.paired_to_reference.gained, found.paired_to_reference.lost) == (0, 6)
    assert found.paired_to_reference.mcnemar_p == pytest.approx(2 / 2**6)
    assert found.paired_to_float == found.paired_to_reference
    assert found.parity_to_float is not None
    assert found.parity_to_float.max_abs == 5.0
    assert found.worst_class is not None
    assert (found.worst_class.name, found.worst_class.change_pp, found.worst_class.n) == ("zero", -4.0, 50)
    assert found.p99_kl is not None
    assert found.mean_kl is not None
    assert found.p99_kl > found.mean_kl
    assert found.fresh[0].medians_ms == [1.0, 1.1]
    assert (found.latency, found.ratio_to_reference, found.cold_start) == ([], [], None)


def test_the_99th_percentile_has_an_interval_from_5000_iterations_on() -> None:
    blocks = tuple(tuple(1 + i / 5000 for i in range(first, 5000, 10)) for first in range(10))
    measured = Measurement({"a": LatencySamples(blocks, (1.5,) * 10)}, {"a": Drift(0.0, 1.0, False)}, 1)
    (row,) = latency_rows({1: measured}, "a")
    assert row.p99_ms is not None
    assert row.p99_interval_ms is not None
    assert row.p99_interval_ms[0] < row.p99_ms < row.p99_interval_ms[1]


def test_classes_and_samples_are_named() -> None:
    found = detail_of(CANDIDATE, REFERENCE, LABELS, classes=CLASSES, ids=IDS)
    assert found.classes[2] == ClassRow(name="two", n=50, top1=0.98, change_pp=-2.0)
    assert [row.name for row in found.classes] == list(CLASSES)
    assert found.confusion[0] == Confusion(label="zero", predicted="zero", change=-2)
    assert Confusion(label="zero", predicted="one", change=2) in found.confusion
    assert sum(row.change for row in found.confusion) == 0
    changed = {row.id: row for row in found.changed}
    assert sorted(changed) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert (changed["s3"].label, changed["s3"].reference, changed["s3"].predicted) == ("three", "three", "zero")
    assert paired_counts(correct_bits(REFERENCE, LABELS), found.correct, 200) == (0, 6)
    assert paired_counts(agreement_bits(REFERENCE, REFERENCE), found.agrees, 200) == (0, 6)
    upset = detail_of(np.roll(REFERENCE, 1, axis=1), REFERENCE, LABELS, classes=CLASSES, ids=IDS)
    assert len(upset.changed) == CHANGED_ROWS


def test_a_variant_that_was_not_run_keeps_what_is_known() -> None:
    found = variant_not_run("engine", "engine", "no NVIDIA driver", size_bytes=5, facts={"int8 operands": 9})
    assert (found.status, found.reason, found.top1, found.size_bytes) == ("not run", "no NVIDIA driver", None, 5)
    assert found.facts == {"int8 operands": 9}
    with pytest.raises(ValueError, match="not run, but no reason given"):
        variant_not_run("engine", "engine", "")


def test_latency_and_ratio_rows_ascend_by_batch_and_skip_what_was_not_measured() -> None:
    measurements = {
        32: measurement(float=(4.0, 4.0, 4.0), int8=(2.0, 2.0, 2.0)),
        1: measurement(float=(1.0, 1.1, 1.0), int8=(2.0, 2.2, 2.0), shaky=(1.0, 1.0, 1.0)),
    }
    rows = latency_rows(measurements, "int8")
    assert [(row.batch, row.p50_ms, row.n, row.unstable) for row in rows] == [
        (1, 2.0, 1200, False),
        (32, 2.0, 1200, False),
    ]
    assert rows[0].p99_ms == 2.2
    assert (rows[0].quantiles_ms[0], rows[0].quantiles_ms[20], rows[0].quantiles_ms[-1]) == (2.0, 2.0, 2.2)
    assert len(rows[0].quantiles_ms) == 41
    assert [row.throughput for row in rows] == pytest.approx([1000 * 3 / 6.2, 32 * 500])
    assert rows[0].p99_interval_ms is None
    ratios = ratio_rows(measurements, "int8", "float")
    assert [row.batch for row in ratios] == [1, 32]
    assert [row.ratio for row in ratios] == pytest.approx([2.0, 0.5])
    assert ratios[0].low == pytest.approx(2.0)
    (shaky,) = latency_rows(measurements, "shaky")
    assert (shaky.batch, shaky.unstable) == (1, True)
    assert [row.batch for row in ratio_rows(measurements, "shaky", "float")] == [1]
    assert ratio_rows(measurements, "absent", "float") == latency_rows(measurements, "absent") == []
