from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from compress.onnx_graph.findings import Severity, Target
from compress.onnx_graph.lint import RULES, lint, lint_foreign, raise_on_errors

Make = Callable[[Callable[..., onnx.ModelProto]], onnx.ModelProto]

SHAPE = "float[batch, 1, 8, 8] logits"
SAME = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
PAIR = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) "
AGAIN = "q2 = QuantizeLinear (image, t, z) d2 = DequantizeLinear (q2, t, z) "
WEIGHT = "wd = DequantizeLinear (w, ws, wz) "
KERNEL = np.ones((1, 1, 3, 3), np.float32)
INT8: dict[str, Any] = {"s": np.float32(0.1), "z": np.int8(0)}
UINT8: dict[str, Any] = {"s": np.float32(0.1), "z": np.uint8(0)}
MIDDLE: dict[str, Any] = {"s": np.float32(0.1), "z": np.uint8(128)}
CODES: dict[str, Any] = {"w": np.full((1, 1, 3, 3), 60, np.int8), "ws": np.float32(0.1), "wz": np.int8(0)}
LARGE: dict[str, Any] = {**CODES, "w": np.full((1, 1, 3, 3), 100, np.int8)}
FLOAT: dict[str, Any] = {**CODES, "w": KERNEL}
BIAS = PAIR + f"b = DequantizeLinear (bq, bs, bz) logits = Conv {SAME} (d, w, b)"
FLOAT_BIAS = PAIR + f"logits = Conv {SAME} (d, w, b)"
INT32_BIAS: dict[str, Any] = {"bq": np.array([3], np.int32), "bs": np.float32(0.1), "bz": np.int32(0)}
INT8_BIAS: dict[str, Any] = {"bq": np.array([3], np.int8), "bs": np.float32(0.1), "bz": np.int8(0)}
ROWS = "(w, ws, wz) logits = MatMul (d, wd)"
MATRIX: dict[str, Any] = {
    "w": np.full((8, 8), 60, np.int8),
    "ws": np.full(8, 0.1, np.float32),
    "wz": np.zeros(8, np.int8),
}
ONE = np.ones(1, np.float32)
NORM: dict[str, Any] = {"g": ONE, "h": ONE, "m": ONE, "v": ONE}
BOUNDS: dict[str, Any] = {"low": np.float32(0), "high": np.float32(6)}
ATTENTION = "p = Softmax (m) "


class Case(NamedTuple):
    """A graph that trips a rule, its twin that does not, and what is said."""

    bad: Make
    good: Make
    target: Target = "tensorrt"
    severity: Severity = "error"


def text(body: str, opset: int = 20, **arrays: Any) -> Make:
    return lambda build: build(body, outputs=SHAPE, opset=opset, **arrays)


PLAIN = text("logits = Relu (image)")


def changed(change: Callable[[onnx.ModelProto], object]) -> Make:
    """PLAIN with two Relus, edited."""

    def make(build: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
        model = build("r = Relu (image) logits = Relu (r)", outputs=SHAPE)
        change(model)
        return model

    return make


def rename(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def version(number: int) -> Make:
    return changed(lambda model: setattr(model.opset_import[0], "version", number))


def operator(domain: str, name: str) -> Make:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].domain, model.graph.node[1].op_type = domain, name
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return changed(change)


def metadata(value: str) -> Make:
    return changed(lambda model: model.graph.node[0].metadata_props.add(key="stack_trace", value=value))


def static(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def sparse(model: onnx.ModelProto) -> None:
    values, indices = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", 7, [1], [3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))


def branching(model: onnx.ModelProto) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(name, ["r"], [f"{name}_out"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("Relu", "Neg")
    ]
    node = helper.make_node("If", ["yes"], ["logits"], "logits", then_branch=branches[0], else_branch=branches[1])
    model.graph.node[1].CopyFrom(node)
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))


def int4_weight(model: onnx.ModelProto) -> None:
    codes = helper.make_tensor("w4", TensorProto.INT4, [8, 8], [1] * 64)
    model.graph.initializer.extend([codes, helper.make_tensor("ws", TensorProto.FLOAT, [], [0.1])])
    model.opset_import[0].version = 21
    model.graph.node[1].CopyFrom(helper.make_node("MatMul", ["r", "wd"], ["logits"], "logits"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w4", "ws"], ["wd"], "wd"))


def function(body: str) -> Make:
    own = f'<domain: "own", opset_import: ["": 20]> block (x) => (y) {{ {body} }}'
    head = '<ir_version: 10, opset_import: ["": 20, "own": 1]>'
    net = f"net (float[batch, 1, 8, 8] image) => ({SHAPE}) {{ logits = own.block (image) }}"
    return lambda build: onnx.parser.parse_model(f"{head} {net} {own}")


CASES: dict[str, Case] = {
    "control-flow": Case(changed(branching), PLAIN, severity="warning"),
    "custom-operator": Case(operator("acme", "Fast"), PLAIN),
    "sparse-weight": Case(changed(sparse), PLAIN, severity="warning"),
    "non-finite-weight": Case(
        text(f"logits = Conv {SAME} (image, w)", w=KERNEL * np.float32(np.nan)),
        text(f"logits = Conv {SAME} (image, w)", w=KERNEL),
    ),
    "duplicate-name": Case(changed(rename), PLAIN, severity="warning"),
    "opset": Case(version(6), version(13)),
    "rare-opset": Case(version(17), version(19), severity="warning"),
    "integer-operator": Case(
        text(
            f"y, ys, yz = DynamicQuantizeLinear (image) c = ConvInteger {SAME} (y, w, yz) logits = Cast <to = 1> (c)",
            w=CODES["w"],
        ),
        text(f"logits = Conv {SAME} (image, w)", w=KERNEL),
    ),
    "nonzero-zero-point": Case(
        text(PAIR + "logits = Relu (d)", **{**INT8, "z": np.int8(5)}), text(PAIR + "logits = Relu (d)", **INT8)
    ),
    "unsigned-codes": Case(text(PAIR + "logits = Relu (d)", **UINT8), text(PAIR + "logits = Relu (d)", **INT8)),
    "int32-bias": Case(text(BIAS, **INT8, **INT32_BIAS, w=KERNEL), text(FLOAT_BIAS, **INT8, w=KERNEL, b=ONE)),
    "quantized-bias": Case(text(BIAS, **INT8, **INT8_BIAS, w=KERNEL), text(FLOAT_BIAS, **INT8, w=KERNEL, b=ONE)),
    "per-channel-activation": Case(
        text(
            "q = QuantizeLinear <axis = 3> (image, s, z) d = DequantizeLinear <axis = 3> (q, s, z) logits = Relu (d)",
            s=np.full(8, 0.1, np.float32),
            z=np.zeros(8, np.int8),
        ),
        text(PAIR + "logits = Relu (d)", **INT8),
    ),
    "int8-conv-transpose": Case(
        text(PAIR + f"logits = ConvTranspose {SAME} (d, w)", **INT8, w=KERNEL),
        text(f"logits = ConvTranspose {SAME} (image, w)", w=KERNEL),
    ),
    "missing-dq": Case(
        text("q = QuantizeLinear (image, s, z) c = Cast <to = 1> (q) logits = Relu (c)", **INT8),
        text(PAIR + "logits = Relu (d)", **INT8),
    ),
    "bad-scale": Case(
        text(PAIR + "logits = Relu (d)", **{**INT8, "s": np.float32(0)}), text(PAIR + "logits = Relu (d)", **INT8)
    ),
    "local-function": Case(function("y = Relu (x)"), PLAIN, severity="warning"),
    "static-batch": Case(changed(static), PLAIN, severity="warning"),
    "leaked-path": Case(
        metadata('File "/home/me/net.py", line 3'), metadata("Net: /layer1/conv: Conv2d"), severity="warning"
    ),
    "wide-codes": Case(
        text(PAIR + "logits = Relu (d)", 21, s=np.float32(0.1), z=np.int16(0)),
        text(PAIR + "logits = Relu (d)", 21, **INT8),
    ),
    "other-codes": Case(changed(int4_weight), PLAIN, severity="warning"),
    "huge-scale": Case(
        text(PAIR + "logits = Relu (d)", s=np.float32(2.6e36), z=np.int8(0)),
        text(PAIR + "logits = Relu (d)", s=np.float32(9e5), z=np.int8(0)),
        severity="warning",
    ),
    "quantized-mask": Case(
        text(PAIR + "m = Add (d, mask) " + ATTENTION + "logits = Relu (p)", **INT8, mask=np.float32(-1e9)),
        text("m = Add (image, mask) " + ATTENTION + "logits = Relu (p)", mask=np.float32(-1e9)),
        severity="warning",
    ),
    "conflicting-scales": Case(
        text(PAIR + AGAIN + "logits = Add (d, d2)", **INT8, t=np.float32(0.2)),
        text(PAIR + AGAIN + "logits = Add (d, d2)", **INT8, t=np.float32(0.1)),
        severity="warning",
    ),
    "repeated-quantizer": Case(
        text(PAIR + AGAIN + "logits = Add (d, d2)", **UINT8, t=np.float32(0.1)),
        text(PAIR + "logits = Add (d, d)", **UINT8),
        "onnxruntime",
        "warning",
    ),
    "unfolded-weight": Case(
        text(PAIR + f"wq = QuantizeLinear (w, ws, wz) wd = DequantizeLinear (wq, ws, wz) logits = Conv {SAME} (d, wd)",
             **INT8, **FLOAT),
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **INT8, **CODES),
        severity="warning",
    ),
    "transposed-weight": Case(
        text(PAIR + WEIGHT + f"wt = Transpose <perm = [1, 0, 3, 2]> (wd) logits = Conv {SAME} (d, wt)",
             **UINT8, **CODES),
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **UINT8, **CODES),
        "onnxruntime",
        "warning",
    ),
    "unfolded-batch-norm": Case(
        text(PAIR + WEIGHT + f"c = Conv {SAME} (d, wd) logits = BatchNormalization (c, g, h, m, v)",
             **INT8, **CODES, **NORM),
        text(f"c = Conv {SAME} (image, w) logits = BatchNormalization (c, g, h, m, v)", w=KERNEL, **NORM),
        severity="warning",
    ),
    "q-before-activation": Case(
        text(f"c = Conv {SAME} (image, w) q = QuantizeLinear (c, s, z) d = DequantizeLinear (q, s, z) "
             "logits = Relu (d)", **INT8, w=KERNEL),
        text(f"c = Conv {SAME} (image, w) r = Relu (c) q = QuantizeLinear (r, s, z) d = DequantizeLinear (q, s, z) "
             "logits = Neg (d)", **INT8, w=KERNEL),
        severity="warning",
    ),
    "clip-before-q": Case(
        text("k = Clip (image, low, high) q = QuantizeLinear (k, s, z) d = DequantizeLinear (q, s, z) "
             "logits = Neg (d)", **UINT8, **BOUNDS),
        text(PAIR + "logits = Clip (d, low, high)", **UINT8, **BOUNDS),
        "onnxruntime",
        "warning",
    ),
    "scale-shape": Case(
        text(PAIR + "logits = Relu (d)", s=np.full(1, 0.1, np.float32), z=np.zeros(1, np.uint8)),
        text(PAIR + "logits = Relu (d)", **UINT8),
        "onnxruntime",
        "warning",
    ),
    "signed-activation": Case(
        text(PAIR + "logits = Relu (d)", **INT8), text(PAIR + "logits = Relu (d)", **UINT8), "onnxruntime", "warning"
    ),
    "saturating-weight": Case(
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **MIDDLE, **LARGE),
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **MIDDLE, **CODES),
        "onnxruntime",
        "warning",
    ),
    "hard-swish": Case(
        text(PAIR + "logits = HardSwish (d)", **UINT8), text("logits = HardSwish (image)"), "onnxruntime", "warning"
    ),
    "not-quantized": Case(
        text(f"logits = Conv {SAME} (image, w)", w=KERNEL),
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **INT8, **CODES),
        severity="warning",
    ),
    "weight-scales": Case(
        text(PAIR + f"wd = DequantizeLinear <axis = 0> {ROWS}", **INT8, **MATRIX),
        text(PAIR + f"wd = DequantizeLinear <axis = 1> {ROWS}", **INT8, **MATRIX),
    ),
    "float-layer": Case(
        text(PAIR + f"logits = Conv {SAME} (d, w)", **INT8, w=KERNEL),
        text(PAIR + WEIGHT + f"logits = Conv {SAME} (d, wd)", **INT8, **CODES),
        severity="warning",
    ),
    "float-attention": Case(
        text(PAIR + "m = MatMul (image, image) " + ATTENTION + "logits = MatMul (p, d)", **INT8),
        text(PAIR + "m = MatMul (d, d) " + ATTENTION + "logits = Neg (p)", **INT8),
        severity="warning",
    ),
    "half-quantized-add": Case(
        text(PAIR + "r = Relu (image) logits = Add (d, r)", **INT8),
        text(PAIR + "r = Relu (d) logits = Add (image, r)", **INT8),
        severity="warning",
    ),
    "float-pool": Case(
        text(PAIR + f"r = Relu (d) logits = AveragePool {SAME} (r)", **INT8),
        text(PAIR + f"logits = AveragePool {SAME} (d)", **INT8),
        severity="warning",
    ),
    "quantized-function": Case(
        text(PAIR + "logits = Softmax (d)", **INT8), text("logits = Softmax (image)"), severity="warning"
    ),
}  # fmt: skip
OF_THE_FILE = {"sparse-weight", "non-finite-weight", "opset", "rare-opset", "local-function",
               "static-batch", "leaked-path", "not-quantized"}  # fmt: skip


def rules(findings):
    return {finding.rule for finding in findings}


@pytest.mark.parametrize("rule", CASES)
def test_a_bad_graph_is_found(build, rule):
    case = CASES[rule]
    (finding, *_) = [f for f in lint(case.bad(build), case.target) if f.rule == rule]
    assert finding.severity == case.severity
    assert bool(finding.node) == (rule not in OF_THE_FILE)
    assert finding.message.endswith(".")
    assert finding.cure.endswith(".")
    assert str(finding).startswith(f"{case.severity} {rule} at {finding.node or 'graph'}: ")


@pytest.mark.parametrize("rule", CASES)
def test_its_sound_twin_is_not(build, rule):
    case = CASES[rule]
    assert rule not in rules(lint(case.good(build), case.target))


def test_every_rule_has_its_case():
    assert {rule.name for rule in RULES} == set(CASES)
    for name, case in CASES.items():
        assert any(r.name == name and case.target in r.targets and r.severity == case.severity for r in RULES), name


def test_a_sound_graph_is_linted_as_ever(build):
    for case in CASES.values():
        assert lint_foreign(case.good(build), case.target) == lint(case.good(build), case.target)


def test_linting_leaves_the_model_alone(build):
    for rule in ("control-flow", "custom-operator", "local-function"):
        model = CASES[rule].bad(build)
        before = model.SerializeToString()
        lint(model)
        assert model.SerializeToString() == before


def test_warnings_do_not_stop(build):
    case = CASES["hard-swish"]
    assert rules(raise_on_errors(case.bad(build), case.target)) == {"hard-swish"}
