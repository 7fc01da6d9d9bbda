from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.lint import lint
from compress.onnx_graph.products import fold_score_scales, gemms_from_matmuls
from compress.onnx_graph.qdq import strip_qdq
from compress.onnx_graph.unsigned import unsigned_from_signed
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

MINMAX = QuantizeSettings(method="minmax")


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture
def signed(transformer, images):
    return quantize_onnx(transformer, [images], MINMAX).signed


def test_layers_on_tokens_become_gemms(signed, images, infer):
    before = infer(signed, images, optimize=False)
    assert operators(signed)["MatMul"] == 9
    views = gemms_from_matmuls(signed)
    onnx.checker.check_model(signed, full_check=True)
    got = operators(signed)
    # the products of attention have two activations; biases are the Gemms' own; positions stay
    assert (got["MatMul"], got["Gemm"], got["Add"]) == (2, 8, 3)
    # one view for the three layers that read n0
    assert sorted(views.values()) == sorted(f"{name}.quantized" for name in ("t0", "n0", "o2", "n1", "r5"))
    np.testing.assert_allclose(infer(signed, images, optimize=False), before, atol=1e-5)
    assert got["Reshape"] == 10  # t0, three views, three heads, and three results beside residuals and positions
    assert lint(signed) == []


def test_the_activation_still_meets_its_layer(signed):
    gemms_from_matmuls(signed)
    index = GraphIndex(signed)
    (relu,) = [node for node in signed.graph.node if node.op_type == "Relu"]
    assert index.producer(relu.input[0], "Gemm") is not None
    (second,) = [node for node in signed.graph.node if node.name == "m6"]
    pair = index.producers[second.input[0]]
    assert index.producers[pair.input[0]].input[0] == relu.output[0]  # two Reshapes would undo each other


def test_names_of_layers_and_results_stay(transformer, signed):
    names = {node.name for node in signed.graph.node if node.op_type in ("MatMul", "Gemm")}
    gemms_from_matmuls(signed)
    assert {node.name for node in signed.graph.node if node.op_type in ("MatMul", "Gemm")} == names
    assert {"x1", "x2", "q0", "k0", "a6"} <= {name for node in signed.graph.node for name in node.output}


def test_float_products_and_other_graphs_are_left_alone(transformer, residual, images):
    for model in (transformer, quantize_onnx(residual, [images], MINMAX).signed):
        before = model.SerializeToString()
        assert gemms_from_matmuls(model) == {}
        assert operators(onnx.load_model_from_string(before)) == operators(model)


def test_a_second_dynamic_axis_keeps_the_matmul(build, images):
    body = """
        f0 = Reshape (image, open)
        m0 = MatMul (f0, w)
        logits = Add (m0, b)
    """
    arrays = {"open": np.array([0, -1, 8]), "w": np.ones((8, 4), np.float32), "b": np.ones(4, np.float32)}
    model = build(body, outputs="float[batch, tokens, 4] logits", **arrays)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    result = quantize_onnx(model, [images], MINMAX)
    assert operators(result.unsigned)["MatMul"] == 1


def test_a_product_without_a_bias(build, images, infer):
    body = "f0 = Reshape (image, tokens) m0 = MatMul (f0, w) logits = Relu (m0)"
    arrays = {"tokens": np.array([0, 8, 8]), "w": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    model = build(body, outputs="float[batch, 8, 4] logits", **arrays)
    result = quantize_onnx(model, [images], MINMAX)
    assert operators(result.unsigned)["Gemm"] == 1
    np.testing.assert_allclose(infer(result.unsigned, images), infer(model, images), atol=0.1)


def test_the_unsigned_file_has_no_other_layers(transformer, signed, images, kernels):
    got = kernels(unsigned_from_signed(signed))
    assert got["QGemm"] == 8
    assert got["MatMulIntegerToFloat"] + got["QLinearMatMul"] == 2
    assert not [operator for operator in ("MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Relu") if got[operator]]
    assert operators(strip_qdq(signed)) == operators(transformer)


def test_scores_are_scaled_in_their_product(signed, images, infer):
    before = infer(signed, images, optimize=False)
    fold_score_scales(signed)
    onnx.checker.check_model(signed, full_check=True)
    assert operators(signed)["Mul"] == 0
    np.testing.assert_allclose(infer(signed, images, optimize=False), before, atol=1e-5)
    index = GraphIndex(signed)
    (scores,) = [node for node in signed.graph.node if node.name == "s0"]
    step, codes = (index.required(name, "scale") for name in ("s0.scaled_step", "q0.scale"))
    assert index.producers[scores.input[0]].input[1] == "s0.scaled_step"
    assert float(step) == float(codes) * 0.5
    assert step.shape == ()


def test_other_factors_stay(transformer, images):
    """A negative one, and one for each token."""
    for value in (np.float32(-0.5), np.full((8,), 0.5, np.float32)):
        for tensor in transformer.graph.initializer:
            if tensor.name == "half":
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), "half"))
        signed = quantize_onnx(transformer, [images], MINMAX).signed
        fold_score_scales(signed)
        assert operators(signed)["Mul"] == 1
