"""Which tensors of an ONNX graph are never negative, and which unsigned codes they need, from their operators."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from compress.onnx_graph.graph import GraphIndex

ALWAYS_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp"})
KEEPS_SIGN = frozenset(  # of their first input
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool Reshape Flatten Transpose Squeeze Unsqueeze Slice "
    "Identity QuantizeLinear DequantizeLinear".split()
)
SIGN_OF_ALL_INPUTS = frozenset({"Concat", "Add", "Mul", "Max"})


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
            answer = known.get(node.input[0], False)
        elif node.op_type in SIGN_OF_ALL_INPUTS:
            answer = all(known.get(name, False) for name in node.input)
        else:
            answer = False
        known.update(dict.fromkeys(node.output, answer))
    return lambda name: known.get(name, False)


def constant_bound(node: onnx.NodeProto, position: int, index: GraphIndex) -> float | None:
    """The constant at an input of a Clip; None where there is none."""
    array = index.constant(node.input[position]) if len(node.input) > position and node.input[position] else None
    return None if array is None else float(array)


def half_range_oracle(index: GraphIndex) -> Callable[[str], bool]:
    """A function that tells whether a float tensor's unsigned codes stay within 127 over its calibrated range.

    True for tensors that are never negative, except a Clip with an upper bound, which gets all 256 codes.
    """
    non_negative = sign_oracle(index)

    def within(name: str) -> bool:
        clip = index.producer(name, "Clip")
        return non_negative(name) and (clip is None or constant_bound(clip, 2, index) is None)

    return within
