"""A layer on tokens, (batch, tokens, channels) times a stored matrix plus a bias, as the Gemm that it is.

ONNX Runtime has one integer kernel for Gemm with a bias, and it writes codes at once where a Q follows. For a MatMul of
three axes it computes the product in integers, and then bias, activation and quantization one after another in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    Shape,
    names_of,
    set_nodes,
    shapes_of,
    tensor_from,
    tidy,
    unique_name,
)
from compress.onnx_graph.reshapes import merge_reshapes

POINTWISE = frozenset({"Relu", "Clip"})  # absorbed by a Q behind them, unless a Reshape stands between


@dataclass(frozen=True)
class _Product:
    """A MatMul by a stored weight, the Add of its bias if there is one, and the activation behind them."""

    node: onnx.NodeProto
    codes: str  # quantized activation
    parameters: tuple[str, ...]  # its scale and zero point
    bias: str
    tail: tuple[onnx.NodeProto, ...]  # pointwise operators behind, each the only reader of what is before
    last: onnx.NodeProto  # makes the result
    lead: tuple[int, ...]  # axes before the channels, -1 for the one that is not known

    def shape(self, channels: int) -> np.ndarray:
        return np.array([*self.lead, channels], np.int64)


def gemms_from_matmuls(model: onnx.ModelProto) -> dict[str, str]:
    """Turn every quantized MatMul by a stored weight into Reshape, Gemm and Reshape, in place.

    The Reshapes move nothing: the one in front works on codes, the one behind stands after a ReLU, so that the
    activation still meets its layer; between two such layers there is none. A bias that an Add puts on the product
    becomes the Gemm's.

    Args:
        model: Q/DQ graph. A MatMul stays as it is where more than one axis before the channels is dynamic, as no
            constant shape describes its result then.

    Returns:
        For the output of each new Q, the output of the Q that it repeats.
    """
    index = GraphIndex(model)
    if not any(node.op_type == "MatMul" for node in model.graph.node):
        return {}
    shapes, taken = shapes_of(model), names_of(model)
    views: dict[str, str] = {}  # codes -> the same values with two axes, dequantized
    made: dict[str, str] = {}
    matrices: dict[str, int] = {}
    dropped: set[str] = set()
    for node in list(model.graph.node):
        product = _product(node, index, shapes)
        if product is None:
            continue
        weight = shapes[node.input[1]]
        if product.codes not in views:
            view, real = _emit_view(model, product, int(weight[0] or 0), taken)
            views[product.codes], made[view] = real, product.codes
        matrices |= _emit_gemm(model, product, views[product.codes], int(weight[1] or 0), taken)
        dropped |= {one.output[0] for one in (node, *product.tail)}
    # a new Reshape makes what the last dropped node made
    set_nodes(model, [n for n in model.graph.node if n.output[0] not in dropped or n.op_type == "Reshape"])
    merge_reshapes(tidy(model), matrices)
    return made


def _product(node: onnx.NodeProto, index: GraphIndex, shapes: Mapping[str, Shape]) -> _Product | None:
    if node.op_type != "MatMul":
        return None
    activation, weight = (index.producer(name, DEQUANTIZE) for name in node.input)
    if activation is None or weight is None or weight.input[0] not in index.constants:
        return None
    shape = shapes.get(node.input[0], ())
    if len(shape) < 3 or len(shapes.get(node.input[1], ())) != 2:
        return None
    lead = tuple(size if isinstance(size, int) else -1 for size in shape[:-1])
    if lead.count(-1) > 1 or index.producer(activation.input[0], QUANTIZE) is None:
        return None
    last, bias, tail = node, "", []
    while (reader := index.only_reader(last.output[0])) is not None:
        addend = _bias(reader, last.output[0], index, shapes) if not bias and not tail else ""
        if addend:
            bias = addend
        elif reader.op_type not in POINTWISE or reader.input[0] != last.output[0]:
            break
        tail.append(reader)
        last = reader
        if not addend:
            break
    return _Product(node, activation.input[0], tuple(activation.input[1:]), bias, tuple(tail), last, lead)


def _bias(node: onnx.NodeProto, product: str, index: GraphIndex, shapes: Mapping[str, Shape]) -> str:
    """The constant of one number per channel that an Add puts on `product`; empty where there is none."""
    if node.op_type != "Add":
        return ""
    other = node.input[1] if node.input[0] == product else node.input[0]
    constant = index.constant(other)
    channels = shapes.get(product, (None,))[-1]
    return other if constant is not None and constant.dtype == np.float32 and constant.shape == (channels,) else ""


def _emit_view(model: onnx.ModelProto, product: _Product, channels: int, taken: set[str]) -> tuple[str, str]:
    """Add a Reshape with a pair behind it, so that it works on codes; returns the names of codes and real values."""
    stem = product.node.input[0]
    shape, flat, view, real = (
        unique_name(f"{stem}.{part}", taken) for part in ("flat_shape", "flat", "flat_quantized", "flat_dequantized")
    )
    model.graph.initializer.append(tensor_from(np.array([-1, channels], np.int64), shape))
    model.graph.node.append(helper.make_node("Reshape", [stem, shape], [flat], name=flat))
    model.graph.node.append(helper.make_node(QUANTIZE, [flat, *product.parameters], [view], name=view))
    model.graph.node.append(helper.make_node(DEQUANTIZE, [view, *product.parameters], [real], name=real))
    return view, real


def _emit_gemm(model: onnx.ModelProto, product: _Product, real: str, channels: int, taken: set[str]) -> dict[str, int]:
    """Add the Gemm, what stands behind it, and a Reshape; returns the matrix in front of that, and its channels."""
    node, result = product.node, product.last.output[0]
    flat = unique_name(f"{node.output[0]}.flat", taken)
    inputs = [real, node.input[1], *([product.bias] if product.bias else [])]
    model.graph.node.append(helper.make_node("Gemm", inputs, [flat], name=node.name))
    for one in product.tail:
        if one.op_type in POINTWISE:
            behind = unique_name(f"{one.output[0]}.flat", taken)
            model.graph.node.append(
                helper.make_node(one.op_type, [flat, *list(one.input)[1:]], [behind], name=f"{one.name}.flat")
            )
            flat = behind
    shape = unique_name(f"{result}.shape", taken)
    model.graph.initializer.append(tensor_from(product.shape(channels), shape))
    model.graph.node.append(helper.make_node("Reshape", [flat, shape], [result], name=unique_name(result, taken)))
    return {flat: channels}


def fold_score_scales(model: onnx.ModelProto) -> None:
    """Let the DQ of queries multiply by what attention scales its scores with, in place: one pass over them less.

    The codes stay; only what they stand for in the product is multiplied. A Mul by one stored positive number goes
    where it alone reads a product of two activations.
    """
    index, taken = GraphIndex(model), names_of(model)
    fresh: list[onnx.NodeProto] = []
    dropped: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "Mul" or node.output[0] in index.outputs:
            continue
        position = next((p for p in (0, 1) if index.producer(node.input[p], "MatMul") is not None), None)
        factor = index.constant(node.input[1 - position]) if position is not None else None
        if position is None or factor is None or factor.size != 1 or factor.ndim > 1 or not float(factor.item()) > 0:
            continue
        product = index.producers[node.input[position]]
        pair = [index.producer(name, DEQUANTIZE) for name in product.input]
        step = index.constant(pair[0].input[1]) if pair[0] is not None else None
        if index.only_reader(product.output[0]) is None or step is None or step.ndim or None in pair:
            continue
        assert pair[0] is not None
        scale, real = (unique_name(f"{product.output[0]}.{part}", taken) for part in ("scaled_step", "scaled"))
        model.graph.initializer.append(tensor_from(np.float32(step * factor.item()), scale))
        fresh.append(helper.make_node(DEQUANTIZE, [pair[0].input[0], scale, *pair[0].input[2:]], [real], name=real))
        product.input[0], product.output[0] = real, node.output[0]
        dropped.add(node.output[0])
    if fresh:
        kept = [node for node in model.graph.node if node.op_type != "Mul" or node.output[0] not in dropped]
        set_nodes(model, [*kept, *fresh])
        tidy(model)
