"""Models from elsewhere: made fit for `quantize_onnx`, and why some of their layers stay float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx
from onnx import TensorProto, version_converter

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, IR_VERSION, canonicalize, strip_metadata
from compress.onnx_graph.findings import LAYERS
from compress.onnx_graph.graph import GraphIndex, attributes, opset_of
from compress.onnx_graph.lint import lint_foreign
from compress.onnx_graph.lint_files import inlined
from compress.onnx_graph.simplify import simplify

OLDEST_OPSET = 17  # below, Q/DQ graphs have not been built; before 13 there is no scale for each channel
ASKED_FOR = "asked for"
OPSET = 20  # what older files are converted to
_OTHER_FLOATS: dict[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
# What no preparation cures; said before any of it starts.
_FATAL = frozenset({"control-flow", "custom-operator", "sparse-weight", "integer-operator"})


@dataclass(frozen=True)
class Layer:
    """One Conv, Gemm, MatMul or ConvTranspose of a quantized graph; `why` is empty where it is int8."""

    node: str
    operator: str
    why: str


def prepare_foreign(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Bring a model from anywhere into the form that `quantize_onnx` takes.

    Local functions are inlined; an old opset is converted; where nodes have no names or share
    one, the whole graph gets canonical names. Graph inputs and outputs keep theirs in every case.

    Args:
        model: that onnx.checker accepts; it is left alone.

    Returns:
        The simplified model, and sentences about what was changed.

    Raises:
        ModelError: control flow, operators or tensors that cannot be quantized, weights that are not float32, or an
            opset that cannot be converted.
    """
    fatal = [finding for finding in lint_foreign(model, "tensorrt") if finding.rule in _FATAL]
    if fatal:
        named = [f"{found.rule} at {found.node or 'graph'}: {found.message}" for found in fatal]
        raise ModelError(
            f"The model cannot be quantized: {'; '.join(named)}",
            hint=" ".join(dict.fromkeys(finding.cure for finding in fatal)),
        )
    _require_float32(model)
    notes: list[str] = []
    result = strip_metadata(inlined(model))  # it holds paths of the machine that wrote the file
    if model.functions:
        notes.append(f"{len(model.functions)} local functions were inlined")
    result.ir_version = max(result.ir_version, IR_VERSION)  # older ones want every weight among the graph's inputs
    if opset_of(result) < OLDEST_OPSET:
        notes.append(f"opset {opset_of(result)} was converted to {OPSET}")
        result = _converted(result)
    result = _simplified(result)
    names = [node.name for node in result.graph.node]
    if not all(names) or len(set(names)) < len(names):
        reason = "nodes without a name" if not all(names) else "nodes that share a name"
        notes.append(f"the file has {reason}: all nodes got canonical ones, such as conv_0")
        result = canonicalize(result)
    return result, notes


def _require_float32(model: onnx.ModelProto) -> None:
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input if value.name not in stored}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    stored |= {node.output[0]: a.t.data_type for node in constants for a in node.attribute if a.HasField("t")}
    bad = {
        name: _OTHER_FLOATS[stored[name]]
        for node in model.graph.node
        if node.op_type in (*LAYERS, "ConvTranspose")
        for name in node.input
        if stored.get(name) in _OTHER_FLOATS
    }
    bad |= {v.name: _OTHER_FLOATS[stored[v.name]] for v in model.graph.input if stored[v.name] in _OTHER_FLOATS}
    if bad:
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(bad.items())[:5])
        raise ModelError(
            f"{len(bad)} inputs or weights are not float32: {listed}.",
            hint="Bring the float32 model; int8 is made from full precision.",
        )


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"Opset {opset_of(model)} cannot be converted to {OPSET}: {error}", hint=f"Export with opset {OPSET}."
        ) from error


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return simplify(model)
    except ModelError:
        raise
    except Exception as error:  # onnx's reference evaluator, which folds constants, has no common class of errors
        raise ModelError(
            f"The constants of the graph cannot be folded: {type(error).__name__}: {error}",
            hint="Simplify the model with the tool that exported it, then try again.",
        ) from error


def layers_of(model: onnx.ModelProto, float_layers: Sequence[str] = ()) -> list[Layer]:
    """Every layer of a signed graph, and why those that are float are.

    Args:
        model: signed Q/DQ graph.
        float_layers: names or patterns that the user left in float.
    """
    index = GraphIndex(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in (*LAYERS, "ConvTranspose"):
            continue
        operands = [index.producer(name, DEQUANTIZE) is not None for name in node.input[:2]]
        why = "" if all(operands) else _why_float(node, index, float_layers)
        found.append(Layer(node.name or node.output[0], node.op_type, why))
    return found


def _why_float(node: onnx.NodeProto, index: GraphIndex, float_layers: Sequence[str]) -> str:
    options = attributes(node)
    if any(fnmatchcase(node.name, pattern) for pattern in float_layers):
        return ASKED_FOR
    if node.op_type == "ConvTranspose":
        return "TensorRT computes int8 ConvTranspose in float"
    stored = [name in index.constants for name in node.input[:2]]
    if node.op_type == "MatMul" and stored[0]:
        return "its weight is the left operand"
    if node.op_type == "MatMul" and stored[1]:
        return f"its weight has {index.required(node.input[1], 'weight').ndim} axes, expected 2"
    if node.op_type == "Gemm" and stored[1]:
        given = [f"{name} {options[name]:g}" for name in ("transA", "alpha", "beta") if name in options]
        return f"integer kernels take no factors: {', '.join(given)}"
    return "its weight is computed in the graph"
