"""Reading and editing one ONNX graph: who makes a tensor, who reads it, constants, order, pruning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from compress.errors import ModelError

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Use:
    """One input of one node: `node.input[position]`."""

    node: onnx.NodeProto
    position: int


class GraphIndex:
    """A snapshot of who makes and who reads each tensor; build a new one after an edit.

    Control flow is refused, because its inner graphs read tensors that no node input names.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        refuse_control_flow(model)
        graph = model.graph
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self.producers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[Use]] = {}
        for node in graph.node:
            for name in node.output:
                if name:
                    self.producers[name] = node
            for position, name in enumerate(node.input):
                if name:
                    self.readers.setdefault(name, []).append(Use(node, position))

    def producer(self, name: str, op_type: str | None = None) -> onnx.NodeProto | None:
        """The node that makes `name`, if there is one (of that operator)."""
        node = self.producers.get(name)
        return node if node is not None and op_type in (None, node.op_type) else None

    def uses(self, name: str) -> list[Use]:
        """Every node input that reads `name`."""
        return self.readers.get(name, [])

    def constant(self, name: str) -> np.ndarray | None:
        """The value of the initializer `name`, 0-d arrays staying 0-d; None where it is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def required(self, name: str, what: str) -> np.ndarray:
        """The value of the initializer `name`; `ModelError` saying that `what` must be a constant otherwise."""
        array = self.constant(name)
        if array is None:
            raise ModelError(f"The {what} ({name}) is computed in the graph; expected a constant.")
        return array

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads `name`, when nothing else does and it is no graph output."""
        uses = self.uses(name)
        return uses[0].node if len(uses) == 1 and name not in self.outputs else None


def refuse_control_flow(model: onnx.ModelProto) -> None:
    """Raise `ModelError` when the graph has If, Loop or Scan bodies, sparse constants or local functions."""
    graph_types = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    found = {node.op_type for node in model.graph.node for a in node.attribute if a.type in graph_types}
    found |= {f"function {function.name}" for function in model.functions}
    found |= {"sparse initializer" for _ in model.graph.sparse_initializer}
    if found:
        raise ModelError(
            f"The graph uses {', '.join(sorted(found))}; expected plain operators only.",
            hint="Rewrite data-dependent branches of the model as tensor expressions, then export again.",
        )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set; 0 if the model imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def tensor_from(array: np.ndarray | np.generic, name: str) -> onnx.TensorProto:
    """An initializer that keeps 0-d arrays 0-d (`np.ascontiguousarray` would make them 1-d)."""
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy, so that edits leave the caller's model alone."""
    duplicate = onnx.ModelProto()
    duplicate.CopyFrom(model)
    return duplicate


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every tensor that inference knows; a string is a named dynamic axis, None an unknown one.

    Raises:
        ModelError: the operators contradict each other's shapes.
    """
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(f"Shape inference fails on the graph: {error}", hint="Export the model again.") from error
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer})
    return shapes


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or `wanted.1`, `wanted.2`... if taken; adds the result to `taken`."""
    name, suffix = wanted, 0
    while name in taken:
        suffix += 1
        name = f"{wanted}.{suffix}"
    taken.add(name)
    return name


def names_of(model: onnx.ModelProto) -> set[str]:
    """Every tensor name of the graph."""
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output) if name}
    return names | {value.name for value in (*graph.input, *graph.output, *graph.initializer)}


def rename_inputs(nodes: Iterable[onnx.NodeProto], renames: Mapping[str, str]) -> None:
    """Make every node read `renames[x]` where it read `x`; chains of renames are followed."""
    for node in nodes:
        for position, name in enumerate(node.input):
            while name in renames:
                name = renames[name]
            node.input[position] = name


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the graph's nodes."""
    kept = list(nodes)
    duplicates = []
    for node in kept:
        duplicate = onnx.NodeProto()
        duplicate.CopyFrom(node)
        duplicates.append(duplicate)
    del model.graph.node[:]
    model.graph.node.extend(duplicates)


def set_initializers(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Replace the graph's initializers."""
    kept = list(tensors)
    duplicates = []
    for tensor in kept:
        duplicate = onnx.TensorProto()
        duplicate.CopyFrom(tensor)
        duplicates.append(duplicate)
    del model.graph.initializer[:]
    model.graph.initializer.extend(duplicates)


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what no output needs and put the rest into the one order that the graph itself determines.

    Nodes are ordered depth first from the outputs, inputs in their order, so that two graphs that
    differ only in the order in which nodes were written (or in Q/DQ nodes) come out alike.
    Initializers follow their first use. Stored shapes are dropped: they are inferred again when needed.
    """
    index = GraphIndex(model)
    ordered = list(_depth_first(index))
    set_nodes(model, ordered)
    used = dict.fromkeys(name for node in ordered for name in node.input)
    used |= dict.fromkeys(name for name in index.outputs if name in index.constants)
    set_initializers(model, [index.constants[name] for name in used if name in index.constants])
    for value in [value for value in model.graph.input if value.name in index.constants]:
        model.graph.input.remove(value)
    del model.graph.value_info[:]
    return model


def _depth_first(index: GraphIndex) -> Iterator[onnx.NodeProto]:
    done: set[str] = set()
    stack = [(name, False) for name in reversed(index.outputs)]
    while stack:
        name, inputs_done = stack.pop()
        node = index.producers.get(name)
        if node is None or name in done:
            continue
        if inputs_done:
            done.update(output for output in node.output if output)
            yield node
            continue
        stack.append((name, True))
        stack.extend((source, False) for source in reversed(node.input) if source and source not in done)
