"""What rules say about runtimes holds in those runtimes, and what other quantizers leave undone is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from onnxruntime.quantization import QuantFormat, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from compress.engines.availability import check_library
from compress.engines.rtx_program import operand_types
from compress.engines.tensorrt_builder import build_engine
from compress.onnx_graph.lint import lint
from compress.onnx_graph.lint_layers import RUNTIME_MOVES, TENSORRT_MOVES

needs_rtx = pytest.mark.skipif(
    not check_library("tensorrt_rtx").available, reason="tensorrt_rtx is not installed (Linux x86-64 only)"
)
PAIR = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) "
MATMUL = "wd = DequantizeLinear (w, ws, wz) m = MatMul (x, wd) "
CONV = "wd = DequantizeLinear (k, ws, wz) m = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wd) "
OUT = "o = QuantizeLinear (m, os, oz) e = DequantizeLinear (o, os, oz) logits = Flatten (e)"
# From the activation `d` (batch, 1, 8, 8) to the operand `x` of a product.
BETWEEN = {
    "Reshape": ("x = Reshape (d, shape) ", MATMUL),
    "Transpose": ("x = Transpose <perm = [0, 2, 1, 3]> (d) ", MATMUL),
    "Squeeze": ("x = Squeeze (d, one) ", MATMUL),
    "Unsqueeze": ("x = Unsqueeze (d, one) ", MATMUL),
    "Slice": ("x = Slice (d, zero, two, two) ", MATMUL),
    "MaxPool": ("x = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d) ", CONV),
    "Identity": ("x = Identity (d) ", CONV),
    "Dropout": ("x = Dropout (d) ", CONV),
    "Flatten": ("x = Flatten <axis = 3> (d) ", MATMUL),
    "Gather": ("x = Gather <axis = 2> (d, three) ", MATMUL),
    "Split": ("x, y = Split <axis = 2, num_outputs = 2> (d) ", MATMUL),
    "DepthToSpace": ("x = DepthToSpace <blocksize = 1> (d) ", CONV),
    "Relu": ("x = Relu (d) ", CONV),
    "AveragePool": ("x = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d) ", CONV),
}
ARRAYS = {
    "s": np.float32(0.01),
    "ws": np.float32(0.02),
    "wz": np.int8(0),
    "os": np.float32(0.05),
    "w": np.random.default_rng(0).integers(-60, 60, (8, 8)).astype(np.int8),
    "k": np.random.default_rng(0).integers(-60, 60, (1, 1, 3, 3)).astype(np.int8),
    "shape": np.array([0, 2, 4, 8]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "three": np.array(3),
}
UNSIGNED = {**ARRAYS, "z": np.uint8(0), "oz": np.uint8(128)}
SIGNED = {**ARRAYS, "z": np.int8(0), "oz": np.int8(0)}
INTEGER = {"QLinearConv", "QLinearMatMul", "QGemm"}


def rules(findings):
    return {finding.rule for finding in findings}


def between(build, operator, arrays):
    moved, layer = BETWEEN[operator]
    return build(PAIR + moved + layer + OUT, outputs="float[rows, columns] logits", **arrays)


def in_integers(model, tmp_path):
    """Names of the products that multiply int8 by int8 in a TensorRT-RTX engine."""
    onnx.save(model, tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.plan")
    operations = operand_types((tmp_path / "model.plan").read_bytes())
    return {node for operation in operations if operation.int8 for node in operation.layers}


@pytest.mark.parametrize("operator", BETWEEN)
def test_a_dq_is_moved_behind_some_operators_in_onnxruntime(build, kernels, operator):
    model = between(build, operator, UNSIGNED)
    moved = bool(INTEGER & set(kernels(model)))
    assert moved == (operator in RUNTIME_MOVES)
    assert ("float-layer" in rules(lint(model, "onnxruntime"))) == (not moved)


@needs_rtx
@pytest.mark.slow
def test_a_dq_is_moved_behind_some_operators_in_tensorrt(build, tmp_path):
    text, outputs, weights = PAIR, [], {}
    for number, (operator, (moved, layer)) in enumerate(BETWEEN.items(), 1):
        text += re.sub(r"\b([xywkmoe]|wd|logits)\b", rf"\1_{operator}", moved + layer + OUT + " ")
        outputs.append(f"float[rows_{operator}, columns_{operator}] logits_{operator}")
        # equal products would be computed once
        weights |= {f"{name}_{operator}": np.roll(SIGNED[name], number) for name in "wk"}
    model = build(text, outputs=", ".join(outputs), **SIGNED, **weights)
    engine = in_integers(model, tmp_path)
    assert {operator for operator in BETWEEN if f"m_{operator}" in engine} == TENSORRT_MOVES
    float_layers = {finding.node for finding in lint(model) if finding.rule == "float-layer"}
    assert float_layers == {f"m_{operator}" for operator in BETWEEN.keys() - TENSORRT_MOVES}


def test_attention_may_be_transposed_behind_its_dq(build, kernels):
    body = PAIR + "t = Transpose <perm = [0, 1, 3, 2]> (d) m = MatMul (d, t) p = Softmax (m) logits = Identity (p)"
    model = build(body, outputs="float[batch, 1, 8, 8] logits", s=np.float32(0.01), z=np.uint8(0))
    assert kernels(model)["MatMulIntegerToFloat"] == 1
    assert lint(model, "onnxruntime") == []


def test_a_transposed_weight_is_no_operand_of_attention(build):
    body = PAIR + "wd = DequantizeLinear (w, ws, wz) t = Transpose <perm = [1, 0]> (wd) m = MatMul (image, t) "
    model = build(body + "p = Softmax (m) logits = Add (p, d)", outputs="float[batch, 1, 8, 8] logits", **SIGNED)
    assert [f.node for f in lint(model) if f.rule == "float-layer"] == ["m"]
    assert "float-attention" not in rules(lint(model))


SCALES = {
    "columns": "<axis = 1> (w, rising, zeros)",
    "rows": "<axis = 0> (w, rising, zeros)",
    "blocks": "<axis = 0, block_size = 4> (w, halves)",
}


def with_scales(build, kind, arrays):
    extra = {"rising": np.linspace(0.001, 0.05, 8, dtype=np.float32), "zeros": np.zeros(8, np.int8)}
    extra["halves"] = np.repeat(np.array([[0.001], [0.05]], np.float32), 8, axis=1)
    layer = f"x = Identity (d) wd = DequantizeLinear {SCALES[kind]} m = MatMul (x, wd) "
    return build(PAIR + layer + OUT, outputs="float[rows, columns] logits", opset=21, **arrays, **extra)


def test_scales_of_columns_are_sound(build, infer, images):
    model = with_scales(build, "columns", UNSIGNED)
    assert np.abs(infer(model, images) - infer(model, images, optimize=False)).max() <= UNSIGNED["os"] * 1.01
    assert not {"weight-scales", "float-layer"} & rules(lint(model, "onnxruntime"))


def test_onnxruntime_computes_nonsense_from_scales_of_rows(build, infer, images):
    model = with_scales(build, "rows", UNSIGNED)
    right = infer(model, images, optimize=False)
    assert np.abs(infer(model, images) - right).max() > 0.3 * np.abs(right).max()
    (finding,) = [f for f in lint(model, "onnxruntime") if f.rule == "weight-scales"]
    assert (finding.node, finding.severity) == ("m", "error")
    assert finding.message == "the scales of its weight lie along axis 0, expected axis 1."


def test_onnxruntime_fails_on_scales_of_blocks(build, infer, images):
    model = with_scales(build, "blocks", UNSIGNED)
    with pytest.raises(Fail, match="QLinearMatMul"):
        infer(model, images)
    (finding,) = [f for f in lint(model, "onnxruntime") if f.rule == "weight-scales"]
    assert finding.message == "its weight has a scale for each block of 4 values."


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_tensorrt_runs_scales_of_rows_in_float(build, tmp_path, kind):
    model = with_scales(build, kind, SIGNED)
    int8 = "m" in in_integers(model, tmp_path)
    assert int8 == (kind == "columns")
    assert ("weight-scales" in rules(lint(model))) == (not int8)


def test_a_quantizer_that_only_logs_an_error_is_found_out(build, caplog):
    weights = {name: np.ones((8, 8), np.float32) for name in ("w0", "w1")}
    body = "m = MatMul (image, w0) r = Relu (m) logits = MatMul (r, w1)"
    model = build(body, outputs="float[batch, 1, 8, 8] logits", **weights)
    quantizer = MatMulNBitsQuantizer(model, bits=8, block_size=32, is_symmetric=True, quant_format=QuantFormat.QDQ)
    quantizer.process()
    assert "only supports QOperator format for 8 bits" in caplog.text
    left = cast("ONNXModel", quantizer.model).model
    for target in ("tensorrt", "onnxruntime"):
        (finding,) = lint(left, target)
        assert (finding.rule, finding.severity, finding.node) == ("not-quantized", "warning", "")
        assert finding.message == "nothing is quantized: all layers (2 MatMul) run in float."
        assert "read its log" in finding.cure


def test_what_dynamic_quantization_leaves_in_float_is_named(residual, tmp_path: Path):
    onnx.save(residual, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    found = lint(onnx.load(tmp_path / "int8.onnx"), "onnxruntime")
    assert [f.node for f in found if f.rule == "float-layer"] == ["c0", "c1", "c2"]
    assert "not-quantized" not in rules(found)
