from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.errors import DataError, ModelError, UsageError
from compress.quantization.calibration import calibrate, collect
from compress.quantization.weights import ZERO_TENSOR_SCALE

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
BODY = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 4, 4] image) => (float[batch, 3] logits) {
    c = Conv (image, w, b)
    r = Relu (c)
    f = Flatten (r)
    logits = Gemm <transB = 1> (f, v)
}
"""


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


@pytest.mark.parametrize("method", METHODS)
def test_batching_does_not_matter(method):
    data = images(96)
    whole = calibrate(small_net(), ["image", "r", "f"], [data], method)
    parts = calibrate(small_net(), ["image", "r", "f"], (data[i : i + 5] for i in range(0, 96, 5)), method)
    assert whole.scales == parts.scales
    assert whole.samples == parts.samples == 96


@pytest.mark.parametrize("method", METHODS)
def test_no_method_exceeds_minmax(method):
    wide, narrow = (calibrate(small_net(), ["image", "r"], [images()], name) for name in ("minmax", method))
    for name, scale in narrow.scales.items():
        assert scale.source == method
        assert 0 < scale.scale <= wide.scales[name].scale  # pyright: ignore[reportOperatorIssue]


def test_the_batch_of_the_moving_average_is_a_chunk_of_16_samples():
    data = images(96)
    tops = [data[first : first + 16].max() for first in range(0, 96, 16)]
    result = calibrate(small_net(), ["image"], [data], "moving_average")
    assert result.scales["image"].scale == pytest.approx(np.mean(tops) / 127)


def test_the_percentile_counts():
    few, many = (
        calibrate(small_net(), ["image"], [images()], "percentile", percentile=percentile).scales["image"].scale
        for percentile in (60.0, 99.0)
    )
    assert few == pytest.approx(0.6 / 127, rel=0.1)
    assert many == pytest.approx(0.99 / 127, rel=0.02)


def test_the_callers_buffer_may_be_reused():
    data = images(200)

    def reusing():
        buffer = np.empty((25, 1, 4, 4), np.float32)
        for start in range(0, 200, 25):
            buffer[:] = data[start : start + 25]
            yield buffer

    whole, reused = (calibrate(small_net(), ["image", "r"], source) for source in ([data], reusing()))
    assert reused.scales == whole.scales


def test_memory_does_not_grow_with_the_samples():
    model, peaks = small_net(), []
    for samples in (512, 512, 4096):  # the first run pays for imports
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
    assert caught.value.where == "calibration samples 0 to 15"


def test_unknown_names():
    with pytest.raises(
        UsageError, match="Unknown calibration method 'kl'; expected one of minmax, moving_average"
    ) as e:
        calibrate(small_net(), ["r"], [images()], "kl")  # pyright: ignore[reportArgumentType]
    assert e.value.exit_code == 2
    with pytest.raises(ModelError, match="The graph computes no tensor nowhere"):
        calibrate(small_net(), ["nowhere"], [images()])
    with pytest.raises(UsageError, match="The percentile is 20"):
        calibrate(small_net(), ["r"], [images()], "percentile", percentile=20)


def test_errors_keep_the_order_of_the_samples():
    batches = [images(), np.full((64, 1, 4, 4), 1e30, np.float32)]
    with pytest.raises(ModelError, match="Activation c is NaN or infinite") as caught:
        calibrate(small_net(weight=(1e30, 1), bias=(0, 0)), ["c"], batches, value_range=None)
    assert caught.value.where == "calibration samples 64 to 79"


def test_ranges_other_than_pixels():
    data = images() * 6 - 3
    result = calibrate(small_net(), ["image"], [data], "minmax", value_range=None)
    assert result.scales["image"].scale == pytest.approx(np.abs(data).max() / 127)
    with pytest.raises(DataError, match=r"values from -2\.9\d* to 2\.9\d*; expected \[-1, 1\]"):
        calibrate(small_net(), ["image"], [data], value_range=(-1.0, 1.0))
    with pytest.raises(DataError, match="NaN or infinite values for input image"):
        calibrate(small_net(), ["image"], [data * np.inf], value_range=None)


TWO_INPUTS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 4] left, int64[batch] right) => (float[batch, 4] sum) {
    whole = Cast <to = 1> (right)
    axes = Constant <value = int64[1] {1}> ()
    column = Unsqueeze (whole, axes)
    sum = Add (left, column)
}
"""


def test_several_inputs_come_by_name():
    model = onnx.parser.parse_model(TWO_INPUTS)
    left, right = np.full((40, 4), 0.25, np.float32), np.arange(40)
    batches = [{"left": left[:7], "right": right[:7]}, {"right": right[7:], "left": left[7:]}]
    result = calibrate(model, ["left", "column", "sum"], batches, "minmax")
    found = {name: scale.scale * 127 for name, scale in result.scales.items()}  # pyright: ignore[reportOperatorIssue]
    assert found == pytest.approx({"left": 0.25, "column": 39, "sum": 39.25})
    assert result.samples == 40
    with pytest.raises(ModelError, match=r"has 2 inputs \(left, right\); expected one, or samples by input name"):
        calibrate(model, ["sum"], [left])


LONG = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 65536] image) => (float[batch, 65536] r) {
    r = Relu (image)
}
"""


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_the_only_value_may_lie_between_those_that_are_counted(method):
    data = np.zeros((32, 65536), np.float32)
    data[0, 1] = 1
    result = calibrate(onnx.parser.parse_model(LONG), ["image", "r"], [data], method)
    assert {scale.scale for scale in result.scales.values()} == {float(np.float32(1 / 127))}


def test_a_graph_that_does_not_run_is_a_message():
    model = small_net()
    model.graph.node[0].domain = "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)
    with pytest.raises(ModelError, match=r"ONNX Runtime \S+ cannot run the float graph") as caught:
        calibrate(model, ["r"], [images()])
    assert caught.value.exit_code == 5
