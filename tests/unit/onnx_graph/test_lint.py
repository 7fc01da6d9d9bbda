from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compress.errors import ModelError
from compress.onnx_graph.lint import RULES, Target, lint, raise_on_errors
from compress.quantization.quantize import quantize_onnx

SHAPE = "float[batch, 1, 8, 8] logits"
SAME = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
PAIR = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) "
KERNEL = np.ones((1, 1, 3, 3), np.float32)
INT8 = {"s": np.float32(0.1), "z": np.int8(0)}
UINT8 = {"s": np.float32(0.1), "z": np.uint8(0)}
BIAS = PAIR + f"b = DequantizeLinear (bq, bs, bz) logits = Conv {SAME} (d, w, b)"
INT32_BIAS = {"bq": np.array([3], np.int32), "bs": np.float32(0.1), "bz": np.int32(0)}
INT8_BIAS = {"bq": np.array([3], np.int8), "bs": np.float32(0.1), "bz": np.int8(0)}

BAD: dict[str, tuple[str, dict[str, Any], Target, str]] = {  # rule -> (graph, initializers, target, severity)
    "nonzero-zero-point": (PAIR + "logits = Relu (d)", {**INT8, "z": np.int8(5)}, "tensorrt", "error"),
    "unsigned-codes": (PAIR + "logits = Relu (d)", UINT8, "tensorrt", "error"),
    "int32-bias": (BIAS, {**INT8, **INT32_BIAS, "w": KERNEL}, "tensorrt", "error"),
    "quantized-bias": (BIAS, {**INT8, **INT8_BIAS, "w": KERNEL}, "tensorrt", "error"),
    "per-channel-activation": (
        "q = QuantizeLinear <axis = 3> (image, s, z) d = DequantizeLinear <axis = 3> (q, s, z) logits = Relu (d)",
        {"s": np.full(8, 0.1, np.float32), "z": np.zeros(8, np.int8)},
        "tensorrt",
        "error",
    ),
    "int8-conv-transpose": (
        PAIR + "logits = ConvTranspose <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d, w)",
        {**INT8, "w": KERNEL},
        "tensorrt",
        "error",
    ),
    "missing-dq": (
        "q = QuantizeLinear (image, s, z) c = Cast <to = 1> (q) logits = Relu (c)",
        INT8,
        "tensorrt",
        "error",
    ),
    "bad-scale": (PAIR + "logits = Relu (d)", {**INT8, "s": np.float32(0)}, "tensorrt", "error"),
    "q-before-activation": (
        f"c = Conv {SAME} (image, w) q = QuantizeLinear (c, s, z) d = DequantizeLinear (q, s, z) logits = Relu (d)",
        {**INT8, "w": KERNEL},
        "tensorrt",
        "warning",
    ),
    "scale-shape": (
        PAIR + "logits = Relu (d)",
        {"s": np.full(1, 0.1, np.float32), "z": np.zeros(1, np.uint8)},
        "onnxruntime",
        "warning",
    ),
    "signed-activation": (PAIR + "logits = Relu (d)", INT8, "onnxruntime", "warning"),
    "hard-swish": (PAIR + "logits = HardSwish (d)", UINT8, "onnxruntime", "warning"),
    "float-layer": (PAIR + f"logits = Conv {SAME} (d, w)", {**INT8, "w": KERNEL}, "tensorrt", "warning"),
}  # fmt: skip


def rules(findings):
    return {finding.rule for finding in findings}


@pytest.mark.parametrize("rule", BAD)
def test_a_bad_graph_is_found(build, rule):
    body, arrays, target, severity = BAD[rule]
    (finding, *_) = [f for f in lint(build(body, outputs=SHAPE, **arrays), target) if f.rule == rule]
    assert finding.severity == severity
    assert finding.node
    assert finding.message
    assert finding.cure
    assert str(finding).startswith(f"{severity} {rule} at {finding.node}: ")


def test_every_rule_has_its_bad_graph():
    assert {rule.name for rule in RULES} == {*BAD, "opset", "static-batch"}


@pytest.mark.parametrize("version", [16, 27])
def test_opsets_outside_what_parsers_take(residual, version):
    residual.opset_import[0].version = version
    (finding,) = lint(residual)
    assert (finding.rule, finding.severity) == ("opset", "error")
    assert f"opset is {version}, expected 17 to 26" in finding.message


def test_a_static_batch(residual):
    residual.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    with pytest.raises(ModelError, match=r"static-batch at graph: the batch axis of input image is 8") as caught:
        raise_on_errors(residual)
    assert caught.value.exit_code == 5
    assert "Export with a dynamic batch axis" in caught.value.hint


def test_scales_that_are_computed_or_not_finite(build):
    computed = "s = ReduceMax (image) q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) logits = Relu (d)"
    body = computed.replace("ReduceMax", "ReduceMax <keepdims = 0>")
    assert "bad-scale" in rules(lint(build(body, outputs=SHAPE, z=np.int8(0))))
    for value in (np.nan, np.inf, -1):
        model = build(PAIR + "logits = Relu (d)", outputs=SHAPE, s=np.float32(value), z=np.int8(0))
        assert "bad-scale" in rules(lint(model))


def test_every_error_is_in_the_message(build):
    arrays = {"s": np.float32(0), "z": np.uint8(7)}
    with pytest.raises(ModelError, match=r"not fit for tensorrt, 6 error\(s\)") as caught:
        raise_on_errors(build(PAIR + "logits = Relu (d)", outputs=SHAPE, **arrays))
    for rule in ("nonzero-zero-point", "unsigned-codes", "bad-scale"):
        assert rule in caught.value.message


def test_errors_come_first(build):
    arrays = {**INT8, "w": KERNEL, "s": np.float32(0)}
    findings = lint(build(PAIR + f"logits = Conv {SAME} (d, w)", outputs=SHAPE, **arrays))
    assert [f.severity for f in findings] == ["error", "error", "warning"]


def test_what_we_write_is_clean(residual, depthwise, mlp, images):
    for model in (residual, depthwise, mlp):
        result = quantize_onnx(model, [images], "minmax")
        assert lint(result.signed, "tensorrt") == []
        assert lint(result.unsigned, "onnxruntime") == []
        assert lint(model, "tensorrt") == []  # a float graph may be float
        assert {"unsigned-codes"} <= rules(lint(result.unsigned, "tensorrt"))
        assert rules(lint(result.signed, "onnxruntime")) == {"signed-activation"}


def test_warnings_do_not_stop(build):
    body, arrays, target, _ = BAD["hard-swish"]
    assert rules(raise_on_errors(build(body, outputs=SHAPE, **arrays), target)) == {"hard-swish"}
