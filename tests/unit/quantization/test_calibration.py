from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.errors import DataError, ModelError, UsageError
from compress.quantization.calibration import (
    BINS,
    ZERO_TENSOR_SCALE,
    Histogram,
    calibrate,
    collect,
    entropy_threshold,
    kl_divergences,
    weight_scales,
)

BODY = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 4, 4] image) => (float[batch, 3] logits) {
    c = Conv (image, w, b)
    r = Relu (c)
    f = Flatten (r)
    logits = Gemm <transB = 1> (f, v)
}
"""


def f32(*values):
    return np.array(values, np.float32)


def small_net(weight=(2.0, -1.0), bias=(0.5, 0.25)):
    model = onnx.parser.parse_model(BODY)
    rng = np.random.default_rng(0)
    arrays = {"w": np.reshape(weight, (2, 1, 1, 1)), "b": np.asarray(bias), "v": rng.normal(size=(3, 32))}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def images(samples=64, seed=0):
    return np.random.default_rng(seed).random((samples, 1, 4, 4), np.float32)


def histogram_of(values, chunk=None):
    histogram = Histogram()
    values = np.asarray(values, np.float32)
    for start in range(0, values.size, chunk or values.size):
        histogram.add(values[start : start + (chunk or values.size)])
    return histogram


def kl_by_loops(counts, size):
    """Migacz's procedure as his slides spell it, for one range of `size` bins, one level at a time."""
    reference = counts[:size].copy()
    reference[-1] += counts[size:].sum()
    candidate = np.zeros(size)
    for low, high in pairwise(size * level // 128 for level in range(129)):
        filled = reference[low:high] > 0
        if filled.any():
            candidate[low:high][filled] = max(counts[low:high].sum(), 1) / filled.sum()
    p, q = reference / reference.sum(), candidate / counts[:size].sum()
    mass = p > 0
    return (p[mass] * np.log(p[mass] / q[mass])).sum()


def test_histogram_by_hand():
    histogram = histogram_of([0.0, 0.5, -0.75, 0.75])
    assert (histogram.amax, histogram.limit) == (0.75, 1.0)
    assert histogram.counts.nonzero()[0].tolist() == [0, BINS // 2, BINS * 3 // 4]
    assert histogram.counts[BINS * 3 // 4] == 2
    histogram.add(f32(3.0))
    assert (histogram.amax, histogram.limit) == (3.0, 4.0)
    assert histogram.counts.nonzero()[0].tolist() == [0, BINS // 8, BINS * 3 // 16, BINS * 3 // 4]


@pytest.mark.parametrize("chunk", [1, 7, 100, 999])
def test_histogram_does_not_depend_on_batching(chunk):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=1000) * 10.0 ** rng.integers(-4, 4, 1000)).astype(np.float32)
    values[:10] = [0, 0, 1, 2, 4, 0.5, 1024, -8, -0.25, 3]  # exact powers of two sit on bin edges
    whole, parts = histogram_of(np.sort(values)[::-1]), histogram_of(values, chunk)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.amax, whole.limit) == (parts.amax, parts.limit)
    assert whole.counts.sum() == 1000


def test_zeros_before_the_first_value_are_kept():
    histogram = histogram_of(np.zeros(50))
    assert (histogram.amax, histogram.limit, histogram.counts[0]) == (0.0, 0.0, 50)
    histogram.add(f32(1e-3))
    assert histogram.counts.sum() == 51
    histogram.add(f32(1e3))
    assert histogram.counts.sum() == 52


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_magnitudes(scale):
    histogram = histogram_of(f32(0.5, 1.0) * np.float32(scale))
    assert histogram.counts.sum() == 2
    assert 0 < entropy_threshold(histogram) <= histogram.amax


@pytest.mark.parametrize("shape", ["relu", "laplace", "outliers"])
def test_divergences_are_those_of_migaczs_procedure(shape):
    rng = np.random.default_rng(0)
    values = {
        "relu": np.maximum(rng.normal(size=4000), 0),
        "laplace": rng.laplace(size=4000),
        "outliers": np.concatenate([rng.normal(size=4000), [60.0, 80.0]]),
    }[shape]
    histogram = histogram_of(values)
    counts = histogram.counts[: int(histogram.amax / histogram.width) + 1].astype(np.float64)
    candidates = np.unique(np.append(np.arange(200, counts.size, 97), counts.size))
    expected = [kl_by_loops(counts, size) for size in candidates]
    np.testing.assert_allclose(kl_divergences(counts, candidates), expected, atol=1e-9)
    assert min(expected) > 0


def test_nothing_is_lost_where_every_bin_has_a_level_of_its_own():
    counts = np.random.default_rng(0).integers(1, 100, 128).astype(np.float64)
    np.testing.assert_allclose(kl_divergences(counts, np.array([128])), 0, atol=1e-12)


def test_entropy_cuts_outliers_and_keeps_what_is_spread_evenly():
    rng = np.random.default_rng(0)
    tailed = histogram_of(np.concatenate([rng.normal(size=100_000), [100.0]]))
    assert entropy_threshold(tailed) < 20
    even = histogram_of(rng.uniform(-1, 1, 100_000))
    assert entropy_threshold(even) > 0.9 * even.amax


def test_entropy_ignores_how_many_zeros_there_are():
    values = np.abs(np.random.default_rng(0).normal(size=20_000))
    dense, sparse = histogram_of(values), histogram_of(np.concatenate([values, np.zeros(1_000_000)]))
    assert entropy_threshold(sparse) == pytest.approx(entropy_threshold(dense), rel=0.02)


def test_entropy_of_degenerate_tensors():
    assert entropy_threshold(histogram_of(np.zeros(10))) == 0
    assert entropy_threshold(histogram_of(np.full(10, 3.0))) == 3.0
    assert entropy_threshold(histogram_of([0.2] + [3.0] * 9)) == pytest.approx(3.0, rel=0.01)


def test_entropy_is_fast():
    histogram = histogram_of(np.random.default_rng(0).normal(size=100_000))
    start = time.process_time()
    entropy_threshold(histogram)
    assert time.process_time() - start < 2


def test_minmax_by_hand():
    batch = np.zeros((2, 1, 4, 4), np.float32)
    batch[0, 0, 0, 0] = 1.0
    result = calibrate(small_net(), ["image", "c", "r"], [batch], "minmax")
    # c = 2 * 1 + 0.5 at most; the second channel is 0.25 - x
    assert result.samples == 2
    assert result.scales["image"].scale == np.float32(1 / 127)
    assert result.scales["r"].scale == np.float32(2.5 / 127)
    assert result.scales["c"] == result.scales["r"]
    assert {scale.source for scale in result.scales.values()} == {"minmax"}
    assert result.notes == []


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_batching_does_not_matter(method):
    data = images(96)
    whole = calibrate(small_net(), ["image", "r", "f"], [data], method)
    parts = calibrate(small_net(), ["image", "r", "f"], (data[i : i + 5] for i in range(0, 96, 5)), method)
    assert whole.scales == parts.scales
    assert whole.samples == parts.samples == 96


def test_entropy_never_exceeds_minmax():
    wide, narrow = (calibrate(small_net(), ["image", "r"], [images()], method) for method in ("minmax", "entropy"))
    for name, scale in narrow.scales.items():
        assert scale.source == "entropy"
        assert 0 < scale.scale <= wide.scales[name].scale  # pyright: ignore[reportOperatorIssue]


def test_memory_does_not_grow_with_the_samples():
    model, peaks = small_net(), []
    for samples in (64, 64, 2048):  # the first run pays for imports
        tracemalloc.start()
        collect(model, ["image", "r"], (images(64, seed) for seed in range(samples // 64)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] * 1.2


def test_the_callers_model_is_left_alone():
    model = small_net()
    before = model.SerializeToString(deterministic=True)
    collect(model, ["r"], [images()])
    assert model.SerializeToString(deterministic=True) == before


def test_a_zero_tensor_gets_a_positive_scale_and_a_note():
    result = calibrate(small_net(weight=(-1, -1), bias=(0, 0)), ["image", "r"], [images()])
    assert result.scales["r"].scale == ZERO_TENSOR_SCALE
    assert result.notes == ["activation r is zero on all 64 calibration samples"]


def test_a_dead_network_is_refused():
    with pytest.raises(ModelError, match="All 1 activations are zero on all 64 calibration samples") as caught:
        calibrate(small_net(weight=(0, 0), bias=(0, 0)), ["r"], [images()])
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((2, 1, 4, 4), np.uint8), "is uint8; expected a float32 numpy array"),
        (np.zeros((2, 1, 4, 4)), "is float64; expected a float32"),
        ([[1.0]], "is list; expected a float32"),
        (np.zeros((2, 3, 4, 4), np.float32), r"has shape \(2, 3, 4, 4\); input image expects \('batch', 1, 4, 4\)"),
        (np.zeros((2, 16), np.float32), r"has shape \(2, 16\)"),
        (np.full((2, 1, 4, 4), 255, np.float32), r"values from 255.0 to 255.0; expected \[0, 1\]"),
        (np.full((2, 1, 4, 4), -0.1, np.float32), r"expected \[0, 1\]"),
        (np.full((2, 1, 4, 4), np.nan, np.float32), r"values from nan to nan; expected \[0, 1\]"),
    ],
)
def test_malformed_batches(batch, words):
    with pytest.raises(DataError, match=words) as caught:
        calibrate(small_net(), ["r"], [images(), batch])
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_the_message_says_which_samples_are_malformed():
    with pytest.raises(DataError) as caught:
        calibrate(small_net(), ["r"], [images(), images(10) * 300])
    assert caught.value.where == "calibration samples from 64"


def test_samples_of_one_value():
    with pytest.raises(DataError, match=r"All 4 calibration samples consist of the one value 0\.5; expected images"):
        calibrate(small_net(), ["r"], [np.full((2, 1, 4, 4), 0.5, np.float32)] * 2)


def test_no_samples():
    with pytest.raises(DataError, match="There are no calibration samples"):
        calibrate(small_net(), ["r"], [])
    with pytest.raises(DataError, match="There are no calibration samples"):
        calibrate(small_net(), ["r"], [images(0)])


def test_activations_that_overflow_are_named():
    with pytest.raises(ModelError, match="Activation c is NaN or infinite") as caught:
        calibrate(small_net(weight=(3e38, 3e38), bias=(3e38, 3e38)), ["image", "c"], [images()])
    assert caught.value.where == "calibration samples 0 to 31"


def test_unknown_names():
    with pytest.raises(
        UsageError, match="Unknown calibration method 'percentile'; expected one of minmax, entropy"
    ) as e:
        calibrate(small_net(), ["r"], [images()], "percentile")  # pyright: ignore[reportArgumentType]
    assert e.value.exit_code == 2
    with pytest.raises(ModelError, match="The graph computes no tensor nowhere"):
        calibrate(small_net(), ["nowhere"], [images()])


def test_weight_scales_by_hand():
    scales, notes = weight_scales(small_net(weight=(2.54, -1.27)), {})
    assert scales["w"].scale == pytest.approx((2.54 / 63, 1.27 / 63))  # 7 bits: the image may be negative
    assert (scales["w"].source, scales["w"].axis) == ("weights", 0)
    assert len(scales["v"].scale) == 3  # pyright: ignore[reportArgumentType]
    assert notes == []


def test_a_dead_output_channel_gets_the_largest_scale_and_a_note():
    scales, notes = weight_scales(small_net(weight=(2.54, 0)), {})
    assert scales["w"].scale == pytest.approx((2.54 / 63, 2.54 / 63))
    assert notes == ["weight w: 1 of 2 output channels are zero"]


def test_known_weights_are_left_out():
    known, _ = weight_scales(small_net(), {})
    assert weight_scales(small_net(), known)[0] == {}
