"""Lint rules about layers: what stays float in a quantized graph, and Q/DQ that stand in the way of fusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.findings import LAYERS, Problem
from compress.onnx_graph.graph import GraphIndex, attributes
from compress.onnx_graph.lint_files import INTEGER_OPERATORS
from compress.onnx_graph.lint_pairs import code_type, dequantized_constant, stored_weight
from compress.onnx_graph.signs import constant_bound

ABSORBED = frozenset(  # a layer in front of these is fused with them, unless a Q stands between
    "Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Elu Selu Gelu BatchNormalization".split()
)
FLOAT_FUNCTIONS = frozenset(  # without integer kernels in either runtime
    "Softmax LogSoftmax LayerNormalization RMSNormalization GroupNormalization InstanceNormalization Gelu Erf".split()
)
FUSED_ATTENTION = frozenset({"Attention", "com.microsoft::Attention", "com.microsoft::MultiHeadAttention"})
AVERAGE_POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
BETWEEN_SCORES_AND_SOFTMAX = frozenset("Mul Div Add Sub Where Reshape Transpose Cast Identity".split())
BETWEEN_SOFTMAX_AND_VALUES = frozenset({DEQUANTIZE, QUANTIZE, "Dropout", "Identity", "Cast", "Where"})
FARTHEST = 6  # nodes between a product and the Softmax that makes it attention
# Operators that a DQ is moved behind, so that the layer behind them gets integers.
RUNTIME_MOVES = frozenset("Reshape Transpose Squeeze Unsqueeze Slice MaxPool Identity Dropout".split())
TENSORRT_MOVES = RUNTIME_MOVES | {"Flatten", "Gather", "Split", "DepthToSpace"}
_RUNTIME = "com.microsoft::"  # the domain of ONNX Runtime's own operators, see `lint_files.flattened`
_RUNTIME_INTEGERS = frozenset("QGemm QAttention DynamicQuantizeMatMul MatMulIntegerToFloat MatMulNBits".split())
_QUANTIZED = frozenset({QUANTIZE, DEQUANTIZE, *INTEGER_OPERATORS}) | {_RUNTIME + name for name in _RUNTIME_INTEGERS}


def is_quantized(index: GraphIndex) -> bool:
    """Whether anything in a graph is quantized; one without may be meant to be float."""
    return any(node.op_type in _QUANTIZED for node in index.graph.node)


def layer_kind(node: onnx.NodeProto) -> str:
    """Conv, Gemm or MatMul, be it fused by ONNX Runtime's optimizer (FusedConv); empty for any other operator."""
    kind = node.op_type.removeprefix(f"{_RUNTIME}Fused")
    return kind if kind in LAYERS else ""


def float_operands(node: onnx.NodeProto, index: GraphIndex, moves: frozenset[str] = frozenset()) -> list[int]:
    """Positions of a layer's two operands that no DequantizeLinear makes, neither directly nor in front of `moves`."""
    return [
        position for position, name in enumerate(node.input[:2]) if _made_by(name, index, moves).op_type != DEQUANTIZE
    ]


def _made_by(name: str, index: GraphIndex, moves: frozenset[str]) -> onnx.NodeProto:
    """The nearest node above a tensor that is none of `moves`; an empty one for inputs and constants."""
    node = index.producers.get(name)
    while node is not None and node.op_type in moves:
        node = index.producers.get(node.input[0])
    return node or onnx.NodeProto()


def _is_stored(name: str, index: GraphIndex) -> bool:
    """Whether a tensor is a constant, or made of one by a DQ and what moves values only."""
    source = _made_by(name, index, TENSORRT_MOVES)
    return name in index.constants or any(dequantized_constant(n, index) is not None for n in source.output)


def _is_attention(node: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether a MatMul of two computed tensors stands before or behind a Softmax."""
    computed = not any(_is_stored(name, index) for name in node.input)
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


def misplaced_weight_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """8-bit weights whose scale changes within the sum that makes one output: it cannot be formed in integers.

    TensorRT-RTX has been seen to run such layers in float, or not to build them. ONNX Runtime puts integer kernels
    there, which fail, or give wrong numbers where a weight has as many inputs as outputs.
    """
    for node in index.graph.node:
        dq = index.producer(node.input[1], DEQUANTIZE) if node.op_type in LAYERS else None
        weight = None if dq is None else stored_weight(dq, index)
        if dq is None or weight is None or not weight.dims or 0 in float_operands(node, index, TENSORRT_MOVES):
            continue
        if code_type(dq, index) not in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            continue
        options, step = attributes(dq), index.constant(dq.input[1])
        rank = len(weight.dims)
        columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB", 0))
        expected, axis = rank - 1 if columns else 0, options.get("axis", 1) % rank
        if options.get("block_size", 0):
            yield Problem(node.name, f"its weight has a scale for each block of {options['block_size']} values.")
        elif step is not None and step.size > 1 and axis != expected:
            yield Problem(node.name, f"the scales of its weight lie along axis {axis}, expected axis {expected}.")


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


def unquantized(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """A graph in which nothing is quantized, though it has layers that could be."""
    kinds = Counter(kind for node in index.graph.node if (kind := layer_kind(node)))
    if kinds and not is_quantized(index):
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        yield Problem("", f"nothing is quantized: all layers ({listed}) run in float.")


def float_layers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Layers of a quantized graph with an operand that is float for TensorRT."""
    yield from _float_layers(index, TENSORRT_MOVES)


def runtime_float_layers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Layers of a quantized graph with an operand that is float for ONNX Runtime."""
    yield from _float_layers(index, RUNTIME_MOVES)


def _float_layers(index: GraphIndex, moves: frozenset[str]) -> Iterator[Problem]:
    if not is_quantized(index):
        return
    for node in index.graph.node:
        if layer_kind(node) and float_operands(node, index, moves) and not _is_attention(node, index):
            yield Problem(node.name, f"{node.op_type} has a float operand and runs in float.")


def float_attention(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Attention whose products have float operands."""
    if not is_quantized(index):
        return
    for node in index.graph.node:
        if node.op_type in FUSED_ATTENTION:
            yield Problem(node.name, "attention is one operator, which has no integer form.")
        elif float_operands(node, index, RUNTIME_MOVES) and _is_attention(node, index):
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
