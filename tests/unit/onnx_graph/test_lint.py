from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from compress.errors import ModelError
from compress.onnx_graph.findings import count_by_severity
from compress.onnx_graph.lint import INVALID, lint, lint_foreign, raise_on_errors
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

SHAPE = "float[batch, 1, 8, 8] logits"
SAME = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
PAIR = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) "
INT8 = {"s": np.float32(0.1), "z": np.int8(0)}
UINT8 = {"s": np.float32(0.1), "z": np.uint8(0)}


def rules(findings):
    return {finding.rule for finding in findings}


def operator(build, domain, name):
    model = build("r = Relu (image) logits = Relu (r)", outputs=SHAPE)
    model.graph.node[1].domain, model.graph.node[1].op_type = domain, name
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def function(body):
    own = f'<domain: "own", opset_import: ["": 20]> block (x) => (y) {{ {body} }}'
    net = f"net (float[batch, 1, 8, 8] image) => ({SHAPE}) {{ logits = own.block (image) }}"
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20, "own": 1]> {net} {own}')


def branch(name, source):
    value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(name, [source], [f"{name}_out"], name=name)], name, [], [value])


@pytest.mark.parametrize("number", [6, 27])
def test_opsets_outside_what_parsers_take(residual, number):
    residual.opset_import[0].version = number
    (finding, _) = lint(residual)  # and that it is float
    assert (finding.rule, finding.severity) == ("opset", "error")
    assert f"opset is {number}, expected 7 to 26" in finding.message


def test_old_opsets_are_rare_for_tensorrt(residual):
    residual.opset_import[0].version = 13
    assert rules(lint(residual)) == {"rare-opset", "not-quantized"}
    assert rules(lint(residual, "onnxruntime")) == {"not-quantized"}


def test_a_static_batch(residual):
    residual.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    assert [f.rule for f in raise_on_errors(residual, static_batch=True)] == ["static-batch", "not-quantized"]
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


def test_scales_in_constant_nodes_are_constants(build):
    body = "s = Constant <value_float = 0.1> () z = Constant <value = int8 {0}> () y = Identity (s) "
    body += "q = QuantizeLinear (image, y, z) d = DequantizeLinear (q, y, z) logits = Relu (d)"
    assert lint(build(body, outputs=SHAPE)) == []
    assert rules(lint(build(body.replace("int8 {0}", "int8 {5}"), outputs=SHAPE))) == {"nonzero-zero-point"}


def test_codes_without_a_zero_point_are_unsigned_unless_it_is_said(build):
    body = "q = QuantizeLinear (image, s) d = DequantizeLinear (q, s) logits = Relu (d)"
    assert rules(lint(build(body, outputs=SHAPE, s=np.float32(0.1)))) == {"unsigned-codes"}
    said = body.replace("Linear (image", "Linear <output_dtype = 3> (image")
    assert lint(build(said, outputs=SHAPE, opset=21, s=np.float32(0.1))) == []


def test_operators_of_onnxruntime_are_custom_for_tensorrt_alone(build):
    model = operator(build, "com.microsoft", "MatMulNBits")
    assert "com.microsoft::MatMulNBits is a custom operator" in lint(model)[0].message
    assert lint(model, "onnxruntime") == []
    assert rules(lint(operator(build, "acme", "Fast"), "onnxruntime")) == {"custom-operator"}


def test_layers_that_onnxruntime_has_fused_are_layers(build):
    (finding,) = lint(operator(build, "com.microsoft", "FusedConv"), "onnxruntime")
    assert finding.message == "nothing is quantized: all layers (1 Conv) run in float."


@pytest.mark.parametrize("name", ["QGemm", "MatMulNBits"])
def test_integer_operators_of_onnxruntime_count_as_quantized(build, name):
    model = build(f"c = Conv {SAME} (image, w) logits = Relu (c)", outputs=SHAPE, w=np.ones((1, 1, 3, 3), np.float32))
    assert rules(lint(model, "onnxruntime")) == {"not-quantized"}
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", name
    (finding,) = lint(model, "onnxruntime")
    assert (finding.rule, finding.node) == ("float-layer", "c")


@pytest.mark.parametrize("name", ["Attention", "MultiHeadAttention"])
def test_attention_that_onnxruntime_has_fused_is_float(build, name):
    model = build(PAIR + "logits = Relu (d)", outputs=SHAPE, **UINT8)
    model.graph.node[2].domain, model.graph.node[2].op_type = "com.microsoft", name
    assert rules(lint(model, "onnxruntime")) == {"float-attention"}


def test_weight_scales_are_held_against_the_layer_that_reads_them(build):
    arrays = {**INT8, "w": np.ones((8, 8), np.int8), "ws": np.full(8, 0.1, np.float32), "wz": np.zeros(8, np.int8)}
    for axis, trans, sound in ((0, 1, True), (1, 1, False), (-2, 1, True), (-1, 0, True), (0, 0, False)):
        body = PAIR + f"f = Reshape (d, shape) wd = DequantizeLinear <axis = {axis}> (w, ws, wz) "
        body += f"logits = Gemm <transB = {trans}> (f, wd)"
        model = build(body, outputs="float[rows, 8] logits", **arrays, shape=np.array([-1, 8]))
        assert (rules(lint(model)) == set()) == sound, (axis, trans)
        assert rules(lint(model)) <= {"weight-scales"}
    kernel = {**arrays, "w": np.ones((8, 1, 3, 3), np.int8)}
    body = PAIR + f"wd = DequantizeLinear <axis = 0> (w, ws, wz) logits = Conv {SAME} (d, wd)"
    assert lint(build(body, outputs="float[batch, 8, 8, 8] logits", **kernel)) == []


def test_an_operator_of_another_domain_is_not_its_namesake(build):
    assert rules(lint(operator(build, "acme", "QuantizeLinear"))) == {"custom-operator"}


def test_quantizers_within_functions_are_seen():
    body = "s = Constant <value_float = 0.1> () z = Constant <value = int8 {5}> () "
    body += "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    found = lint(function(body))
    assert rules(found) == {"local-function", "nonzero-zero-point"}


def test_paths_within_functions_are_seen():
    model = function("y = Relu (x)")
    model.functions[0].node[0].metadata_props.add(key="stack_trace", value='File "/home/me/net.py", line 3')
    assert rules(lint(model)) == {"local-function", "leaked-path"}


def test_masks_may_be_infinite(build):
    mask = np.full((8, 8), -np.inf, np.float32)
    assert lint(build("m = Add (image, mask) logits = Softmax (m)", outputs=SHAPE, mask=mask)) == []
    assert rules(lint(build("logits = Mul (image, mask)", outputs=SHAPE, mask=mask))) == {"non-finite-weight"}


def test_every_error_is_in_the_message(build):
    arrays = {"s": np.float32(0), "z": np.uint8(7)}
    with pytest.raises(ModelError, match=r"not fit for tensorrt, 6 error\(s\)") as caught:
        raise_on_errors(build(PAIR + "logits = Relu (d)", outputs=SHAPE, **arrays))
    for rule in ("nonzero-zero-point", "unsigned-codes", "bad-scale"):
        assert rule in caught.value.message


def test_a_message_stays_readable(build):
    body = " ".join(f"q{i} = QuantizeLinear (image, s, z) d{i} = DequantizeLinear (q{i}, s, z)" for i in range(5))
    model = build(f"{body} logits = Sum ({', '.join(f'd{i}' for i in range(5))})", outputs=SHAPE, **UINT8)
    with pytest.raises(ModelError, match=r"10 error\(s\): unsigned-codes at q0.*; and 7 more of unsigned-codes"):
        raise_on_errors(model)


def test_codes_may_go_where_onnxruntime_takes_them(build):
    model = build("q = QuantizeLinear (image, s, z) p = Identity (q) logits = DequantizeLinear (p, s, z)",
                  outputs=SHAPE, **UINT8)  # fmt: skip
    assert "missing-dq" in rules(lint(model))
    assert lint(model, "onnxruntime") == []


def test_signed_activations_saturate_too(build):
    weight = {"w": np.full((1, 1, 3, 3), 127, np.int8), "ws": np.float32(0.1), "wz": np.int8(0)}
    body = PAIR + f"wd = DequantizeLinear (w, ws, wz) logits = Conv {SAME} (d, wd)"
    assert rules(lint(build(body, outputs=SHAPE, **INT8, **weight), "onnxruntime")) == {
        "signed-activation",
        "saturating-weight",
    }
    assert lint(build(body, outputs=SHAPE, **UINT8, **weight), "onnxruntime") == []


def test_errors_come_first(build):
    arrays = {**INT8, "w": np.ones((1, 1, 3, 3), np.float32), "s": np.float32(0)}
    findings = lint(build(PAIR + f"logits = Conv {SAME} (d, w)", outputs=SHAPE, **arrays))
    assert [f.severity for f in findings] == ["error", "error", "warning"]
    assert count_by_severity(findings) == (2, 1)


def test_what_onnx_checker_refuses_is_a_finding(build):
    model = operator(build, "", "Fast")
    found = lint_foreign(model)
    assert [finding.rule for finding in found] == [INVALID, "custom-operator"]
    assert "No Op registered for Fast" in found[0].message
    assert "ONNX has no operator Fast" in found[1].message
    model = build("logits = Relu (image)", outputs=SHAPE)
    model.graph.node[0].input[0] = "nowhere"
    assert [finding.rule for finding in lint_foreign(model)] == [INVALID]


def test_what_we_write_is_clean(residual, depthwise, mlp, images):
    for model in (residual, depthwise, mlp):
        result = quantize_onnx(model, [images], QuantizeSettings(method="minmax"))
        assert lint(result.signed, "tensorrt") == []
        assert lint(result.unsigned, "onnxruntime") == []
        assert rules(raise_on_errors(model)) == {"not-quantized"}  # a float graph may be float, and is told apart
        assert {"unsigned-codes"} <= rules(lint(result.unsigned, "tensorrt"))
        assert rules(lint(result.signed, "onnxruntime")) <= {"signed-activation", "saturating-weight"}


def test_what_a_branch_reads_is_read_by_its_node(build):
    model = build(PAIR + "logits = Relu (d)", outputs=SHAPE, yes=np.asarray(True), **INT8)
    node = helper.make_node(
        "If", ["yes"], ["logits"], "logits", then_branch=branch("Relu", "q"), else_branch=branch("Neg", "image")
    )
    model.graph.node[2].CopyFrom(node)
    assert rules(lint(model)) == {"control-flow", "missing-dq"}
    (finding,) = [f for f in lint(model) if f.rule == "missing-dq"]
    assert finding.message == "QuantizeLinear is read by If, expected a DQ."
