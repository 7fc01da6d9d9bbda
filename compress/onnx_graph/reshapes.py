"""Reshapes that cost a step each without moving anything: merged, and moved where integer kernels meet each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    attributes,
    names_of,
    rename_inputs,
    set_nodes,
    tensor_from,
    tidy,
    unique_name,
)


def reshape_from_flatten(model: onnx.ModelProto) -> None:
    """Write Flatten as the Reshape that it is, in place: ONNX Runtime moves a Q past a Reshape, not past a Flatten."""
    taken = names_of(model)
    for node in model.graph.node:
        if node.op_type == "Flatten" and attributes(node).get("axis", 1) == 1:
            shape = unique_name(f"{node.output[0]}.shape", taken)
            model.graph.initializer.append(tensor_from(np.array([0, -1], np.int64), shape))
            node.op_type = "Reshape"
            node.input.append(shape)
            del node.attribute[:]


def merge_reshapes(model: onnx.ModelProto, matrices: Mapping[str, int]) -> None:
    """Let a Reshape that only another Reshape reads go, also where Q and DQ stand between them, in place.

    A pair between the two goes with the first when a pair of the same scale stands behind the second: rounding to the
    same codes twice is rounding once.

    Args:
        model: Q/DQ graph in the order of `tidy`.
        matrices: tensors of two axes -> size of their last axis; a Reshape to just that goes too.
    """
    index, taken = GraphIndex(model), names_of(model)
    renames: dict[str, str] = {}
    for node in model.graph.node:
        sizes = index.constant(node.input[1]) if node.op_type == "Reshape" else None
        first = _reshape_before(node, index)
        if sizes is None or first is None or 0 in sizes[1:]:
            continue
        wanted = [-1, *sizes.tolist()[1:]] if sizes[:1] == 0 else sizes.tolist()
        if wanted.count(-1) > 1:
            continue
        if wanted != sizes.tolist():  # the 0 meant an axis of what is between them
            name = unique_name(f"{node.output[0]}.merged_shape", taken)
            model.graph.initializer.append(tensor_from(np.array(wanted, np.int64), name))
            node.input[1] = name
        node.input[0] = first.input[0]
        if wanted == [-1, matrices.get(first.input[0])] and node.output[0] not in index.outputs:
            renames[node.output[0]] = first.input[0]
    rename_inputs(model.graph.node, renames)
    set_nodes(model, [node for node in model.graph.node if node.output[0] not in renames])
    tidy(model)


def _reshape_before(node: onnx.NodeProto, index: GraphIndex) -> onnx.NodeProto | None:
    """The Reshape whose result `node` alone reads, at once or through a pair that `node` makes superfluous."""
    if node.op_type != "Reshape":
        return None
    if (direct := index.producer(node.input[0], "Reshape")) is not None:
        return direct if index.only_reader(node.input[0]) is not None else None
    dequantize = index.producer(node.input[0], DEQUANTIZE)
    quantize = index.producer(dequantize.input[0], QUANTIZE) if dequantize is not None else None
    behind = index.only_reader(node.output[0])
    if dequantize is None or quantize is None or behind is None or behind.op_type != QUANTIZE:
        return None
    between = (quantize.input[0], quantize.output[0], dequantize.output[0])
    same = list(behind.input[1:]) == list(quantize.input[1:]) == list(dequantize.input[1:])
    if not same or any(index.only_reader(name) is None for name in between):
        return None
    return index.producer(quantize.input[0], "Reshape")
