"""Lint rules about quantize/dequantize pairs: their types, zero points, scales, and what they stand on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.findings import LAYERS, Problem
from compress.onnx_graph.graph import GraphIndex, attributes

HUGE_SCALE = 1e6  # no activation of a working network reaches 127 million; masks do
SAFE_WEIGHT_CODE = 64  # 255 * 64 * 2 fits 16 bits; see `unsigned`
_INT8 = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)  # int32: biases, which have rules of their own
_INT16 = (TensorProto.INT16, TensorProto.UINT16)
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def quantizers(index: GraphIndex) -> Iterator[onnx.NodeProto]:
    """Every QuantizeLinear and DequantizeLinear."""
    yield from (node for node in index.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE))


def dequantized_constant(name: str, index: GraphIndex) -> np.ndarray | None:
    """The stored codes behind a tensor that a DequantizeLinear makes of a constant; None for any other tensor."""
    source = index.producer(name, DEQUANTIZE)
    return None if source is None else index.constant(source.input[0])


def _on_weight(node: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether a Q or DQ works on a stored weight, be it float before a Q or codes before a DQ."""
    source = index.producer(node.input[0], QUANTIZE)
    return node.input[0] in index.constants or (source is not None and source.input[0] in index.constants)


def _zero_point(node: onnx.NodeProto, index: GraphIndex) -> np.ndarray | None:
    return index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None


def code_type(node: onnx.NodeProto, index: GraphIndex) -> int:
    """The ONNX type of a quantizer's codes: of its zero point, of the stored codes, of its attribute; else uint8."""
    names = [*node.input[2:3], *(node.input[:1] if node.op_type == DEQUANTIZE else ())]
    for name in names:
        if name in index.constants:
            return index.constants[name].data_type
    if node.op_type == DEQUANTIZE and (source := index.producer(node.input[0], QUANTIZE)) is not None:
        return code_type(source, index)
    return attributes(node).get("output_dtype", 0) or TensorProto.UINT8


def _type_name(code: int) -> str:
    return helper.tensor_dtype_to_string(code).removeprefix("TensorProto.").lower()


def nonzero_zero_points(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Asymmetric codes."""
    for node in quantizers(index):
        zero = _zero_point(node, index)
        if zero is not None and zero.astype(np.float32).any():
            worst = zero.astype(np.float32).reshape(-1)
            yield Problem(node.name, f"zero point is {worst[np.abs(worst).argmax()]:g}, expected 0.")


def unsigned_codes(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """uint8 codes, which build and saturate."""
    for node in quantizers(index):
        if code_type(node, index) == TensorProto.UINT8:
            yield Problem(node.name, "codes are uint8, expected int8; 128 to 255 would saturate silently.")


def wide_codes(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Codes of 16 bits, which do not parse."""
    for node in quantizers(index):
        kind = code_type(node, index)
        if kind in _INT16:
            yield Problem(node.name, f"codes are {_type_name(kind)}, expected int8: parsing fails.")


def other_codes(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Codes of other widths, e.g. int4, whose layers compute in float."""
    for node in quantizers(index):
        kind = code_type(node, index)
        if kind not in (*_INT8, *_INT16):
            yield Problem(node.name, f"codes are {_type_name(kind)}, expected int8; the layer's operands stay float.")


def signed_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """int8 activations, for which x86 has no fast kernels."""
    for node in quantizers(index):
        if node.op_type == QUANTIZE and not _on_weight(node, index) and code_type(node, index) == TensorProto.INT8:
            yield Problem(node.name, f"activation {node.input[0]} has int8 codes, which run slower than float on x86.")


def _biases(index: GraphIndex) -> Iterator[tuple[onnx.NodeProto, int]]:
    for node in index.graph.node:
        source = index.producer(node.input[2], DEQUANTIZE) if node.op_type in _BIASED and len(node.input) > 2 else None
        if source is not None:
            yield node, code_type(source, index)


def int32_biases(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Biases as ONNX Runtime likes them and TensorRT does not."""
    for node, kind in _biases(index):
        if kind == TensorProto.INT32:
            yield Problem(node.name, "the bias is int32 behind a DequantizeLinear, expected float: parsing fails.")


def quantized_biases(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Biases of 8 bits."""
    for node, kind in _biases(index):
        if kind != TensorProto.INT32:
            yield Problem(node.name, f"the bias is quantized to {_type_name(kind)}, expected float.")


def per_channel_activations(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Activations with one scale per channel."""
    for node in quantizers(index):
        step = index.constant(node.input[1])
        if not _on_weight(node, index) and step is not None and step.size > 1:
            yield Problem(node.name, f"the activation has {step.size} scales, expected one: it would run in float.")


def stored_weight(node: onnx.NodeProto, index: GraphIndex) -> TensorProto | None:
    """The weight that a DQ works on: stored codes, or a float weight in front of a Q; None for an activation."""
    source = index.producer(node.input[0], QUANTIZE)
    return index.constants.get(node.input[0] if source is None else source.input[0])


def shaped_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Activation scales of shape [1]."""
    for node in quantizers(index):
        step = index.constant(node.input[1])
        if not _on_weight(node, index) and step is not None and step.shape == (1,):
            yield Problem(node.name, "the scale has shape [1], expected 0-d: integer kernels are not used.")


def bad_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Scales that are computed, zero, negative or not finite."""
    for node in quantizers(index):
        step = index.constant(node.input[1])
        if step is None:
            yield Problem(node.name, "the scale is computed, expected a constant.")
            continue
        values = step.astype(np.float64).reshape(-1)
        sound = np.isfinite(values) & (values > 0)
        if not sound.all():
            yield Problem(node.name, f"a scale is {values[np.argmin(sound)]:g}, expected positive and finite.")


def huge_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Activation scales that only a mask or an overflow explains."""
    for node in quantizers(index):
        step = index.constant(node.input[1]) if node.op_type == QUANTIZE and not _on_weight(node, index) else None
        if step is not None and step.size and HUGE_SCALE < float(step.astype(np.float64).max()) < np.inf:
            largest = float(step.astype(np.float64).max())
            yield Problem(node.name, f"activation {node.input[0]} has the scale {largest:g}: nearly all becomes 0.")


def missing_dequantizers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """A Q that something else than a DQ reads."""
    for node in index.graph.node:
        if node.op_type != QUANTIZE:
            continue
        readers = [use.node.op_type for use in index.uses(node.output[0])]
        readers += ["the graph output"] if node.output[0] in index.outputs else []
        others = sorted(set(readers) - {DEQUANTIZE})
        if others or not readers:
            yield Problem(node.name, f"QuantizeLinear is read by {', '.join(others) or 'nothing'}, expected a DQ.")


def _quantizers_of(index: GraphIndex) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """Every activation that several Qs read, with those."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in index.graph.node:
        if node.op_type == QUANTIZE and not _on_weight(node, index):
            readers.setdefault(node.input[0], []).append(node)
    yield from ((name, nodes) for name, nodes in readers.items() if len(nodes) > 1)


def repeated_quantizers(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Several Qs of one tensor with one scale: work done twice, and residual adds that stay float."""
    for name, nodes in _quantizers_of(index):
        yield Problem(nodes[1].name, f"activation {name} is quantized {len(nodes)} times, expected once.")


def conflicting_scales(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Several Qs of one tensor with different scales."""
    for name, nodes in _quantizers_of(index):
        steps = [index.constant(node.input[1]) for node in nodes]
        values = sorted({float(step.reshape(-1)[0]) for step in steps if step is not None and step.size == 1})
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in values)
            yield Problem(nodes[1].name, f"activation {name} has the scales {listed}, expected one.")


def unfolded_weights(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Float weights in front of a Q."""
    for node in index.graph.node:
        if node.op_type == QUANTIZE and node.input[0] in index.constants:
            yield Problem(node.name, f"weight {node.input[0]} is float in front of a Q: three times the size.")


def transposed_weights(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """Stored codes that are transposed behind their DQ."""
    for node in index.graph.node:
        if node.op_type == "Transpose" and dequantized_constant(node.input[0], index) is not None:
            yield Problem(
                node.name, "an int8 weight is transposed behind its DQ: its reader may get no integer kernel."
            )


def saturating_weights(model: onnx.ModelProto, index: GraphIndex) -> Iterator[Problem]:
    """8-bit weights behind activations that use all 256 codes: signed ones, or unsigned ones with a zero point."""
    for node in index.graph.node:
        activation = index.producer(node.input[0], DEQUANTIZE) if node.op_type in LAYERS else None
        codes = dequantized_constant(node.input[1], index) if activation is not None else None
        if activation is None or codes is None or codes.dtype != np.int8 or not codes.size:
            continue
        zero = _zero_point(activation, index)
        shifted = zero is not None and zero.dtype == np.uint8 and bool(zero.any())
        largest = int(np.abs(codes.astype(np.int16)).max())
        if largest > SAFE_WEIGHT_CODE and (shifted or code_type(activation, index) == TensorProto.INT8):
            yield Problem(
                node.name,
                f"int8 weights up to {largest} meet activations of all 256 codes: sums of two products saturate "
                "at 16 bits on x86 without VNNI.",
            )
