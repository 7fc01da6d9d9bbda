"""Batch-norm in exported graphs: trained beside fake-quant weights, folded into them at the end.

torchao has both rewrites; it drops a network's own momentum and eps, covers no linear layer, divides by zero
where a batch-norm weight is zero, and spends 20 s in tracing patterns for each conversion.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_ATEN = torch.ops.aten
WEIGHTED = {
    _ATEN.conv1d.default,
    _ATEN.conv1d.padding,
    _ATEN.conv2d.default,
    _ATEN.conv2d.padding,
    _ATEN.linear.default,
}
BATCH_NORM = _ATEN.batch_norm.default
# aten.batch_norm(input, weight, bias, mean, variance, training, momentum, eps, cudnn)
BATCH_NORM_TRAINING = 5
_SCALED = "compress_scaled"  # mark of a layer that `scale_weights_by_batch_norm` rewrote


def drop_batch_counters(graph: fx.GraphModule) -> None:
    """Remove `num_batches_tracked += 1`: it would count evaluations too, and nothing reads it."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.add_.Tensor and str(_operand(node, 0).target).endswith("num_batches_tracked"):
            graph.graph.erase_node(node)
    graph.recompile()


def _operand(node: fx.Node, index: int) -> fx.Node:
    operand = node.args[index]
    assert isinstance(operand, fx.Node), (node, operand)
    return operand


def _with_statistics(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for node in list(graph.graph.nodes):
        if node.target is BATCH_NORM and node.args[4] is not None:  # with running statistics
            yield node


def _weighted_before(batch_norm: fx.Node) -> fx.Node | None:
    """Return the layer that `batch_norm` can be folded into: channels in axis 1, no other reader of its output."""
    layer = _operand(batch_norm, 0)
    if layer.target not in WEIGHTED or len(layer.users) != 1:
        return None
    if layer.target is _ATEN.linear.default and layer.meta["val"].ndim != 2:
        return None
    return layer


def scale_weights_by_batch_norm(graph: fx.GraphModule) -> None:
    """Let every layer before a batch-norm compute with the weight that folding will give it.

    `bn(layer(x, w))` becomes `bn(layer(x, w * f) / f)` with f = weight / sqrt(running variance + eps): the same
    function, but a fake-quant node placed on `w * f` now sees the final weight (Jacob et al., 2018,
    arXiv:1712.05877, figure C8; Krishnamoorthi, 2018, arXiv:1806.08342). No gradient flows through f: without
    rounding it is zero, with rounding it is noise that grows as f shrinks.

    Args:
        graph: exported in training mode; changed in place.
    """
    for batch_norm in _with_statistics(graph):
        layer = _weighted_before(batch_norm)
        if layer is None:
            continue
        weight, bias = _operand(layer, 1), layer.args[2] if len(layer.args) > 2 else None
        call = graph.graph.call_function
        with graph.graph.inserting_before(layer):
            factor = _factor_nodes(graph.graph, batch_norm)
            by_row = call(_ATEN.reshape.default, (factor, [-1] + [1] * (_rank(weight) - 1)))
            layer.update_arg(1, call(_ATEN.mul.Tensor, (weight, by_row)))
        if bias is not None:
            layer.update_arg(2, None)
        by_channel = [1, -1] + [1] * (_rank(layer) - 2)
        with graph.graph.inserting_before(batch_norm):
            result = call(_ATEN.div.Tensor, (layer, call(_ATEN.reshape.default, (factor, by_channel))))
            if bias is not None:
                result = call(_ATEN.add.Tensor, (result, call(_ATEN.reshape.default, (bias, by_channel))))
            batch_norm.update_arg(0, result)
        layer.meta[_SCALED] = True
    graph.recompile()


def _rank(node: Any) -> int:
    return node.meta["val"].ndim


def _factor_nodes(graph: fx.Graph, batch_norm: fx.Node) -> fx.Node:
    """Add nodes for weight / sqrt(variance + eps); one replaces zero, as its output is multiplied by zero anyway."""
    _, scale, _, _, variance, _, _, eps = batch_norm.args[:8]
    inverse = graph.call_function(_ATEN.rsqrt.default, (graph.call_function(_ATEN.add.Tensor, (variance, eps)),))
    factor = inverse if scale is None else graph.call_function(_ATEN.mul.Tensor, (scale, inverse))
    factor = graph.call_function(_ATEN.detach.default, (factor,))
    is_zero = graph.call_function(_ATEN.eq.Scalar, (factor, 0))
    return graph.call_function(_ATEN.add.Tensor, (factor, is_zero))


def fold_batch_norm(graph: fx.GraphModule) -> None:
    """Undo `scale_weights_by_batch_norm` with batch-norm folded into weight and bias; the function stays the same.

    A batch-norm that follows no such layer becomes a module that computes the same.

    Args:
        graph: in evaluation mode, with or without fake-quant nodes on the weights; changed in place.
    """
    for position, batch_norm in enumerate(_with_statistics(graph)):
        layer, bias = _scaled_before(batch_norm)
        if layer is not None:
            factor, shift = _factor_and_shift(graph, batch_norm)
            offset = shift if bias is None else shift + factor * _tensor(graph, bias)
            _fold(graph, batch_norm, layer, factor, offset, position)
        else:
            _replace_by_module(graph, batch_norm, position)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _scaled_before(batch_norm: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the layer that `scale_weights_by_batch_norm` rewrote, and its bias; None where there is none."""
    before, bias = _operand(batch_norm, 0), None
    if before.target is _ATEN.add.Tensor and isinstance(before.args[1], fx.Node):
        before, bias = _operand(before, 0), before.args[1]
    if before.target is not _ATEN.div.Tensor or _SCALED not in getattr(before.args[0], "meta", {}):
        return None, None
    return _operand(before, 0), _operand(bias, 0) if bias is not None else None


def _tensor(graph: fx.GraphModule, node: Any) -> Tensor:
    path, _, name = node.target.rpartition(".")
    return getattr(graph.get_submodule(path), name).detach()


def _factor_and_shift(graph: fx.GraphModule, batch_norm: fx.Node) -> tuple[Tensor, Tensor]:
    _, scale, shift, mean, variance, _, _, eps = cast("tuple[Any, ...]", batch_norm.args[:8])
    factor = torch.rsqrt(_tensor(graph, variance) + eps)  # in the order of _factor_nodes: the same bits
    if scale is not None:
        factor = _tensor(graph, scale) * factor
    offset = -_tensor(graph, mean) * factor
    return factor, offset if shift is None else _tensor(graph, shift) + offset


def _fold(
    graph: fx.GraphModule, batch_norm: fx.Node, layer: fx.Node, factor: Tensor, shift: Tensor, position: int
) -> None:
    observed = _operand(layer, 1)  # the scaled weight, behind a fake-quant node if there is one
    scaled = _operand(observed, 0) if observed.op == "call_module" else observed
    weight = _operand(scaled, 0)
    folded = _tensor(graph, weight)
    folded = folded * factor.reshape([-1] + [1] * (folded.ndim - 1))
    # New names, because two layers may share one weight under different batch-norms.
    stem = f"{str(weight.target).replace('.', '_')}_folded_{position}"
    with graph.graph.inserting_before(observed):
        new_weight = _parameter(graph, stem, folded)
    with graph.graph.inserting_before(layer):
        new_bias = _parameter(graph, f"{stem}_bias", shift)
    if observed is scaled:
        layer.update_arg(1, new_weight)
    else:
        observed.replace_input_with(scaled, new_weight)
    layer.args = (*layer.args[:2], new_bias, *layer.args[3:])
    batch_norm.replace_all_uses_with(layer)
    graph.graph.erase_node(batch_norm)


def _parameter(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return graph.graph.get_attr(name)


class _BatchNorm(nn.Module):
    """Batch-norm in evaluation mode; where torchao's conversion sees the operator it spends a minute on patterns."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, eps=self.eps)


def _replace_by_module(graph: fx.GraphModule, batch_norm: fx.Node, position: int) -> None:
    name, eps = f"batch_norm_{position}", cast("float", batch_norm.args[7])
    graph.add_submodule(name, _BatchNorm(eps))
    with graph.graph.inserting_before(batch_norm):
        result = graph.graph.call_module(name, batch_norm.args[:5])
    batch_norm.replace_all_uses_with(result)
    graph.graph.erase_node(batch_norm)
