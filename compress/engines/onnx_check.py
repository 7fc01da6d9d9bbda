"""What is checked in a graph before a TensorRT parser sees it, because the parser would say it badly or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, checker, numpy_helper

from compress.engines.rtx_program import KIND_OF_ONNX, Kind
from compress.errors import ModelError

_MAX_LISTED = 10
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_ZERO_POINT = 2


def model_from_bytes(data: bytes) -> ModelProto:
    """Decode and check a model whose tensors are all inside the file.

    Raises:
        ModelError: no ONNX, empty, invalid, with tensors in other files, or with two nodes of one name.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ModelError("The file is no ONNX model: it does not decode", hint="export it again") from error
    # Some garbage decodes to a model without nodes, which a TensorRT parser accepts without a word.
    if not model.graph.node:
        raise ModelError("The ONNX model has no nodes", hint="export it again")
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ModelError(
            f"{len(outside)} tensors lie outside the ONNX file: {_listed(outside)}",
            hint="save the model with its tensors inside the file",
        )
    twice = [name for name, count in Counter(map(node_name, _nodes(model.graph))).items() if count > 1]
    if twice:
        raise ModelError(
            f"{len(twice)} node names are used more than once, so the engine's layers could not be told apart: "
            f"{_listed(twice)}",
            hint="export the model again",
        )
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ModelError(f"The ONNX model is invalid: {str(error).strip()}", hint="export it again") from error
    return model


def check_quantization(model: ModelProto) -> None:
    """Refuse Q/DQ that TensorRT reads as something else, or refuses without saying why.

    uint8 builds with only a warning and saturates the codes 128 to 255.

    Raises:
        ModelError: lists every node with a uint8 or non-zero zero point, or with int32 codes.
    """
    tensors = dict(_tensors(model.graph))
    problems: list[str] = []
    for node in _nodes(model.graph):
        if node.op_type in _QDQ:
            problem = _qdq_problem(node, tensors)
            if problem:
                problems.append(f"{node_name(node)} ({node.op_type}): {problem}")
    if problems:
        raise ModelError(
            f"TensorRT takes signed symmetric int8 Q/DQ only; {len(problems)} nodes differ: {_listed(problems)}",
            hint="build from the signed file that `calibrate` writes (model.onnx, not model.ort.onnx)",
        )


def compute_nodes(model: ModelProto) -> dict[str, Kind]:
    """Name -> kind of the graph's convolutions and matrix products."""
    return {node_name(node): KIND_OF_ONNX[node.op_type] for node in _nodes(model.graph) if node.op_type in KIND_OF_ONNX}


def node_name(node: NodeProto) -> str:
    """The node's name, or the one that TensorRT's parser gives to a nameless node."""
    return node.name or f"node_of_{node.output[0] if node.output else ''}"


def axis_names(model: ModelProto) -> dict[str, list[str]]:
    """Tensor name -> names of its axes, for inputs and outputs; an axis of fixed size has an empty name."""
    values = [*model.graph.input, *model.graph.output]
    return {value.name: [axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in values}


def _qdq_problem(node: NodeProto, tensors: dict[str, TensorProto]) -> str:
    codes = tensors.get(node.input[0])
    if codes is not None and codes.data_type == TensorProto.INT32:
        return "int32 codes, as of a quantized bias; biases stay float"
    zero_point = tensors.get(node.input[_ZERO_POINT]) if len(node.input) > _ZERO_POINT else None
    if zero_point is not None:
        if zero_point.data_type == TensorProto.UINT8:
            return "uint8"
        if numpy_helper.to_array(zero_point).astype("float32").any():
            return "zero point is not 0"
        return ""
    if codes is not None:
        return "uint8" if codes.data_type == TensorProto.UINT8 else ""
    if node.op_type == "QuantizeLinear" and len(node.input) <= _ZERO_POINT:
        output = next(
            (attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), TensorProto.UNDEFINED
        )
        return "uint8" if output in (TensorProto.UNDEFINED, TensorProto.UINT8) else ""
    return ""


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in _nodes(graph):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t


def _listed(items: list[str]) -> str:
    rest = len(items) - _MAX_LISTED
    return "; ".join(items[:_MAX_LISTED]) + (f"; and {rest} more" if rest > 0 else "")
