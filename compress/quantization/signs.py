"""Which activations of an exported network need all 256 codes of an unsigned byte, from their operators."""

from __future__ import annotations

import torch
from torch import fx

_ATEN = torch.ops.aten
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}
_NON_NEGATIVE = _RELUS | {
    _ATEN.sigmoid.default,
    _ATEN.hardsigmoid.default,
    _ATEN.softmax.int,
    _ATEN.abs.default,
    _ATEN.exp.default,
}
_KEEPS_SIGN = {  # of the first argument
    _ATEN.max_pool2d.default,
    _ATEN.upsample_nearest2d.vec,
    _ATEN.upsample_bilinear2d.vec,
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.adaptive_max_pool2d.default,
    _ATEN.mean.dim,
    _ATEN.amax.default,
    _ATEN.flatten.using_ints,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN.permute.default,
    _ATEN.transpose.int,
    _ATEN.squeeze.dim,
    _ATEN.unsqueeze.default,
    _ATEN.unflatten.int,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.expand.default,
    _ATEN.contiguous.default,
    _ATEN.clone.default,
    _ATEN.dropout.default,
    _ATEN.dropout_.default,
}
_SIGN_OF_ALL = {_ATEN.cat.default, _ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.mul.Tensor, _ATEN.mul_.Tensor}
_MOVES_CODES = {_ATEN.max_pool2d.default, _ATEN.upsample_nearest2d.vec, _ATEN.upsample_bilinear2d.vec}


_HARDTANH = {_ATEN.hardtanh.default, _ATEN.hardtanh_.default}
_RELU6 = {_ATEN.relu6.default, _ATEN.relu6_.default}
_CLAMP = {_ATEN.clamp.default, _ATEN.clamp_.default, _ATEN.clip.default, _ATEN.clip_.default}


def within_half_range(graph: fx.Graph) -> set[fx.Node]:
    """Activations whose unsigned codes stay within 127: never negative, and clipped by no upper bound.

    An activation that may be negative gets zero point 128; a clipped one (ReLU6), and what a max pool, a resize or a
    concatenation moves on from there, all codes up to its bound. The same rule on ONNX graphs is
    `compress.onnx_graph.signs.half_range_oracle`.
    """
    non_negative: set[fx.Node] = set()
    bounded: set[fx.Node] = set()
    for node in graph.nodes:  # in topological order
        low, high = _bounds(node)
        if (
            high is not None
            or (node.target in _MOVES_CODES and node.args[0] in bounded)
            or (node.target is _ATEN.cat.default and bounded.issuperset(node.all_input_nodes))
        ):
            bounded.add(node)
        if (
            (low is not None and low >= 0)
            or node.target in _NON_NEGATIVE
            or (node.target in _KEEPS_SIGN and node.args[0] in non_negative)
            or (node.target in _SIGN_OF_ALL and all(parent in non_negative for parent in node.all_input_nodes))
        ):
            non_negative.add(node)
    return non_negative - bounded


def _bounds(node: fx.Node) -> tuple[float | None, float | None]:
    """Lowest and highest value that a clamp lets through; None where it has no bound, or is none."""
    if node.target in _RELU6:
        return 0.0, 6.0
    if node.target in _HARDTANH:
        return _number(node, 1, "min_val", -1.0), _number(node, 2, "max_val", 1.0)
    if node.target in _CLAMP:
        return _number(node, 1, "min", None), _number(node, 2, "max", None)
    return None, None


def _number(node: fx.Node, position: int, name: str, default: float | None) -> float | None:
    value = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    return float(value) if isinstance(value, int | float) else None
