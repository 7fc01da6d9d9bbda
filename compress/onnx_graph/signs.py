"""Which tensors of an ONNX graph are never negative, and which unsigned codes they need, from their operators."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from compress.onnx_graph.graph import GraphIndex, attributes

ALWAYS_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp"})
KEEPS_SIGN = frozenset(  # of their first input
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax Reshape Flatten Transpose Squeeze "
    "Unsqueeze Slice Gather Expand Resize Identity QuantizeLinear DequantizeLinear".split()
)
SIGN_OF_ALL_INPUTS = frozenset({"Concat", "Add", "Mul", "Max"})
MOVES_CODES = frozenset({"MaxPool", "Resize", "QuantizeLinear", "DequantizeLinear"})  # of their first input


def sign_oracle(index: GraphIndex) -> Callable[[str], bool]:
    """A function that tells whether a tensor is never negative, from the operators that make it."""
    known: dict[str, bool] = {}
    for name, tensor in index.constants.items():
        array = index.constant(name)
        known[name] = (
            tensor.dims[:] != [0] and array is not None and array.dtype.kind in "fiu" and bool((array >= 0).all())
        )
    for node in index.graph.node:  # in topological order, so that inputs are known
        if node.op_type in ALWAYS_NON_NEGATIVE:
            answer = True
        elif node.op_type == "Clip":
            low = constant_bound(node, 1, index)
            answer = (low is not None and low >= 0) or known.get(node.input[0], False)
        elif node.op_type in KEEPS_SIGN:
            answer = known.get(node.input[0], False) and not _overshoots(node)
        elif node.op_type in SIGN_OF_ALL_INPUTS:
            answer = all(known.get(name, False) for name in node.input)
        else:
            answer = False
        known.update(dict.fromkeys(node.output, answer))
    return lambda name: known.get(name, False)


def _overshoots(node: onnx.NodeProto) -> bool:
    return node.op_type == "Resize" and attributes(node).get("mode", b"nearest") == b"cubic"


def constant_bound(node: onnx.NodeProto, position: int, index: GraphIndex) -> float | None:
    """The constant at an input of a Clip; None where there is none."""
    array = index.constant(node.input[position]) if len(node.input) > position and node.input[position] else None
    return None if array is None else float(array)


def half_range_oracle(index: GraphIndex) -> Callable[[str], bool]:
    """A function that tells whether a float tensor's unsigned codes stay within 127 over its calibrated range.

    True for tensors that are never negative, except those that end at the upper bound of a Clip, which get all 256
    codes: its output, and what a MaxPool, Resize or Concat moves on from there.
    """
    non_negative = sign_oracle(index)
    bounded: set[str] = set()
    for node in index.graph.node:
        if (
            (node.op_type == "Clip" and constant_bound(node, 2, index) is not None)
            or (node.op_type in MOVES_CODES and node.input[0] in bounded)
            or (node.op_type == "Concat" and bounded.issuperset(node.input))
        ):
            bounded.update(node.output)
    return lambda name: non_negative(name) and name not in bounded
