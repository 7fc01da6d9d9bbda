"""Lint rules about the file as a whole: operators, inner graphs, names, opset, axes, weights, leaked paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import defs, inliner

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.findings import Problem
from compress.onnx_graph.graph import GraphIndex, attributes, copy_model, opset_of, set_nodes, tensor_from
from compress.onnx_graph.loading import inner_graphs, nodes_of, non_finite

OPSETS = range(7, 27)  # what TensorRT-RTX has been seen to build, and ONNX Runtime promises
RECOMMENDED_OPSETS = range(19, 22)
STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
RUNTIME_DOMAINS = STANDARD_DOMAINS | {"ai.onnx.ml", "com.microsoft"}  # that ONNX Runtime brings operators for
INTEGER_OPERATORS = frozenset("QLinearConv QLinearMatMul ConvInteger MatMulInteger DynamicQuantizeLinear".split())
# Folders that hold somebody's files; scopes of modules in metadata look like paths too (/layer1/conv).
_LEAKED_PATH = re.compile(r"(?:/(?:home|root|Users|tmp|mnt|opt|srv|usr|var|work|workspace)/|\b[A-Za-z]:\\)[^\s\"']+")
_CONSTANT_ARRAYS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the bodies of local functions in place of their calls.

    Raises:
        ModelError: a function cannot be inlined.
    """
    if not model.functions:
        return copy_model(model)
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"The model's own functions cannot be inlined: {error}", hint="Export it without.") from error


def flattened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which rules find what they look for, whoever wrote the file.

    Local functions are inlined and Constant nodes become initializers, as do copies of constants by Identity. Inner
    graphs of control flow are left out; what they read becomes an input of their node. An operator of a domain outside
    the standard gets the domain in front of its name, so that no rule takes it for its namesake; quantizers of ONNX
    Runtime's domain keep theirs.

    Args:
        model: that onnx.checker accepts.
    """
    result = inlined(model)
    del result.functions[:]
    del result.graph.sparse_initializer[:]
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    outer = {name for node in result.graph.node for name in node.output} | set(constants)
    outer |= {value.name for value in result.graph.input}
    kept = []
    for node in result.graph.node:
        tensor = _constant(node, constants)
        if tensor is not None:
            result.graph.initializer.append(tensor)
            constants[tensor.name] = tensor
            continue
        _close(node, outer)
        runtimes = node.domain == "com.microsoft" and node.op_type in (QUANTIZE, DEQUANTIZE) and len(node.input) > 1
        if node.domain not in STANDARD_DOMAINS and not runtimes:
            node.op_type = f"{node.domain}::{node.op_type}"
        kept.append(node)
    set_nodes(result, kept)
    return result


def _constant(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """What a node that computes nothing gives, under the name of its output."""
    if node.domain not in STANDARD_DOMAINS or len(node.output) != 1:
        return None
    tensor = onnx.TensorProto()
    if node.op_type == "Identity" and node.input[0] in constants:
        tensor.CopyFrom(constants[node.input[0]])
    elif node.op_type == "Constant" and len(node.attribute) == 1:
        (attribute,) = node.attribute
        if attribute.name == "value":
            tensor.CopyFrom(attribute.t)
        elif attribute.name in _CONSTANT_ARRAYS:
            dtype = _CONSTANT_ARRAYS[attribute.name]
            tensor.CopyFrom(tensor_from(np.asarray(attributes(node)[attribute.name], dtype), ""))
        else:
            return None
    else:
        return None
    tensor.name = node.output[0]
    return tensor


def _close(node: onnx.NodeProto, outer: set[str]) -> None:
    """Take a node's inner graphs away, and make what they read from outside its inputs."""
    graphs = list(inner_graphs(node))
    if not graphs:
        return
    reads = {name for graph in graphs for inner in nodes_of(graph) for name in inner.input}
    reads |= {value.name for graph in graphs for value in graph.output}
    node.input.extend(sorted((reads & outer) - set(node.input)))
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    for attribute in [attribute for attribute in node.attribute if attribute.type in kinds]:
        node.attribute.remove(attribute)


def _every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from nodes_of(model.graph)
    for function in model.functions:
        yield from nodes_of(function)


def control_flow(model: onnx.ModelProto, index: GraphIndex | None) -> Iterator[Problem]:
    """Inner graphs, whose layers no other rule sees."""
    for node in model.graph.node:
        count = sum(1 for _ in inner_graphs(node))
        if count:
            yield Problem(node.name, f"{node.op_type} has {count} inner graph(s): neither checked nor quantized.")


def sparse_weights(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Sparse initializers, which no builder here takes."""
    for tensor in model.graph.sparse_initializer:
        yield Problem("", f"weight {tensor.values.name} is stored as a sparse tensor.")


def local_functions(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Functions of the file's own; they are inlined for the other rules."""
    for function in model.functions:
        yield Problem("", f"the file defines the function {function.name}.")


def _foreign(model: onnx.ModelProto, known: frozenset[str]) -> Iterator[Problem]:
    own = {(function.domain, function.name) for function in model.functions}
    for node in _every_node(model):
        if (node.domain, node.op_type) in own:
            continue
        if node.domain not in known:
            yield Problem(node.name, f"{node.domain}::{node.op_type} is a custom operator.")
        elif node.domain in STANDARD_DOMAINS and not defs.has(node.op_type):
            yield Problem(node.name, f"ONNX has no operator {node.op_type}.")


def custom_operators(model: onnx.ModelProto, index: GraphIndex | None) -> Iterator[Problem]:
    """Operators outside the ONNX standard, e.g. MatMulNBits."""
    yield from _foreign(model, STANDARD_DOMAINS)


def runtime_operators(model: onnx.ModelProto, index: GraphIndex | None) -> Iterator[Problem]:
    """Operators that ONNX Runtime runs only with a library of their own."""
    yield from _foreign(model, RUNTIME_DOMAINS)


def integer_operators(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Operators that compute in integers themselves: the form that ONNX Runtime makes of Q/DQ."""
    for node in index.graph.node:
        if node.op_type in INTEGER_OPERATORS:
            yield Problem(node.name, f"{node.op_type} computes in integers; expected Q/DQ around a float operator.")


def duplicate_names(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Node names that stand for several nodes."""
    names = Counter(node.name for node in model.graph.node if node.name)
    for name, count in names.items():
        if count > 1:
            yield Problem(name, f"{count} nodes have this name, so an engine's layers could not be told apart.")


def opset(model: onnx.ModelProto, index: GraphIndex | None) -> Iterator[Problem]:
    """Opsets that no runtime here has been seen to take."""
    yield from _opset_outside(model, OPSETS)


def rare_opset(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Opsets that parse, but are not what TensorRT is tested with."""
    if opset_of(model) in OPSETS:
        yield from _opset_outside(model, RECOMMENDED_OPSETS)


def _opset_outside(model: onnx.ModelProto, known: range) -> Iterator[Problem]:
    if opset_of(model) not in known:
        yield Problem("", f"opset is {opset_of(model)}, expected {known[0]} to {known[-1]}.")


def static_batch(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Inputs whose first axis has one size."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in index.inputs and (not dims or dims[0].HasField("dim_value")):
            got = dims[0].dim_value if dims else "missing"
            yield Problem("", f"the batch axis of input {value.name} is {got}, expected a dynamic one.")


def bad_weights(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Weights that are NaN or infinite."""
    for name, count, size in non_finite(model):
        yield Problem("", f"{count} of {size} values of weight {name} are NaN or infinite.")


def leaked_paths(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Paths of somebody's machine in documentation and metadata; they also make equal models differ in their bytes."""
    graph = model.graph
    values = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    parts = [model, graph, *model.functions, *_every_node(model), *values]
    found = [match[0] for part in parts for text in _texts(part) if (match := _LEAKED_PATH.search(text))]
    if found:
        yield Problem("", f"{len(found)} texts in the metadata hold paths of a machine, e.g. {found[0][:80]}.")


def _texts(part: object) -> Iterator[str]:
    yield getattr(part, "doc_string", "")
    for entry in getattr(part, "metadata_props", ()):
        yield entry.value
