"""What must hold for every graph that is rewritten, on random ones: scales, kernels, and what is computed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from compress.onnx_graph.graph import GraphIndex, attributes
from compress.onnx_graph.lint import lint
from compress.onnx_graph.qdq import scales_of
from compress.onnx_graph.unsigned import UNSIGNED_MAX, unsigned_from_signed
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
LAYERS = ("Conv", "Gemm", "MatMul")
FAMILIES = ("residual", "depthwise", "mlp", "transformer")
CARRIED = """
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = {activation}
    m0 = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1, b1)
    r1 = {other}
    k0 = Concat <axis = 1> (m0, r1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (k0, w2, b2)
    p0 = GlobalAveragePool (c2)
    f0 = Flatten (p0)
    logits = Gemm <transB = 1> (f0, w3, b3)
"""


def shuffled(model, seed):
    """The same graph with other weights; one channel in eight is large, one small."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name.startswith(("w", "b")) and array.dtype == np.float32:
            spread = np.std(array) * rng.choice([0.1, 1, 1, 1, 1, 1, 1, 3], (array.shape[0], *[1] * (array.ndim - 1)))
            fresh = (rng.normal(size=array.shape) * spread).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
    return model


def pictures(seed, count=256):
    return np.random.default_rng(seed + 100).random((count, 1, 8, 8), np.float32)


def both(model, seed, **settings):
    return quantize_onnx(model, [pictures(seed)], QuantizeSettings(method="minmax", **settings))


def activations(model):
    """Tensor -> (scale, zero point) of its Q."""
    index = GraphIndex(model)
    return {
        node.input[0]: (float(index.required(node.input[1], "scale")), int(index.required(node.input[2], "zero")))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_scales_are_equal_but_for_the_clip_rule(name, seed, request):
    result = both(shuffled(request.getfixturevalue(name), seed), seed)
    signed, unsigned = scales_of(result.signed), activations(result.unsigned)
    clips = {node.output[0]: node for node in result.signed.graph.node if node.op_type == "Clip"}
    for tensor, scale in signed.items():
        if scale.axis is None and tensor in clips:
            step, zero = unsigned[clips[tensor].input[0]]
            assert isinstance(scale.scale, float)
            assert (step, zero) == (pytest.approx(min(127 * scale.scale, 6) / UNSIGNED_MAX), 0)
        elif scale.axis is None:  # a layer on tokens reads the same values with two axes
            name = tensor if tensor in unsigned else next(one for one in unsigned if one.startswith(f"{tensor}."))
            assert unsigned[name][0] == scale.scale
    index = GraphIndex(result.unsigned)
    for node in result.unsigned.graph.node:
        if node.op_type in LAYERS and len(node.input) > 2:  # bias codes are in units of input step times weight step
            activation, weight, bias = (index.producers[name] for name in node.input)
            steps = [index.required(one.input[1], "scale") for one in (activation, weight, bias)]
            np.testing.assert_allclose(steps[2], steps[0] * steps[1], rtol=1e-6)
            assert index.required(bias.input[0], "bias").dtype == np.int32


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_is_an_integer_kernel(name, seed, granularity, request, kernels):
    model = shuffled(request.getfixturevalue(name), seed)
    layers = sum(node.op_type in LAYERS for node in model.graph.node)
    result = both(model, seed, granularity=granularity)
    got = kernels(result.unsigned)
    assert sum(got[operator] for operator in INTEGER_KERNELS) == layers
    assert not [operator for operator in FLOAT_KERNELS if got[operator]]
    assert got["QLinearAdd"] == (1 if name in ("residual", "depthwise") else 0)
    assert lint(result.unsigned, "onnxruntime") == []


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_those_of_the_signed_graph(name, seed, granularity, request, infer):
    result = both(shuffled(request.getfixturevalue(name), seed), seed, granularity=granularity)
    images = pictures(seed)  # calibrated on these: nothing saturates, which is where the two differ
    expected = infer(result.signed, images, optimize=False)
    spread = np.abs(expected).max()
    plain = infer(result.unsigned, images, optimize=False)
    integer = infer(result.unsigned, images)
    # behind a Clip codes are finer; elsewhere both round alike, up to ties
    assert np.abs(plain - expected).max() < (0.15 if name == "depthwise" else 0.05) * spread
    assert np.abs(integer - plain).max() < 0.05 * spread
    assert (plain.argmax(1) == expected.argmax(1)).mean() > (0.9 if name == "depthwise" else 0.97)


@pytest.mark.parametrize(
    ("activation", "other"),
    [
        ("Relu (c0)", "Relu (c1)"),
        ("Clip (c0, low, high)", "Clip (c1, low, high)"),
        ("Clip (c0, low, high)", "Relu (c1)"),
        ("Identity (c0)", "Identity (c1)"),
    ],
)
def test_carriers_work_on_codes(build, random_weights, kernels, infer, activation, other):
    weights = random_weights((8, 1, 3, 3), (8, 8, 3, 3), (16, 16, 3, 3), (10, 16))
    bounds = {"low": np.float32(0), "high": np.float32(6)} if "Clip" in activation else {}
    model = build(CARRIED.format(activation=activation, other=other), **bounds, **weights)
    images = pictures(0)
    result = both(model, 0)
    got = kernels(result.unsigned)
    assert (got["NhwcMaxPool"], got["QLinearConv"], got["QLinearConcat"], got["QGemm"]) == (1, 3, 1, 1)
    assert (got["QuantizeLinear"], got["DequantizeLinear"]) == (1, 0)  # the image alone
    parameters = activations(result.unsigned)
    source = "r0" if activation.startswith("Relu") else "c0"
    assert parameters["m0"] == parameters[source]
    assert lint(result.signed) == []
    expected = infer(result.signed, images, optimize=False)
    assert np.abs(infer(result.unsigned, images) - expected).max() < 0.1 * np.abs(expected).max()


def test_one_scale_for_a_weight_keeps_its_bias_in_int32(mlp, images, infer):
    """A bias that is huge beside the weights would wrap without a word."""
    for tensor in mlp.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(numpy_helper.from_array(np.full(10, 3e6, np.float32), "b1"))
    result = both(mlp, 0, granularity="per_tensor")
    index = GraphIndex(result.unsigned)
    (gemm,) = [node for node in result.unsigned.graph.node if node.name == "logits"]
    bias = index.producers[gemm.input[2]]
    assert "axis" not in attributes(bias)
    assert index.required(bias.input[0], "bias").max() <= 2**30
    np.testing.assert_allclose(infer(result.unsigned, images), infer(mlp, images), rtol=1e-5)


def test_the_rewrite_leaves_its_argument_alone(transformer):
    signed = both(transformer, 0).signed
    before = signed.SerializeToString()
    unsigned_from_signed(signed)
    assert signed.SerializeToString() == before


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("shape", [(1, 10), (1, 1), (1,), ()])
def test_a_bias_of_one_row_or_one_number_keeps_the_integer_kernel(mlp, kernels, infer, shape, granularity):
    (tensor,) = [tensor for tensor in mlp.graph.initializer if tensor.name == "b1"]
    tensor.CopyFrom(numpy_helper.from_array(np.resize(numpy_helper.to_array(tensor), shape), "b1"))
    result = both(mlp, 0, granularity=granularity)
    got = kernels(result.unsigned)
    assert got["QGemm"] == 2
    assert not [operator for operator in FLOAT_KERNELS if got[operator]]
    expected = infer(mlp, pictures(0), optimize=False)
    assert np.abs(infer(result.unsigned, pictures(0)) - expected).max() < 0.05 * np.abs(expected).max()
