"""Lint rules about layers: what stays float in a quantized graph, and Q/DQ that stand in the way of fusion."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.findings import LAYERS, Problem
from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.lint_pairs import code_type, dequantized_constant, quantizers
from compress.onnx_graph.signs import constant_bound

ABSORBED = frozenset(  # a layer in front of these is fused with them, unless a Q stands between
    "Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Elu Selu Gelu BatchNormalization".split()
)
FLOAT_FUNCTIONS = frozenset(  # without integer kernels in either runtime
    "Softmax LogSoftmax LayerNormalization RMSNormalization GroupNormalization InstanceNormalization Gelu Erf".split()
)
AVERAGE_POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
BETWEEN_SCORES_AND_SOFTMAX = frozenset("Mul Div Add Sub Where Reshape Transpose Cast Identity".split())
BETWEEN_SOFTMAX_AND_VALUES = frozenset({DEQUANTIZE, QUANTIZE, "Dropout", "Identity", "Cast", "Where"})
FARTHEST = 6  # nodes between a product and the Softmax that makes it attention


def is_quantized(index: GraphIndex) -> bool:
    """Whether a graph has any Q or DQ; one without is meant to be float."""
    return any(True for _ in quantizers(index))


def float_operands(node: onnx.NodeProto, index: GraphIndex) -> list[int]:
    """Positions of a layer's two operands that no DequantizeLinear makes."""
    return [position for position, name in enumerate(node.input[:2]) if index.producer(name, DEQUANTIZE) is None]


def _is_attention(node: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether a MatMul of two computed tensors stands before or behind a Softmax."""
    computed = all(n not in index.constants and dequantized_constant(n, index) is None for n in node.input)
    if node.op_type != "MatMul" or not computed:
        return False
    front = [node.output[0]]
    for _ in range(FARTHEST):
        readers = [use.node for name in front for use in index.uses(name)]
        if any(reader.op_type == "Softmax" for reader in readers):
            return True
        front = [r.output[0] for r in readers if r.op_type in BETWEEN_SCORES_AND_SOFTMAX]
    source = index.producer(node.input[0])
    for _ in range(FARTHEST):
        if source is None or source.op_type not in BETWEEN_SOFTMAX_AND_VALUES:
            break
        source = next((index.producers[name] for name in source.input if name in index.producers), None)
    return source is not None and source.op_type == "Softmax"


def transposed_convs(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """ConvTranspose with an int8 operand."""
    for node in index.graph.node:
        if node.op_type == "ConvTranspose" and any(index.producer(name, DEQUANTIZE) for name in node.input[:2]):
            yield Problem(node.name, "int8 ConvTranspose builds, but computes in float.")


def late_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Q/DQ between a layer and what it would be fused with."""
    for node in index.graph.node:
        layer = index.producers.get(node.input[0]) if node.op_type == QUANTIZE else None
        if layer is None or layer.op_type not in (*LAYERS, "ConvTranspose", "Add"):
            continue
        behind = [use.node for dq in index.uses(node.output[0]) for use in index.uses(dq.node.output[0])]
        blocked = sorted({reader.op_type for reader in behind} & ABSORBED)
        if blocked:
            yield Problem(node.name, f"Q/DQ stands between {layer.op_type} and {', '.join(blocked)}: no fusion.")


def float_layers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Layers of a quantized graph with a float operand."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        if node.op_type in LAYERS and float_operands(node, index) and not _is_attention(node, index):
            yield Problem(node.name, f"{node.op_type} has a float operand and runs in float.")


def float_attention(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Attention whose products have float operands."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        if node.op_type == "Attention":
            yield Problem(node.name, "attention is one operator, which has no integer form.")
        elif float_operands(node, index) and _is_attention(node, index):
            yield Problem(node.name, "an attention MatMul has a float operand and runs in float.")


def half_quantized_adds(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Additions of two computed tensors of which one is quantized."""
    for node in index.graph.node:
        if node.op_type != "Add" or any(name in index.constants for name in node.input):
            continue
        scores = any(use.node.op_type == "Softmax" for use in index.uses(node.output[0]))
        if len(float_operands(node, index)) == 1 and not scores:
            yield Problem(node.name, "one input of the Add is quantized and the other float: it runs in float.")


def float_pools(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Average pools of a quantized graph with a float input."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        if node.op_type in AVERAGE_POOLS and index.producer(node.input[0], DEQUANTIZE) is None:
            yield Problem(node.name, f"the input of {node.op_type} is float, so is the pool.")


def quantized_functions(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Operators that compute in float whatever they are given, on inputs rounded to 8 bits."""
    for node in index.graph.node:
        if node.op_type in FLOAT_FUNCTIONS and index.producer(node.input[0], DEQUANTIZE) is not None:
            yield Problem(node.name, f"the input of {node.op_type} is rounded to 8 bits, but it computes in float.")


def quantized_masks(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Attention scores and their mask quantized in front of their sum."""
    for node in index.graph.node:
        if node.op_type != "Add" or not any(use.node.op_type == "Softmax" for use in index.uses(node.output[0])):
            continue
        if len(float_operands(node, index)) < 2:
            yield Problem(node.name, "attention scores or mask are quantized: huge values of a mask wipe scores out.")


def hard_swish(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Hard-swish, as one operator or as HardSigmoid and Mul."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        sigmoid = node.op_type == "HardSigmoid" and any(u.node.op_type == "Mul" for u in index.uses(node.output[0]))
        if node.op_type == "HardSwish" or sigmoid:
            yield Problem(node.name, "hard-swish stays float between DQ and Q; such graphs were never faster in int8.")


def unfolded_batch_norms(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """BatchNormalization left behind a layer of a quantized graph."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        layer = index.producers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if layer is not None and layer.op_type in (*LAYERS, "ConvTranspose"):
            yield Problem(node.name, f"BatchNormalization was not folded into its {layer.op_type}.")


def clips_before_quantizers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Clip(0, high) in front of an unsigned Q, which could do the clipping itself."""
    for node in index.graph.node:
        clip = index.producer(node.input[0], "Clip") if node.op_type == QUANTIZE else None
        if clip is None or code_type(node, index) != onnx.TensorProto.UINT8:
            continue
        if constant_bound(clip, 1, index) == 0 and constant_bound(clip, 2, index) is not None:
            yield Problem(node.name, f"Clip {clip.name} stays in front of Q: ONNX Runtime leaves a float FusedConv.")
