"""What a builder would refuse, or silently run in float: found before the file reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import GraphIndex, opset_of

Target = Literal["tensorrt", "onnxruntime"]
Severity = Literal["error", "warning"]
TENSORRT: tuple[Target, ...] = ("tensorrt",)
ONNXRUNTIME: tuple[Target, ...] = ("onnxruntime",)
BOTH: tuple[Target, ...] = ("tensorrt", "onnxruntime")

LAYERS = ("Conv", "Gemm", "MatMul")
OPSETS = range(17, 27)  # what TensorRT's parser has been seen to take
ABSORBED = frozenset(  # a layer in front of these is fused with them, unless a Q stands between
    "Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Elu Selu Gelu BatchNormalization".split()
)


@dataclass(frozen=True)
class Finding:
    """One problem: which rule, how bad, at which node, what is wrong, what cures it."""

    rule: str
    severity: Severity
    node: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.severity} {self.rule} at {self.node or 'graph'}: {self.message} {self.cure}"


@dataclass(frozen=True)
class Problem:
    """What a check reports; its rule adds the rest."""

    node: str
    message: str


@dataclass(frozen=True)
class Rule:
    """One check, the targets that it concerns, and the cure that it recommends."""

    name: str
    severity: Severity
    targets: tuple[Target, ...]
    check: Callable[[onnx.ModelProto, GraphIndex], Iterator[Problem]]
    cure: str


def lint(model: onnx.ModelProto, target: Target = "tensorrt") -> list[Finding]:
    """Hold a graph against everything that `target` is known to refuse or to run in float.

    Args:
        model: a float or Q/DQ graph.
        target: "tensorrt" for the signed file, "onnxruntime" for the unsigned one.

    Returns:
        Errors first, then warnings, each in the order of rules and nodes; empty for a clean graph.

    Raises:
        ModelError: the graph has control flow.
    """
    index = GraphIndex(model)
    findings = [
        Finding(rule.name, rule.severity, problem.node, problem.message, rule.cure)
        for rule in RULES
        if target in rule.targets
        for problem in rule.check(model, index)
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def raise_on_errors(model: onnx.ModelProto, target: Target = "tensorrt") -> list[Finding]:
    """Lint, and stop at errors.

    Returns:
        The warnings.

    Raises:
        ModelError: naming every error with its cure.
    """
    findings = lint(model, target)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = [f"{e.rule} at {e.node or 'graph'}: {e.message}" for e in errors]
        raise ModelError(
            f"The graph is not fit for {target}, {len(errors)} error(s): " + "; ".join(lines),
            hint=" ".join(dict.fromkeys(error.cure for error in errors)),
        )
    return findings


def _quantizers(index: GraphIndex) -> Iterator[onnx.NodeProto]:
    yield from (node for node in index.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE))


def _is_weight(node: onnx.NodeProto, index: GraphIndex) -> bool:
    return node.input[0] in index.constants


def _zero_point(node: onnx.NodeProto, index: GraphIndex) -> np.ndarray:
    """The zero point; the operators' default without one is uint8 zero."""
    array = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return np.zeros((), np.uint8) if array is None else array


def _nonzero_zero_points(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        zero = _zero_point(node, index)
        if zero.astype(np.float32).any():
            yield Problem(node.name, f"zero point is {zero.reshape(-1)[0]}, expected 0.")


def _unsigned_codes(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        kind = _zero_point(node, index).dtype
        if kind.kind == "u":
            yield Problem(node.name, f"codes are {kind}, expected int8; 128 to 255 would saturate silently.")


def _signed_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        if node.op_type == QUANTIZE and _zero_point(node, index).dtype == np.int8:
            yield Problem(node.name, f"activation {node.input[0]} has int8 codes, which run slower than float on x86.")


def _biases(index: GraphIndex) -> Iterator[tuple[onnx.NodeProto, np.dtype]]:
    for node in index.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            source = index.producer(node.input[2], DEQUANTIZE)
            if source is not None:
                array = index.constant(source.input[0])
                yield node, np.dtype(np.int8) if array is None else array.dtype


def _int32_biases(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node, kind in _biases(index):
        if kind == np.int32:
            yield Problem(node.name, "the bias is int32 behind a DequantizeLinear, expected float: parsing fails.")


def _quantized_biases(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node, kind in _biases(index):
        if kind != np.int32:
            yield Problem(node.name, f"the bias is quantized to {kind}, expected float.")


def _per_channel_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        step = index.constant(node.input[1])
        if not _is_weight(node, index) and step is not None and step.size > 1:
            yield Problem(node.name, f"the activation has {step.size} scales, expected one: it would run in float.")


def _shaped_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        step = index.constant(node.input[1])
        if not _is_weight(node, index) and step is not None and step.shape == (1,):
            yield Problem(node.name, "the scale has shape [1], expected 0-d: integer kernels are not used.")


def _transposed_convs(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in index.graph.node:
        if node.op_type == "ConvTranspose" and any(index.producer(name, DEQUANTIZE) for name in node.input[:2]):
            yield Problem(node.name, "int8 ConvTranspose builds, but computes in float.")


def _late_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in index.graph.node:
        layer = index.producers.get(node.input[0]) if node.op_type == QUANTIZE else None
        if layer is None or layer.op_type not in (*LAYERS, "ConvTranspose", "Add"):
            continue
        behind = [use.node for dq in index.uses(node.output[0]) for use in index.uses(dq.node.output[0])]
        blocked = sorted({reader.op_type for reader in behind} & ABSORBED)
        if blocked:
            yield Problem(node.name, f"Q/DQ stands between {layer.op_type} and {', '.join(blocked)}: no fusion.")


def _missing_dequantizers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in index.graph.node:
        if node.op_type != QUANTIZE:
            continue
        readers = [use.node.op_type for use in index.uses(node.output[0])]
        readers += ["the graph output"] if node.output[0] in index.outputs else []
        others = sorted(set(readers) - {DEQUANTIZE})
        if others or not readers:
            yield Problem(node.name, f"QuantizeLinear is read by {', '.join(others) or 'nothing'}, expected a DQ.")


def _bad_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for node in _quantizers(index):
        step = index.constant(node.input[1])
        if step is None:
            yield Problem(node.name, "the scale is computed, expected a constant.")
        elif not (np.isfinite(step) & (step > 0)).all():
            worst = step.reshape(-1)[np.argmin(np.isfinite(step.reshape(-1)) & (step.reshape(-1) > 0))]
            yield Problem(node.name, f"a scale is {worst}, expected positive and finite.")


def _opset(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    if opset_of(model) not in OPSETS:
        yield Problem("", f"opset is {opset_of(model)}, expected {OPSETS[0]} to {OPSETS[-1]}.")


def _static_batch(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in index.inputs and (not dims or dims[0].HasField("dim_value")):
            got = dims[0].dim_value if dims else "missing"
            yield Problem("", f"the batch axis of input {value.name} is {got}, expected a dynamic one.")


def _float_layers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    if not any(True for _ in _quantizers(index)):
        return  # a float graph is meant to be float
    for node in index.graph.node:
        if node.op_type in LAYERS and not all(index.producer(name, DEQUANTIZE) for name in node.input[:2]):
            yield Problem(node.name, f"{node.op_type} has a float operand and runs in float.")


def _hard_swish(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    if not any(True for _ in _quantizers(index)):
        return
    for node in index.graph.node:
        sigmoid = node.op_type == "HardSigmoid" and any(u.node.op_type == "Mul" for u in index.uses(node.output[0]))
        if node.op_type == "HardSwish" or sigmoid:
            yield Problem(node.name, "hard-swish stays float between DQ and Q; such graphs were never faster in int8.")


_PLACE = "Quantize with `compress`'s calibrate step, which places Q/DQ in pairs."
_SYMMETRIC = "Calibrate symmetrically: int8, zero point 0."
RULES: tuple[Rule, ...] = (
    Rule("nonzero-zero-point", "error", TENSORRT, _nonzero_zero_points, _SYMMETRIC),
    Rule("unsigned-codes", "error", TENSORRT, _unsigned_codes, "Build from the signed file (model.onnx)."),
    Rule("int32-bias", "error", TENSORRT, _int32_biases, "Keep biases float."),
    Rule("quantized-bias", "error", TENSORRT, _quantized_biases, "Keep biases float."),
    Rule("per-channel-activation", "error", BOTH, _per_channel_activations, "Give the activation one scale."),
    Rule("int8-conv-transpose", "error", TENSORRT, _transposed_convs, "Leave ConvTranspose in float."),
    Rule("missing-dq", "error", BOTH, _missing_dequantizers, _PLACE),
    Rule("bad-scale", "error", BOTH, _bad_scales, "Calibrate again, on real samples."),
    Rule("opset", "error", BOTH, _opset, "Export with opset 20."),
    Rule("static-batch", "error", BOTH, _static_batch, "Export with a dynamic batch axis."),
    Rule("q-before-activation", "warning", BOTH, _late_activations, "Move Q behind the activation."),
    Rule("scale-shape", "warning", ONNXRUNTIME, _shaped_scales, "Store activation scales as 0-d tensors."),
    Rule("signed-activation", "warning", ONNXRUNTIME, _signed_activations, "Run the unsigned file (model.ort.onnx)."),
    Rule("hard-swish", "warning", ONNXRUNTIME, _hard_swish, "Prefer ReLU or ReLU6 in models for CPUs."),
    Rule("float-layer", "warning", BOTH, _float_layers, _PLACE),
)
