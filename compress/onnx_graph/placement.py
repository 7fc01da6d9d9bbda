"""Where quantize/dequantize pairs go.

The rule (the same for graphs calibrated after training and for graphs trained with fake-quant): the input and the
weight of every Conv, Gemm and MatMul, both inputs of residual adds, and the input of average pools. Weights become
int8 initializers behind a DequantizeLinear with one scale per output channel; biases stay float; every activation
has one scale, stored as a 0-d tensor because ONNX Runtime's integer kernels refuse shape [1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import GraphIndex, Shape, attributes, shapes_of

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True)
class Spot:
    """One node input that is quantized.

    `tensor` is the float tensor, or the initializer of a weight, looked up through a Q/DQ pair that is already there
    (`quantized`). `axis` is a weight's output-channel axis; None says activation.
    """

    node: onnx.NodeProto
    position: int
    tensor: str
    axis: int | None
    quantized: bool


def placements(model: onnx.ModelProto) -> list[Spot]:
    """Every node input that the placement rule quantizes, in the order of nodes, those already quantized included.

    Raises:
        ModelError: control flow, or shapes that contradict each other.
    """
    index, shapes = GraphIndex(model), shapes_of(model)
    spots = []
    for node in model.graph.node:
        for position, axis in _quantized_inputs(node, index, shapes):
            spots.append(_spot(node, position, axis, index))
    return spots


def _spot(node: onnx.NodeProto, position: int, axis: int | None, index: GraphIndex) -> Spot:
    name = node.input[position]
    dequantize = index.producer(name, DEQUANTIZE)
    if dequantize is None:
        return Spot(node, position, name, axis, quantized=False)
    if dequantize.input[0] in index.constants:
        return Spot(node, position, dequantize.input[0], axis, quantized=True)
    quantize = index.producer(dequantize.input[0], QUANTIZE)
    return Spot(node, position, name if quantize is None else quantize.input[0], axis, quantized=True)


def _is_weight(name: str, index: GraphIndex) -> bool:
    dequantize = index.producer(name, DEQUANTIZE)
    return name in index.constants or (dequantize is not None and dequantize.input[0] in index.constants)


def _quantized_inputs(
    node: onnx.NodeProto, index: GraphIndex, shapes: Mapping[str, Shape]
) -> Iterator[tuple[int, int | None]]:
    """Yield (input position, output-channel axis or None for an activation)."""
    options = attributes(node)
    if node.op_type == "Conv" and _is_weight(node.input[1], index):
        yield from ((0, None), (1, 0))
    elif node.op_type == "Gemm" and _is_weight(node.input[1], index):
        # other factors have no integer kernel
        if not options.get("transA", 0) and options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0:
            yield from ((0, None), (1, 0 if options.get("transB", 0) else 1))
    elif node.op_type == "MatMul":
        weights = [_is_weight(name, index) for name in node.input]
        if not any(weights):
            yield from ((0, None), (1, None))
        elif weights == [False, True] and len(shapes.get(node.input[1], ())) == 2:
            yield from ((0, None), (1, 1))
    elif node.op_type == "Add" and is_residual_add(node, index, shapes):
        yield from ((0, None), (1, None))
    elif node.op_type in POOLS:
        yield (0, None)


def is_residual_add(node: onnx.NodeProto, index: GraphIndex, shapes: Mapping[str, Shape]) -> bool:
    """Whether an Add joins two computed tensors of one shape, and is not attention scores + mask.

    A mask's huge negative values would give a scale that wipes the scores out; Softmax behind the Add gives it away.
    """
    left, right = (shapes.get(name) for name in node.input)
    if any(_is_weight(name, index) for name in node.input) or left is None or left != right or None in left:
        return False
    return not any(use.node.op_type == "Softmax" for use in index.uses(node.output[0]))


def quantizable_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the activations that the placement rule gives a scale, in the order of nodes, each once.

    Tensors that carry a scale already are listed too; subtract `scales_of(model)` for those that still need one.
    """
    return list(dict.fromkeys(spot.tensor for spot in placements(model) if spot.axis is None))
