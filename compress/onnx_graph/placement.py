"""Where quantize/dequantize pairs go.

The rule is the same for graphs calibrated after training and for graphs trained with fake-quant:

- the input and the weight of every Conv, Gemm and MatMul, and both operands of a MatMul of two activations (attention);
- both inputs of residual adds, except where a LayerNormalization reads the sum: it computes in float, so the sum is
  needed in float, and codes for it would only cost time and the accuracy of a stream that grows from block to block;
- the input of average pools, and the patches that a Conv made where positions are added to them;
- the inputs of Concat, MaxPool and Resize, which only move codes about, where everything that reads them is quantized:
  their inputs and their output share one scale.

Weights become int8 initializers behind a DequantizeLinear with one scale per output channel, or one for all; biases
stay float; every activation has one scale, stored as a 0-d tensor because ONNX Runtime's integer kernels refuse
shape [1]. There is no pair between a layer and the activation behind it. ConvTranspose, LayerNormalization, Softmax
and Gelu stay float, and so does a BatchNormalization that follows no layer to fold it into: in a network that
normalises before its convolutions it reads the float sum, next to the pair that goes to the next sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import GraphIndex, Shape, attributes, shapes_of

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
# Quantizing before or behind these is the same, so that they can work on codes.
CARRIERS = frozenset({"Concat", "MaxPool", "Resize"})
LAYOUT = frozenset("Reshape Flatten Transpose Squeeze Unsqueeze".split())
BETWEEN_CONV_AND_SUM = LAYOUT | {QUANTIZE, DEQUANTIZE, "Relu", "Clip"}


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


def placements(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> list[Spot]:
    """Every node input that the placement rule quantizes, in the order of nodes, those already quantized included.

    Args:
        model: float graph, or a Q/DQ graph, whole or in part.
        float_layers: names of nodes whose inputs stay float; others that read the same tensors are quantized.

    Raises:
        ModelError: control flow, or shapes that contradict each other.
    """
    return _place(model, float_layers)[0]


def shared_scales(model: onnx.ModelProto, float_layers: Collection[str] = ()) -> list[tuple[str, ...]]:
    """Groups of activations that must have one scale, because a Concat, MaxPool or Resize moves codes between them.

    Args:
        model: see `placements`.
        float_layers: see `placements`.

    Returns:
        Names of float tensors, in the order of nodes; no tensor is in two groups.

    Raises:
        ModelError: control flow, or shapes that contradict each other.
    """
    return _place(model, float_layers)[1].groups()


def float_notes(model: onnx.ModelProto) -> list[str]:
    """Sentences about layers that the rule leaves in float although they carry weights, one per kind of layer."""
    names = [node.name or node.output[0] for node in model.graph.node if node.op_type == "ConvTranspose"]
    if not names:
        return []
    return [f"{', '.join(names)}: ConvTranspose stays float, TensorRT builds it from int8 but computes in float"]


class _Groups:
    """Sets of tensors that share a scale, merged as carriers are found."""

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.members: dict[str, list[str]] = {}  # every member -> the one list of its group

    def merge(self, tensors: list[str]) -> bool:
        """Merge the groups of `tensors`; refuse, and change nothing, where trained scales differ."""
        merged: dict[str, None] = {}
        for tensor in tensors:
            merged |= dict.fromkeys(self.members.get(tensor, [tensor]))
        if len({step for tensor in merged for step in self._steps(tensor)}) > 1:
            return False
        group = list(merged)
        self.members |= dict.fromkeys(group, group)
        return True

    def _steps(self, tensor: str) -> Iterator[float]:
        """Steps of the pairs that are on a tensor already."""
        for use in self.index.uses(tensor):
            step = self.index.constant(use.node.input[1]) if use.node.op_type == QUANTIZE else None
            if step is not None and step.size == 1:
                yield float(step.reshape(-1)[0])

    def groups(self) -> list[tuple[str, ...]]:
        order = {name: number for number, name in enumerate([*self.index.inputs, *self.index.producers])}
        unique = {id(group): sorted(group, key=lambda name: order[name]) for group in self.members.values()}
        return sorted((tuple(group) for group in unique.values()), key=lambda group: order[group[0]])


def _place(model: onnx.ModelProto, float_layers: Collection[str]) -> tuple[list[Spot], _Groups]:
    index, shapes, nodes = GraphIndex(model), shapes_of(model), list(model.graph.node)
    by_node: dict[int, list[Spot]] = {}
    for number, node in enumerate(nodes):
        if node.name not in float_layers:
            inputs = _quantized_inputs(node, index, shapes)
            by_node[number] = [_spot(node, position, axis, index) for position, axis in inputs]
    places = {(spot.node.output[0], spot.position) for spots in by_node.values() for spot in spots}
    groups = _Groups(index)
    for number, node in reversed(list(enumerate(nodes))):  # a carrier in front of another one comes later
        if number in by_node and _is_carrier(node, index, places):
            spots = [_spot(node, position, None, index) for position in _carried(node)]
            if groups.merge([*(spot.tensor for spot in spots), node.output[0]]):
                by_node[number] = spots
                places |= {(node.output[0], spot.position) for spot in spots}
    return [spot for number in sorted(by_node) for spot in by_node[number]], groups


def _carried(node: onnx.NodeProto) -> range:
    return range(len(node.input)) if node.op_type == "Concat" else range(1)


def _is_carrier(node: onnx.NodeProto, index: GraphIndex, places: Collection[tuple[str, int]]) -> bool:
    """Whether a node can work on codes: activations come in, and nothing reads its output in float."""
    if node.op_type not in CARRIERS or node.output[0] in index.outputs:
        return False
    if node.op_type == "Resize" and attributes(node).get("mode", b"nearest") == b"cubic":
        return False  # overshoots its inputs
    if node.op_type == "MaxPool" and len(node.output) > 1:
        return False  # indices too
    if any(_is_weight(node.input[position], index) for position in _carried(node)):
        return False
    uses = index.uses(node.output[0])
    return bool(uses) and all(
        use.node.op_type == QUANTIZE or (use.node.output[0], use.position) in places for use in uses
    )


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
    elif node.op_type == "Add" and (position := _patches_of_a_sum(node, index)) is not None:
        yield (position, None)
    elif node.op_type in POOLS:
        yield (0, None)


def _patches_of_a_sum(node: onnx.NodeProto, index: GraphIndex) -> int | None:
    """Position of the patches that an Add puts a table of positions on, if a Conv made them; None for another Add.

    ONNX Runtime's integer convolution writes codes: without a Q in front of the sum it would run in float.
    """
    constant = [_is_weight(name, index) for name in node.input]
    if sum(constant) != 1:
        return None
    position, moved = constant.index(False), False
    source = index.producers.get(node.input[position])
    while source is not None and source.op_type in BETWEEN_CONV_AND_SUM:
        moved |= source.op_type in LAYOUT
        source = index.producers.get(source.input[0])
    return position if moved and source is not None and source.op_type == "Conv" else None


def is_residual_add(node: onnx.NodeProto, index: GraphIndex, shapes: Mapping[str, Shape]) -> bool:
    """Whether an Add joins two computed tensors of one shape in integers, and is not attention scores + mask.

    A mask's huge negative values would give a scale that wipes the scores out; Softmax behind the Add gives it away.
    Behind a LayerNormalization the sum is needed in float.
    """
    left, right = (shapes.get(name) for name in node.input)
    if any(_is_weight(name, index) for name in node.input) or left is None or left != right or None in left:
        return False
    return not any(use.node.op_type in ("Softmax", "LayerNormalization") for use in index.uses(node.output[0]))


def quantizable_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the activations that the placement rule gives a scale, in the order of nodes, each once.

    Tensors that carry a scale already are listed too; subtract `scales_of(model)` for those that still need one.
    """
    return list(dict.fromkeys(spot.tensor for spot in placements(model) if spot.axis is None))
