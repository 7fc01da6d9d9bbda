"""Latencies of graphs in turns, and what is called faster."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.measure.candidates import LEAST_BLOCKS, LatencyRatio, median_ratio, time_together
from compress.measure.latency import LatencySamples


def samples(*block_ms: float) -> LatencySamples:
    return LatencySamples(tuple((one,) for one in block_ms), block_ms)


def test_the_median_does_not_notice_disturbed_blocks() -> None:
    base = samples(*[1.0] * 20)
    ratio = median_ratio(samples(*[0.9] * 14, *[50.0] * 6), base)
    assert (ratio.ratio, ratio.blocks) == (0.9, 20)
    assert ratio.low == 0.9
    assert ratio.high >= 0.9
    # disturbances that slow both leave the ratio alone
    slow = [1.0, 7.0] * 10
    assert median_ratio(samples(*(2 * one for one in slow)), samples(*slow)).ratio == 2


@pytest.mark.parametrize(
    ("ratio", "low", "high", "faster"),
    [
        (0.9, 0.88, 0.92, True),
        (0.9, 0.78, 1.02, False),  # lower, but so is much that is noise
        (0.975, 0.97, 0.981, False),  # real, but within the tolerance
        (0.5, -math.inf, math.inf, False),
        (1.2, 1.1, 1.3, False),
    ],
)
def test_faster_is_beyond_tolerance_and_noise(ratio: float, low: float, high: float, faster: bool) -> None:
    assert LatencyRatio(ratio, low, high, 12).faster is faster


def test_what_has_no_end_is_null() -> None:
    document = LatencyRatio(0.123456, -math.inf, 2.0, 3).as_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "ratio": 0.1235, "low": None, "high": 2.0, "blocks": 3,
    }  # fmt: skip


@pytest.fixture
def graphs(matmul_onnx, tmp_path):
    small = matmul_onnx(tmp_path / "small.onnx", features=256, hidden=(256,))
    large = matmul_onnx(tmp_path / "large.onnx", features=256, hidden=(1024, 1024))
    return {"small": onnx.load(small), "large": onnx.load(large)}


@pytest.mark.slow
def test_the_smaller_graph_is_faster(graphs) -> None:
    feed = {"image": np.ones((16, 256), np.float32)}
    taken = time_together({**graphs, "again": graphs["small"]}, feed, seconds=0.5)
    ratio = median_ratio(taken["small"], taken["large"])
    assert ratio.blocks >= LEAST_BLOCKS
    assert ratio.ratio < 0.7
    assert ratio.faster
    same = median_ratio(taken["again"], taken["small"])
    assert 0.7 < same.ratio < 1.4
    assert math.isfinite(same.low)
    assert math.isfinite(same.high)


def test_slow_graphs_get_enough_blocks_for_an_interval(graphs) -> None:
    taken = time_together(graphs, {"image": np.ones((1, 256), np.float32)}, seconds=1e-3)
    ratio = median_ratio(taken["large"], taken["small"])
    assert ratio.blocks == LEAST_BLOCKS
    assert math.isfinite(ratio.low)
    assert math.isfinite(ratio.high)


def test_what_onnxruntime_refuses(graphs) -> None:
    graphs["small"].graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError):
        time_together(graphs, {"image": np.ones((1, 256), np.float32)})
