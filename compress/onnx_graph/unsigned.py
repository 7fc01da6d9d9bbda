"""The rewrite of a signed graph for ONNX Runtime on CPUs, from the same scales.

ONNX Runtime's integer kernels for x86 take unsigned activations: with int8 ones it cannot absorb a Relu, and the graph
is slower than float. A tensor that is never negative gets uint8 codes with zero point 0, every other tensor uint8 codes
with zero point 128; weights stay int8 where that is exact, and biases become int32, without which ONNX Runtime leaves a
last Gemm in float.

On x86 without VNNI, ONNX Runtime multiplies uint8 by int8 with vpmaddubsw, which adds two products in 16 bits and
saturates once codes exceed 127: 255 * 127 * 2 > 32767. Post-Relu codes stay within 127 wherever the calibrated range
holds. Zero point 128 and the Clip rule use all 256 codes (a white pixel is 255): our own scales give the weights of
such layers 7 bits (`Scheme`), which fits, and keep the fast kernel. Where another quantizer gave them 8 bits, the
weights are stored as uint8 with zero point 128: the uint8 by uint8 kernel is exact, and slower, on every processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    attributes,
    names_of,
    set_nodes,
    tensor_from,
    tidy,
    unique_name,
)
from compress.onnx_graph.placement import CARRIERS
from compress.onnx_graph.products import fold_score_scales, gemms_from_matmuls
from compress.onnx_graph.reshapes import reshape_from_flatten
from compress.onnx_graph.signs import constant_bound, sign_oracle
from compress.onnx_graph.simplify import simplify

MIDDLE = 128  # the unsigned code of 0.0 where the signed one was 0
UNSIGNED_MAX = 255
SIGNED_MAX = 127
SAFE_WEIGHT_CODE = 64
BIAS_LIMIT = 2**30  # int32 codes of a bias, with a factor of two to spare
UnsignedWeights = Literal["never", "shifted", "always"]


def unsigned_from_signed(model: onnx.ModelProto, *, unsigned_weights: UnsignedWeights = "shifted") -> onnx.ModelProto:
    """A copy with unsigned activations that computes what the signed graph computes.

    Scales stay, with one exception, the Clip rule: where a Clip(0, high) is quantized, the codes 0..255 cover exactly
    min(127 * scale, high), so that quantizing does the clipping and the Clip goes away; what a MaxPool, Resize or
    Concat moves on from there has the same codes. Codes of tensors that may be negative move by 128; codes of
    non-negative ones keep their values and reach 255 instead of 127 before saturating, which is the one difference to
    the signed graph. A MatMul by a stored weight becomes a Gemm, see `gemms_from_matmuls`.

    Args:
        model: signed symmetric Q/DQ, int8, zero point 0, one scale per activation.
        unsigned_weights: which layers store uint8 weights, exact on every processor and about twice as slow as int8
            ones: "shifted" those whose input uses all 256 codes and whose weight codes exceed 64, "never" none,
            "always" all.

    Raises:
        ModelError: an activation is not int8 with zero point 0 and one constant scale.
    """
    result = simplify(model)  # folds weight Qs and transposes, without which ORT takes float kernels
    full_range = _rewrite_activations(result)
    reshape_from_flatten(result)
    views = gemms_from_matmuls(result)
    fold_score_scales(result)
    full_range |= {view for view, codes in views.items() if codes in full_range}
    _store_integer_parameters(result, full_range, unsigned_weights)
    return tidy(result)


@dataclass(frozen=True)
class _Codes:
    """One unsigned Q: its output, the names and values of its scale and zero point, and the step it had when signed."""

    output: str
    names: tuple[str, str]
    scale: float
    zero: int
    full_range: bool  # codes up to 255
    signed_step: float


def _rewrite_activations(model: onnx.ModelProto) -> set[str]:
    """Make every Q/DQ of an activation unsigned, in place; returns the Q outputs whose codes reach 255."""
    index, taken = GraphIndex(model), names_of(model)
    non_negative = sign_oracle(index)
    nodes: list[onnx.NodeProto] = []
    replaced: dict[str, _Codes] = {}  # by old Q output
    seen: dict[tuple[str, float], _Codes] = {}
    for node in model.graph.node:
        if node.op_type == QUANTIZE:
            step = _signed_step(node, index)
            key = (node.input[0], step)
            if key not in seen:
                source, scale, zero, full = _carried(node.input[0], step, index, replaced) or _unsigned_parameters(
                    node.input[0], step, index, non_negative
                )
                names = _emit_quantize(model, nodes, node, source, scale, zero, taken)
                seen[key] = _Codes(node.output[0], names, scale, zero, full, step)
            replaced[node.output[0]] = seen[key]
        elif node.op_type == DEQUANTIZE and node.input[0] in replaced:
            codes = replaced[node.input[0]]
            nodes.append(helper.make_node(DEQUANTIZE, [codes.output, *codes.names], node.output, name=node.name))
        else:
            nodes.append(node)
    set_nodes(model, nodes)
    return {codes.output for codes in replaced.values() if codes.full_range}


def _carried(
    tensor: str, step: float, index: GraphIndex, replaced: Mapping[str, _Codes]
) -> tuple[str, float, int, bool] | None:
    """Parameters of a tensor that a MaxPool, Resize or Concat makes of codes: those of its inputs, if they agree."""
    carrier = index.producers.get(tensor)
    if carrier is None or carrier.op_type not in CARRIERS:
        return None
    inputs = carrier.input if carrier.op_type == "Concat" else carrier.input[:1]
    pairs = [index.producer(name, DEQUANTIZE) for name in inputs]
    codes = [replaced.get(pair.input[0]) if pair is not None else None for pair in pairs]
    known = [one for one in codes if one is not None]
    alike = {(one.scale, one.zero, one.full_range, one.signed_step) for one in known}
    if len(known) != len(codes) or len(alike) != 1 or known[0].signed_step != step:
        return None
    return tensor, known[0].scale, known[0].zero, known[0].full_range


def _store_integer_parameters(model: onnx.ModelProto, full_range: set[str], unsigned_weights: UnsignedWeights) -> None:
    """Give every quantized Conv and Gemm an int32 bias, and uint8 weights where asked for."""
    index, taken = GraphIndex(model), names_of(model)
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        activation, weight = (index.producer(name, DEQUANTIZE) for name in node.input[:2])
        codes = index.constant(weight.input[0]) if weight is not None else None
        if activation is None or weight is None or codes is None:
            continue
        steps, step = (index.required(dequantize.input[1], "scale") for dequantize in (weight, activation))
        bias = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        axis = _output_axis(node, codes)
        per_tensor = steps.ndim == 0
        if (
            bias is not None
            and bias.dtype == np.float32
            and bias.shape == (codes.shape[axis],)
            and (per_tensor or (steps.shape == bias.shape and attributes(weight).get("axis", 1) == axis))
        ):
            # a near-dead channel has a step so small that its bias would not fit int32; its products are
            # then below one millionth of the bias, so a larger step costs nothing
            largest = np.abs(bias).max(initial=0) if per_tensor else np.abs(bias)
            wider = np.asarray(np.maximum(steps, largest / (np.float32(step) * BIAS_LIMIT)), np.float32)
            shape = () if per_tensor else [-1 if position == axis else 1 for position in range(codes.ndim)]
            codes = np.rint(codes * (steps / wider).reshape(shape)).astype(np.int8)
            steps = wider
            node.input[2] = _emit_bias(model, node, bias, np.float32(step) * steps, taken)
        # 255 * 64 * 2 fits 16 bits: small codes, e.g. 7-bit weights, need no shift
        large = int(np.abs(codes.astype(np.int16)).max(initial=0)) > SAFE_WEIGHT_CODE
        saturates = large and activation.input[0] in full_range
        shift = unsigned_weights == "always" or (unsigned_weights == "shifted" and saturates)
        node.input[1] = _emit_weight(model, weight, codes, steps, shift, taken)


def _output_axis(node: onnx.NodeProto, weight: np.ndarray) -> int:
    if node.op_type == "MatMul":
        return weight.ndim - 1
    return 0 if node.op_type == "Conv" or attributes(node).get("transB", 0) else 1


def _emit_bias(
    model: onnx.ModelProto, node: onnx.NodeProto, bias: np.ndarray, step: np.ndarray | np.generic, taken: set[str]
) -> str:
    names = [unique_name(f"{node.input[2]}.{part}", taken) for part in ("int32", "scale", "zero_point", "dequantized")]
    scale = np.asarray(step, np.float32)
    arrays = np.rint(bias / scale).astype(np.int32), scale, np.zeros(scale.shape, np.int32)
    model.graph.initializer.extend(tensor_from(array, name) for array, name in zip(arrays, names, strict=False))
    fresh = helper.make_node(DEQUANTIZE, names[:3], names[3:], name=names[3])
    if scale.ndim:
        fresh.attribute.append(helper.make_attribute("axis", 0))
    model.graph.node.append(fresh)
    return names[3]


def _emit_weight(
    model: onnx.ModelProto, old: onnx.NodeProto, codes: np.ndarray, steps: np.ndarray, shift: bool, taken: set[str]
) -> str:
    stem = old.input[0]
    names = [unique_name(f"{stem}.{part}", taken) for part in ("codes", "steps", "zero", "real")]
    kind, zero = (np.uint8, MIDDLE) if shift else (np.int8, 0)
    arrays = (codes.astype(np.int16) + zero).astype(kind), steps, np.full(steps.shape, zero, kind)
    model.graph.initializer.extend(tensor_from(array, name) for array, name in zip(arrays, names, strict=False))
    node = helper.make_node(DEQUANTIZE, names[:3], names[3:], name=names[3])
    node.attribute.extend(old.attribute)
    model.graph.node.append(node)
    return names[3]


def _signed_step(node: onnx.NodeProto, index: GraphIndex) -> float:
    step = index.constant(node.input[1])
    zero = index.constant(node.input[2]) if len(node.input) > 2 else None
    if step is None or step.size != 1 or zero is None or zero.dtype != np.int8 or bool(zero.any()):
        got = "no zero point" if zero is None else f"{zero.dtype} zero point {zero.reshape(-1)[:1].tolist()}"
        raise ModelError(
            f"Activation {node.input[0]} has {got} and {'no' if step is None else step.size} constant scale(s); "
            "expected int8, zero point 0 and one scale.",
            where=f"node {node.name}",
            hint="Start from the signed graph that `calibrate` writes (model.onnx).",
        )
    return float(step.reshape(-1)[0])


def _unsigned_parameters(
    tensor: str, step: float, index: GraphIndex, non_negative: Callable[[str], bool]
) -> tuple[str, float, int, bool]:
    """(tensor to quantize, scale, zero point, whether codes reach 255) of the unsigned Q."""
    clip = index.producer(tensor, "Clip")
    if clip is not None and constant_bound(clip, 1, index) == 0.0:
        high = constant_bound(clip, 2, index)
        if high is not None and high > 0:
            # keeping the step would let codes reach twice the bound once the Clip is gone
            return clip.input[0], min(SIGNED_MAX * step, high) / UNSIGNED_MAX, 0, True
    return (tensor, step, 0, False) if non_negative(tensor) else (tensor, step, MIDDLE, True)


def _emit_quantize(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    old: onnx.NodeProto,
    source: str,
    step: float,
    zero: int,
    taken: set[str],
) -> tuple[str, str]:
    stem = old.input[0]
    scale, zero_point = (unique_name(f"{stem}.unsigned_{part}", taken) for part in ("scale", "zero_point"))
    # 0-d on purpose: scales of shape [1] keep ORT from using QLinearAdd
    model.graph.initializer.extend([tensor_from(np.float32(step), scale), tensor_from(np.uint8(zero), zero_point)])
    nodes.append(helper.make_node(QUANTIZE, [source, scale, zero_point], old.output, name=old.name))
    return scale, zero_point
