"""One spelling for one graph: the same model gives the same bytes from any folder and any process."""

from __future__ import annotations

import onnx
from onnx import defs, helper

from compress.errors import ModelError
from compress.onnx_graph.graph import (
    GraphIndex,
    copy_model,
    names_of,
    opset_of,
    set_initializers,
    tensor_from,
    tidy,
    unique_name,
)

IR_VERSION = 10  # what opset 20 to 21 need; newer files would lock out older runtimes for nothing
GRAPH_NAME = "compress"
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
PARAMETER_NAMES = {  # readable names for what sits at a fixed input of an operator
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
}


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, producer, documentation and metadata: they carry stack traces and absolute paths."""
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version", "metadata_props"):
        model.ClearField(field)
    graph = model.graph
    parts = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
    return model


def canonical_bytes(model: onnx.ModelProto) -> bytes:
    """The file's bytes: no metadata, fields in a fixed order; names and nodes stay as they are."""
    return strip_metadata(copy_model(model)).SerializeToString(deterministic=True)


def canonicalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in canonical form: order, names, attributes and storage depend on the computation alone.

    Tensors are named after the operator that makes them (`conv_3`), parameters after the node that
    reads them (`conv_3.weight`), Q/DQ nodes after the tensor that they quantize
    (`relu_2.quantized`, `relu_2.scale`), so a float graph and its quantized twin agree on names.
    Graph inputs and outputs keep theirs. Canonicalizing twice changes nothing.

    Raises:
        ModelError: control flow, or an operator outside the ONNX standard.
    """
    result = tidy(strip_metadata(copy_model(model)))
    _refuse_foreign_domains(result)
    opset = opset_of(result)
    del result.opset_import[:]
    result.opset_import.extend([helper.make_opsetid("", opset)])
    result.ir_version = IR_VERSION
    result.graph.name = GRAPH_NAME
    for node in result.graph.node:
        _canonicalize_attributes(node, opset)
    _own_quantization_constants(result)
    _rename(result)
    index = GraphIndex(result)
    # through numpy, so that every initializer stores raw bytes whoever wrote the file
    arrays = [(name, index.constant(name)) for name in index.constants]
    set_initializers(result, [tensor_from(array, name) for name, array in arrays if array is not None])
    return tidy(result)


def _refuse_foreign_domains(model: onnx.ModelProto) -> None:
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise ModelError(
            f"The graph uses operators outside the ONNX standard: {', '.join(foreign)}.",
            hint="Replace the layers behind them by standard ones.",
        )


def _canonicalize_attributes(node: onnx.NodeProto, opset: int) -> None:
    schema = defs.get_schema(node.op_type, opset, "")
    kept = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        declared = schema.attributes.get(attribute.name)
        default = None if declared is None else declared.default_value
        if (
            default is not None
            and default.type == attribute.type
            and helper.get_attribute_value(default) == helper.get_attribute_value(attribute)
        ):
            continue
        duplicate = onnx.AttributeProto()
        duplicate.CopyFrom(attribute)
        kept.append(duplicate)
    del node.attribute[:]
    node.attribute.extend(kept)
    while node.input and not node.input[-1]:
        node.input.pop()
    node.ClearField("domain")


def _own_quantization_constants(model: onnx.ModelProto) -> None:
    """Give each Q its own scale and zero point, shared with its DQs: exporters share one zero point by all."""
    index, taken = GraphIndex(model), names_of(model)
    for node in model.graph.node:
        source = index.producer(node.input[0], QUANTIZE) if node.op_type == DEQUANTIZE else None
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        for position in range(1, len(node.input)):
            array = index.constant(node.input[position])
            if array is None:
                continue
            shared = (
                index.constant(source.input[position]) if source is not None and position < len(source.input) else None
            )
            if source is not None and shared is not None and shared.dtype == array.dtype and (shared == array).all():
                node.input[position] = source.input[position]  # the Q came first in the order of nodes
                continue
            name = unique_name(f"{node.output[0]}.{position}", taken)
            model.graph.initializer.append(tensor_from(array, name))
            index.constants[name] = model.graph.initializer[-1]
            node.input[position] = name


def _rename(model: onnx.ModelProto) -> None:
    index = GraphIndex(model)
    taken = {"", *index.inputs, *index.outputs}
    names = {name: name for name in (*index.inputs, *index.outputs)}
    node_names: set[str] = set()
    counters: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        kind = node.op_type.lower()
        number = counters.get(kind, 0)
        counters[kind] = number + 1
        node.name = unique_name(f"{kind}_{number}", node_names)
        for position, output in enumerate(node.output):
            if output and output not in names:
                names[output] = unique_name(f"{node.name}.{position}" if position else node.name, taken)
        _name_parameters(node, index, names, taken)
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            _name_quantization(node, index, names, taken, node_names)
    for position, node in enumerate(model.graph.node):
        rename_all(node, names)
        node.name = node.name or f"node_{position}"
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def rename_all(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename a node's inputs and outputs, each at most once."""
    for field in (node.input, node.output):
        for position, name in enumerate(field):
            field[position] = names.get(name, name)


def _name_parameters(node: onnx.NodeProto, index: GraphIndex, names: dict[str, str], taken: set[str]) -> None:
    for position, source in enumerate(node.input):
        weights = index.producer(source, DEQUANTIZE)
        if weights is not None and weights.input[0] in index.constants:
            source = weights.input[0]
        if source in index.constants and source not in names:
            part = PARAMETER_NAMES.get(node.op_type, {}).get(position, str(position))
            names[source] = unique_name(f"{node.name}.{part}", taken)


def _name_quantization(
    node: onnx.NodeProto, index: GraphIndex, names: dict[str, str], taken: set[str], node_names: set[str]
) -> None:
    source = index.producer(node.input[0], QUANTIZE) if node.op_type == DEQUANTIZE else None
    tensor = names[source.input[0] if source is not None else node.input[0]]
    suffix = "quantized" if node.op_type == QUANTIZE else "dequantized"
    node.name = unique_name(f"{tensor}.{suffix}", node_names)
    if node.output[0] not in names:
        names[node.output[0]] = unique_name(f"{tensor}.{suffix}", taken)
    for position, part in ((1, "scale"), (2, "zero_point")):
        constant = node.input[position] if position < len(node.input) else ""
        if constant in index.constants and constant not in names:
            names[constant] = unique_name(f"{tensor}.{part}", taken)
