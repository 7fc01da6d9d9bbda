from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.qdq import scales_of
from compress.onnx_graph.unsigned import unsigned_from_signed
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

MINMAX = QuantizeSettings(method="minmax")
FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "GlobalAveragePool")


def signed_from(model, images):
    return quantize_onnx(model, [images], QuantizeSettings(method="minmax")).signed


def parameters(model):
    """Tensor quantized -> (scale, zero point) of its Q."""
    index = GraphIndex(model)
    return {
        node.input[0]: (float(index.required(node.input[1], "scale")), index.required(node.input[2], "zero point"))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def sqnr_db(got, reference):
    return 10 * np.log10((reference**2).sum() / ((got - reference) ** 2).sum())


def test_zero_points_follow_the_sign_and_scales_stay(residual, images):
    signed = signed_from(residual, images)
    got = parameters(unsigned_from_signed(signed))
    for tensor, scale in scales_of(signed).items():
        if scale.axis is None:
            assert got[tensor][0] == scale.scale
    assert {tensor: int(zero) for tensor, (_, zero) in got.items()} == {
        "image": 128, "r0": 0, "r1": 0, "c2": 128, "r2": 0, "f0": 0,
    }  # fmt: skip
    assert all(zero.dtype == np.uint8 and zero.shape == () for _, zero in got.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("residual", {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
        ("depthwise", {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
        ("mlp", {"QGemm": 2}),
    ],
)
def test_every_layer_runs_on_an_integer_kernel(name, expected, request, images, kernels):
    got = kernels(unsigned_from_signed(signed_from(request.getfixturevalue(name), images)))
    assert {operator: got[operator] for operator in expected} == expected
    assert not [operator for operator in FLOAT_LAYERS if got[operator]]
    assert got["QuantizeLinear"] == 1  # the image; everything behind it stays integer


def test_the_signed_form_does_not_reach_them(residual, images, kernels):
    got = kernels(signed_from(residual, images))
    assert got["QLinearConv"] < 3
    assert got["QGemm"] == 0


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_predictions_are_nearly_those_of_the_signed_graph(name, request, images, infer):
    model = request.getfixturevalue(name)
    signed = signed_from(model, images)
    reference = infer(signed, images, optimize=False)
    unsigned = unsigned_from_signed(signed)
    assert sqnr_db(infer(unsigned, images, optimize=False), reference) > 40
    # integer kernels round where the float simulation does, up to ties
    assert sqnr_db(infer(unsigned, images), reference) > 35
    assert sqnr_db(infer(unsigned, images), infer(model, images)) > 20


def eight_bit(signed):
    """The first layer as another quantizer leaves it: weight codes up to 127 where the image may be negative."""
    for tensor in signed.graph.initializer:
        if tensor.name in ("w0", "w0.scale"):
            array = numpy_helper.to_array(tensor)
            wider = array * 2 if array.dtype == np.int8 else array / 2
            tensor.CopyFrom(numpy_helper.from_array(wider.astype(array.dtype), tensor.name))
    return signed


def kinds_of_codes(model):
    return [tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith(".codes")]


@pytest.mark.parametrize(("quantizer", "unsigned"), [("ours", 0), ("another", 1)])
def test_kernels_do_not_saturate_where_codes_pass_127(mlp, infer, quantizer, unsigned):
    """Every processor must compute what the graph says; uint8 x int8 without VNNI does not for bright images."""
    bright = np.random.default_rng(0).uniform(0.8, 1, (64, 1, 8, 8)).astype(np.float32)
    for tensor in mlp.graph.initializer:
        if tensor.name == "w0":  # neighbours of one sign: the products of a pair add up
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), "w0"))
    signed = signed_from(mlp, bright)
    model = unsigned_from_signed(eight_bit(signed) if quantizer == "another" else signed)
    assert kinds_of_codes(model).count(onnx.TensorProto.UINT8) == unsigned
    np.testing.assert_allclose(infer(model, bright), infer(model, bright, optimize=False), atol=1e-5)


@pytest.mark.parametrize(("choice", "unsigned"), [("never", 0), ("shifted", 1), ("always", 4)])
def test_which_layers_store_unsigned_weights(residual, images, choice, unsigned):
    kinds = kinds_of_codes(unsigned_from_signed(eight_bit(signed_from(residual, images)), unsigned_weights=choice))
    assert len(kinds) == 4
    assert kinds.count(onnx.TensorProto.UINT8) == unsigned


def test_our_own_weights_need_no_shift(residual, depthwise, images):
    """Seven bits where the activation uses all 256 codes: the image, and what is behind a Clip."""
    for model in (residual, depthwise):
        kinds = kinds_of_codes(unsigned_from_signed(signed_from(model, images)))
        assert set(kinds) == {onnx.TensorProto.INT8}


def test_eight_bit_weights_behind_a_clip_are_shifted(depthwise, images):
    signed = signed_from(depthwise, images)
    for tensor in signed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array((array * 2).astype(np.int8), tensor.name))
    assert onnx.TensorProto.UINT8 in kinds_of_codes(unsigned_from_signed(signed))


def test_the_clip_rule(depthwise, images, infer):
    signed = signed_from(depthwise, images)
    unsigned = unsigned_from_signed(signed)
    assert not [node for node in unsigned.graph.node if node.op_type == "Clip"]
    got = parameters(unsigned)
    step = scales_of(signed)["k0"].scale
    assert isinstance(step, float)
    assert got["c0"][0] == pytest.approx(step * 127 / 255)  # Q reads the conv now, and clips
    assert int(got["c0"][1]) == 0
    # codes are twice as fine, so the logits move a little
    assert sqnr_db(infer(unsigned, images), infer(signed, images, optimize=False)) > 30


def test_the_clip_rule_never_passes_the_bound(build, infer):
    body = """
        k = Clip (image, low, high)
        q = QuantizeLinear (k, s, z)
        d = DequantizeLinear (q, s, z)
        logits = GlobalAveragePool (d)
    """
    arrays = {"low": np.float32(0), "high": np.float32(6), "z": np.int8(0)}
    model = build(body, outputs="float[batch, 1, 1, 1] logits", s=np.float32(0.1), **arrays)  # covers 12.7, beyond 6
    huge = np.full((1, 1, 8, 8), 100, np.float32)
    assert infer(model, huge, optimize=False).item() == pytest.approx(6.0, abs=0.05)
    assert infer(unsigned_from_signed(model), huge, optimize=False).item() == pytest.approx(6.0, abs=1e-5)
    narrow = build(body, outputs="float[batch, 1, 1, 1] logits", s=np.float32(0.01), **arrays)  # saturates at 1.27
    assert infer(unsigned_from_signed(narrow), huge, optimize=False).item() == pytest.approx(1.27, abs=1e-5)


def test_a_clip_with_another_floor_stays(build):
    body = "k = Clip (image, low, high) q = QuantizeLinear (k, s, z) logits = DequantizeLinear (q, s, z)"
    arrays = {"low": np.float32(-1), "high": np.float32(1), "s": np.float32(0.01), "z": np.int8(0)}
    unsigned = unsigned_from_signed(build(body, outputs="float[batch, 1, 8, 8] logits", **arrays))
    assert [node.op_type for node in unsigned.graph.node] == ["Clip", "QuantizeLinear", "DequantizeLinear"]
    assert int(parameters(unsigned)["k"][1]) == 128


def test_the_sign_survives_pools_and_reshapes(build):
    body = """
        r = Relu (image)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        f = Flatten (m)
        q = QuantizeLinear (f, s, z)
        logits = DequantizeLinear (q, s, z)
    """
    model = build(body, outputs="float[batch, 16] logits", s=np.float32(0.1), z=np.int8(0))
    assert int(parameters(unsigned_from_signed(model))["f"][1]) == 0


def test_duplicate_quantizers_of_one_tensor_become_one(build):
    body = """
        q = QuantizeLinear (image, s, z)
        d = DequantizeLinear (q, s, z)
        q2 = QuantizeLinear (image, s, z)
        d2 = DequantizeLinear (q2, s, z)
        logits = Add (d, d2)
    """
    model = build(body, outputs="float[batch, 1, 8, 8] logits", s=np.float32(0.1), z=np.int8(0))
    unsigned = unsigned_from_signed(model)
    assert sum(node.op_type == "QuantizeLinear" for node in unsigned.graph.node) == 1


def test_scales_of_shape_one_become_zero_dimensional(build):
    body = "q = QuantizeLinear (image, s, z) logits = DequantizeLinear (q, s, z)"
    model = build(body, outputs="float[batch, 1, 8, 8] logits", s=np.full(1, 0.1, np.float32), z=np.zeros(1, np.int8))
    unsigned = unsigned_from_signed(model)
    assert GraphIndex(unsigned).required(unsigned.graph.node[0].input[1], "scale").shape == ()


def test_a_near_dead_channel_keeps_its_bias(residual, images, infer):
    """Its step would push the bias out of int32, which ONNX Runtime would wrap without a word."""
    for tensor in residual.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w1", "b1"):
            array[3] = 1e-9 if tensor.name == "w1" else 5.0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    result = quantize_onnx(residual, [images], QuantizeSettings(method="minmax"))
    assert sqnr_db(infer(result.unsigned, images), infer(residual, images)) > 20


def test_only_signed_symmetric_graphs_are_rewritten(build, residual, images):
    body = "q = QuantizeLinear (image, s, z) logits = DequantizeLinear (q, s, z)"
    shape = "float[batch, 1, 8, 8] logits"
    shifted = build(body, outputs=shape, s=np.float32(0.1), z=np.int8(3))
    with pytest.raises(
        ModelError, match=r"Activation image has int8 zero point \[3\].*expected int8, zero point 0"
    ) as e:
        unsigned_from_signed(shifted)
    assert e.value.exit_code == 5
    with pytest.raises(ModelError, match="has uint8 zero point"):
        unsigned_from_signed(unsigned_from_signed(signed_from(residual, images)))
    without = build("q = QuantizeLinear (image, s) logits = DequantizeLinear (q, s)", outputs=shape, s=np.float32(0.1))
    with pytest.raises(ModelError, match="no zero point"):
        unsigned_from_signed(without)
