from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.quantization.weights import SHRINK_FACTORS, ZERO_TENSOR_SCALE, best_shrink, weight_scales

BODY = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 4, 4] image) => (float[batch, 3] logits) {
    c = Conv (image, w)
    r = Relu (c)
    f = Flatten (r)
    logits = Gemm <transB = 1> (f, v)
}
"""


def small_net(weight):
    model = onnx.parser.parse_model(BODY)
    arrays = {"w": np.reshape(weight, (2, 1, 1, 1)), "v": np.random.default_rng(0).normal(size=(3, 32))}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def heavy_tailed(channels=4, size=2000):
    rows = np.random.default_rng(0).normal(size=(channels, size))
    rows[:, 0] = [5, 10, 20, 40]
    return rows


def error_of(rows, steps, levels):
    codes = np.clip(np.rint(rows / steps[:, None]), -levels, levels)
    return ((rows - codes * steps[:, None]) ** 2).sum(axis=1)


def test_by_hand():
    scales, notes = weight_scales(small_net((2.54, -1.27)), {})
    assert scales["w"].scale == pytest.approx((2.54 / 63, 1.27 / 63))  # 7 bits: the image may be negative
    assert (scales["w"].source, scales["w"].axis) == ("max", 0)
    assert len(scales["v"].scale) == 3  # pyright: ignore[reportArgumentType]
    assert notes == []


def test_per_tensor_by_hand():
    scales, _ = weight_scales(small_net((2.54, -1.27)), {}, granularity="per_tensor")
    assert scales["w"].scale == pytest.approx(2.54 / 63)
    assert isinstance(scales["v"].scale, float)
    assert (scales["w"].source, scales["w"].axis) == ("max", None)


@pytest.mark.parametrize("method", ["max", "mse"])
def test_a_dead_output_channel_gets_the_largest_scale_and_a_note(method):
    scales, notes = weight_scales(small_net((2.54, 0)), {}, method=method)
    assert scales["w"].scale == pytest.approx((2.54 / 63, 2.54 / 63))
    assert notes == ["weight w: 1 of 2 output channels are zero"]


@pytest.mark.parametrize(
    ("granularity", "expected"), [("per_channel", (ZERO_TENSOR_SCALE,) * 2), ("per_tensor", 2**-12)]
)
@pytest.mark.parametrize("method", ["max", "mse"])
def test_a_weight_of_zeros(granularity, expected, method):
    scales, notes = weight_scales(small_net((0, 0)), {}, method=method, granularity=granularity)
    assert scales["w"].scale == expected
    assert notes == ["weight w: 2 of 2 output channels are zero"]


def test_known_weights_and_float_layers_are_left_out():
    model = small_net((1, 2))
    known, _ = weight_scales(model, {})
    assert weight_scales(model, known)[0] == {}
    assert set(weight_scales(model, {}, float_layers=["c"])[0]) == {"v"}


@pytest.mark.parametrize("levels", [127, 63, 7])
def test_mse_loses_less_than_max(levels):
    rows = heavy_tailed()
    largest = np.abs(rows).max(axis=1)
    shrink = best_shrink(rows, levels)
    assert ((shrink <= 1) & (shrink >= SHRINK_FACTORS.min())).all()
    best = error_of(rows, largest * shrink / levels, levels)
    for factor in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        assert (best <= error_of(rows, largest * factor / levels, levels) + 1e-9).all()
    assert best.sum() < error_of(rows, largest / levels, levels).sum()


def test_mse_keeps_a_range_whose_ends_are_met():
    assert best_shrink(np.array([[127.0, -64.0, 1.0, 0.0]]), 127).tolist() == [1.0]


def test_mse_is_the_source():
    scales, _ = weight_scales(small_net((1, 2)), {}, method="mse")
    assert {scale.source for scale in scales.values()} == {"mse"}


TIED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, channels] image) => (float[batch, channels] logits) {
    c = Gemm <transB = 1> (image, w)
    logits = Gemm (c, w)
}
"""


@pytest.mark.parametrize("shape", [(6, 6), (8, 3)])
@pytest.mark.parametrize("method", ["max", "mse"])
def test_a_weight_that_is_read_along_two_axes_gets_one_scale(shape, method):
    model = onnx.parser.parse_model(TIED)
    weight = np.random.default_rng(0).normal(size=shape) * np.geomspace(0.01, 1, shape[0])[:, None]
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    for node in model.graph.node:
        node.name = node.output[0]
    scales, notes = weight_scales(model, {}, method=method)
    assert (scales, []) == weight_scales(model, {}, method=method, granularity="per_tensor")
    assert isinstance(scales["w"].scale, float)
    assert notes == ["weight w: its readers want scales along different axes, so it has one for all of it"]
    for name, axis in (("logits", 0), ("c", 1)):  # with the other one in float, nothing stands against channels
        scales, notes = weight_scales(model, {}, method=method, float_layers=[name])
        steps = scales["w"].scale
        assert isinstance(steps, tuple)
        assert (scales["w"].axis, len(steps), notes) == (axis, shape[axis], [])
