"""What the result of the calibration benchmark says of the work that it compares."""

from __future__ import annotations

from compress.quantization.calibration import MOST_WORKERS
from compress.quantization.histogram import COUNTED_PER_SAMPLE


def test_the_result_says_how_many_values_each_side_counts(load) -> None:
    counted = load("calibration").counting()

    assert f"about {COUNTED_PER_SAMPLE:,} values of each tensor and sample" in counted["ours"]
    assert f"up to {MOST_WORKERS} workers" in counted["ours"]
    assert "every value" in counted["onnxruntime"]
