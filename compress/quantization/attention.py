"""Fused attention in exported graphs, written out as the products that fake-quant can see.

`torch.nn.functional.scaled_dot_product_attention` is one node in a graph that torch.export made, and two matrix
products and a softmax in the ONNX file: only the written-out form can be trained as what will run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten
_FUSED = _ATEN.scaled_dot_product_attention.default


def write_out_attention(graph: fx.GraphModule) -> int:
    """Replace fused attention by matmul, softmax and matmul, scaled as the ONNX exporter does.

    Queries and keys are both multiplied by the root of the scale. A dropout becomes an operator of its own, which
    evaluation switches off. Left fused, and so in float, is what has no plain form: grouped queries, and a causal mask
    over a number of tokens that is not fixed.

    Args:
        graph: exported; changed in place.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for node in list(graph.graph.nodes):
        if node.target is _FUSED and _is_plain(node):
            with graph.graph.inserting_before(node):
                result = _products(graph, node, replaced)
            node.replace_all_uses_with(result)
            graph.graph.erase_node(node)
            replaced += 1
    if replaced:
        graph.graph.lint()
        graph.recompile()
    return replaced


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]


def _is_plain(node: fx.Node) -> bool:
    if _argument(node, 7, "enable_gqa", False):
        return False
    causal = _argument(node, 5, "is_causal", False)
    sizes = (_value(node.args[0]).shape[-2], _value(node.args[1]).shape[-2])
    return not causal or all(isinstance(size, int) for size in sizes)


def _products(graph: fx.GraphModule, node: fx.Node, number: int) -> fx.Node:
    query, key, value = node.args[:3]
    scale = _argument(node, 6, "scale", None)
    root = math.sqrt(1 / math.sqrt(_value(query).shape[-1]) if scale is None else scale)
    scaled = _call(graph, _ATEN.mul.Tensor, query, root)
    turned = _call(graph, _ATEN.mul.Tensor, _call(graph, _ATEN.transpose.int, key, -2, -1), root)
    scores = _call(graph, _ATEN.matmul.default, scaled, turned)
    mask = _argument(node, 3, "attn_mask", None)
    if _argument(node, 5, "is_causal", False):
        mask = _causal_mask(graph, scores, number)
    if mask is not None and _value(mask).dtype == torch.bool:
        hidden = _call(graph, _ATEN.logical_not.default, mask)
        scores = _call(graph, _ATEN.masked_fill.Scalar, scores, hidden, -math.inf)
    elif mask is not None:
        scores = _call(graph, _ATEN.add.Tensor, scores, mask)
    weights = _call(graph, _ATEN.softmax.int, scores, -1)
    dropped = _argument(node, 4, "dropout_p", 0.0)
    if dropped:
        weights = _call(graph, _ATEN.dropout.default, weights, dropped, True)
    return _call(graph, _ATEN.matmul.default, weights, value)


def _causal_mask(graph: fx.GraphModule, scores: fx.Node, number: int) -> fx.Node:
    """A stored table that lets token i see tokens up to i."""
    queries, keys = _value(scores).shape[-2:]
    name = f"causal_mask_{number}"
    graph.register_buffer(name, torch.ones(queries, keys, dtype=torch.bool).tril())
    node = graph.graph.get_attr(name)
    node.meta["val"] = _value(scores).new_ones((queries, keys), dtype=torch.bool)
    return node


def _call(graph: fx.GraphModule, target: Any, *arguments: Any) -> fx.Node:
    """Add a node with the value that a traced one would have: later passes ask for its shape."""
    node = graph.graph.call_function(target, arguments)
    node.meta["val"] = target(*[_value(one) if isinstance(one, fx.Node) else one for one in arguments])
    return node
