from __future__ import annotations

import numpy as np
import pytest

from compress.measure.fidelity import compare_logits, parity, worst_class
from compress.measure.latency import LatencySamples, Measurement
from compress.measure.statistics import Drift, wilson
from compress.report.build import latency_rows, measured_variant, ratio_rows, variant_not_run

LABELS = np.arange(200) % 4
REFERENCE = np.eye(4, dtype=np.float32)[LABELS] * 5
CANDIDATE = np.where((np.arange(200) < 6)[:, None], np.roll(REFERENCE, 1, axis=1), REFERENCE)


def measurement(**block_ms: tuple[float, ...]) -> Measurement:
    samples = {name: LatencySamples(blocks * 400, blocks) for name, blocks in block_ms.items()}
    return Measurement(samples, {name: Drift(0.01, 0.5, name == "shaky") for name in samples}, 1)


def test_a_measured_variant_carries_its_statistics() -> None:
    found = measured_variant(
        "int8",
        "quantized_onnx",
        session="onnxruntime cpu",
        against_reference=compare_logits(CANDIDATE, REFERENCE, LABELS),
        against_float=compare_logits(CANDIDATE, REFERENCE, LABELS),
        parity_to_float=parity(CANDIDATE, REFERENCE),
        worst_class=("two", worst_class(CANDIDATE, REFERENCE, LABELS)),
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
    assert (found.worst_class.name, found.worst_class.change_pp, found.worst_class.n) == ("two", -4.0, 50)


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
    ratios = ratio_rows(measurements, "int8", "float")
    assert [row.batch for row in ratios] == [1, 32]
    assert [row.ratio for row in ratios] == pytest.approx([2.0, 0.5])
    assert ratios[0].low == pytest.approx(2.0)
    (shaky,) = latency_rows(measurements, "shaky")
    assert (shaky.batch, shaky.unstable) == (1, True)
    assert [row.batch for row in ratio_rows(measurements, "shaky", "float")] == [1]
    assert ratio_rows(measurements, "absent", "float") == latency_rows(measurements, "absent") == []
