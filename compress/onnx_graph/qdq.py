"""Quantize/dequantize pairs: reading them, inserting them where the placement rule wants them, taking them off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import DEQUANTIZE, QUANTIZE
from compress.onnx_graph.graph import (
    GraphIndex,
    attributes,
    copy_model,
    names_of,
    opset_of,
    rename_inputs,
    set_nodes,
    tensor_from,
    tidy,
    unique_name,
)
from compress.onnx_graph.placement import Spot, placements, quantizable_tensors, shared_scales
from compress.onnx_graph.scales import LEVELS, Scale, ScaleTable, Source

__all__ = [
    "Scale",
    "ScaleTable",
    "Source",
    "dequantize_weight",
    "insert_qdq",
    "quantizable_tensors",
    "quantize_weight",
    "release_layers",
    "remove_qdq_pair",
    "scales_of",
    "share_scales",
    "strip_qdq",
]

FIRST_OPSET = 13  # the first whose DequantizeLinear has one scale per channel


def scales_of(model: onnx.ModelProto) -> dict[str, Scale]:
    """The scales that a graph carries: activations by the name of the float tensor, weights by their initializer.

    Raises:
        ModelError: a scale is computed, not positive or not finite, a Q lacks its DQ, or one tensor has two scales.
    """
    index = GraphIndex(model)
    found: dict[str, Scale] = {}
    for node in model.graph.node:
        if node.op_type == QUANTIZE:
            _require_dequantized(node, index)
            name, axis = node.input[0], None
        elif node.op_type == DEQUANTIZE and node.input[0] in index.constants:
            name, axis = node.input[0], attributes(node).get("axis", 1)
        else:
            continue
        array = index.required(node.input[1], f"scale of tensor {name}")
        if array.ndim and array.size > 1 and axis is None:
            raise ModelError(
                f"Activation {name} has {array.size} scales; expected one per tensor.",
                hint="TensorRT computes such layers in float: quantize the activation per tensor.",
            )
        per_channel = array.ndim == 1 and axis is not None
        value = tuple(map(float, array)) if per_channel else float(array.reshape(-1)[0])
        scale = Scale(value, "qat", axis if per_channel else None)
        if found.setdefault(name, scale) != scale:
            raise ModelError(
                f"Tensor {name} is quantized twice, with scales {found[name].scale} and {scale.scale}; expected one.",
                hint="Remove one of the Q/DQ pairs, or share one scale.",
            )
    return found


def _require_dequantized(node: onnx.NodeProto, index: GraphIndex) -> None:
    uses = index.uses(node.output[0])
    if not uses or any(use.node.op_type != DEQUANTIZE for use in uses):
        raise ModelError(
            f"QuantizeLinear of tensor {node.input[0]} has no DequantizeLinear behind it.",
            where=f"node {node.name}",
            hint="Insert Q and DQ in pairs.",
        )


def insert_qdq(
    model: onnx.ModelProto, scales: Mapping[str, Scale], float_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy with Q/DQ at every place of the rule that has none yet.

    Args:
        model: a float or partly quantized graph.
        scales: a scale for every activation and weight that is not quantized yet; others are ignored, and tensors that
            must share one get the one of `share_scales`. A weight's is one number, or one for each output channel.
        float_layers: names of nodes whose inputs stay float, and lose the pairs that they have.

    Returns:
        The signed symmetric graph: zero point 0, int8 codes -127..127 for weights, float biases.

    Raises:
        ModelError: scales are missing (all are named), a weight's scales do not fit its channels or lie along another
            axis, or opset < 13.
    """
    if opset_of(model) < FIRST_OPSET:
        raise ModelError(f"The graph has opset {opset_of(model)}; expected at least {FIRST_OPSET}.")
    result = release_layers(model, float_layers)
    scales = share_scales(result, scales, float_layers)
    index, taken = GraphIndex(result), names_of(result)
    unquantized = [spot for spot in placements(result, float_layers) if not spot.quantized]
    missing = sorted({spot.tensor for spot in unquantized} - set(scales))
    if missing:
        raise ModelError(
            f"No scale for {len(missing)} tensor(s): {', '.join(missing)}.", hint="Calibrate the graph first."
        )
    dequantized = _existing_pairs(result, index)
    claims = Counter(_claim(spot, scales) for spot in unquantized)
    for spot in unquantized:
        key = _claim(spot, scales)
        if key not in dequantized and spot.axis is None:
            dequantized[key] = _emit_activation(result, spot.tensor, scales[spot.tensor], taken)
        elif key not in dequantized:
            # a float reader outside the rule keeps the float weight and its name
            shared = claims[key] != len(index.uses(spot.tensor))
            dequantized[key] = _emit_weight(result, index, spot, scales[spot.tensor], taken, shared)
        spot.node.input[spot.position] = dequantized[key]
    return tidy(result)


def _claim(spot: Spot, scales: Mapping[str, Scale]) -> tuple[str, int | None]:
    """What one pair serves: a tensor with one scale, or a weight with one for each index of an axis."""
    return spot.tensor, spot.axis if isinstance(scales[spot.tensor].scale, tuple) else None


def share_scales(
    model: onnx.ModelProto, scales: Mapping[str, Scale], float_layers: Collection[str] = ()
) -> dict[str, Scale]:
    """`scales`, with one for all tensors between which a Concat, MaxPool or Resize moves codes.

    Args:
        model: a float or partly quantized graph.
        scales: of tensors, those that the graph carries already included or not.
        float_layers: names of nodes whose inputs stay float.

    Returns:
        A new mapping. A group in which a tensor is quantized already takes its scale; any other takes the largest,
        which clips no member more than its own would. A group without any scale gets none.

    Raises:
        ModelError: see `placements` and `scales_of`.
    """
    groups, shared = shared_scales(model, float_layers), dict(scales)
    trained = scales_of(model) if groups else {}
    for group in groups:
        fixed = [trained[name] for name in group if name in trained]
        known = fixed[:1] or [scales[name] for name in group if name in scales]
        if known:
            shared |= dict.fromkeys(group, max(known, key=lambda scale: scale.scale))
    return shared


def release_layers(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy in which the named nodes read float tensors and float weights; other readers keep their pairs.

    Args:
        model: a float or signed symmetric Q/DQ graph.
        names: of nodes; a node without pairs stays as it is.
    """
    result = copy_model(model)
    index, taken = GraphIndex(result), names_of(result)
    restored: dict[str, str] = {}  # stored weight -> its float initializer
    for node in result.graph.node:
        for position, name in enumerate(node.input if node.name in names else ()):
            dequantize = index.producer(name, DEQUANTIZE)
            if dequantize is None:
                continue
            stored = dequantize.input[0]
            codes, quantize = index.constant(stored), index.producer(stored, QUANTIZE)
            if codes is not None:
                if stored not in restored:
                    restored[stored] = unique_name(f"{stored}.float", taken)
                    weight = tensor_from(_float_weight(dequantize, codes, index), restored[stored])
                    result.graph.initializer.append(weight)
                node.input[position] = restored[stored]
            elif quantize is not None:
                node.input[position] = quantize.input[0]
    tidy(result)
    left = {tensor.name: tensor for tensor in result.graph.initializer}
    # a weight that nothing reads as integers any more keeps its name
    renames = {fresh: stored for stored, fresh in restored.items() if stored not in left}
    for fresh, stored in renames.items():
        left[fresh].name = stored
    rename_inputs(result.graph.node, renames)
    return result


def _existing_pairs(model: onnx.ModelProto, index: GraphIndex) -> dict[tuple[str, int | None], str]:
    pairs = {}
    for node in model.graph.node:
        quantize = index.producer(node.input[0], QUANTIZE) if node.op_type == DEQUANTIZE else None
        if quantize is not None:
            pairs.setdefault((quantize.input[0], None), node.output[0])
    return pairs


def _emit_activation(model: onnx.ModelProto, tensor: str, scale: Scale, taken: set[str]) -> str:
    if isinstance(scale.scale, tuple):
        raise ModelError(f"Activation {tensor} has {len(scale.scale)} scales; expected one per tensor.")
    step, zero, quantized, dequantized = (
        unique_name(f"{tensor}.{part}", taken) for part in ("scale", "zero_point", "quantized", "dequantized")
    )
    model.graph.initializer.extend([tensor_from(np.float32(scale.scale), step), tensor_from(np.int8(0), zero)])
    model.graph.node.append(helper.make_node(QUANTIZE, [tensor, step, zero], [quantized], name=quantized))
    model.graph.node.append(helper.make_node(DEQUANTIZE, [quantized, step, zero], [dequantized], name=dequantized))
    return dequantized


def _emit_weight(
    model: onnx.ModelProto, index: GraphIndex, spot: Spot, scale: Scale, taken: set[str], shared: bool
) -> str:
    weight = index.required(spot.tensor, "weight")
    axis = spot.axis or 0
    steps = np.asarray(scale.scale, np.float32)  # 0-d where the whole weight has one
    if steps.size > 1 and scale.axis is not None and scale.axis % weight.ndim != axis:
        raise ModelError(
            f"Weight {spot.tensor} has scales along axis {scale.axis}; expected {axis}, of output channels.",
            where=f"node {spot.node.name}",
            hint="Give a weight that layers read along different axes one scale.",
        )
    if steps.ndim and steps.size != weight.shape[axis]:
        raise ModelError(
            f"Weight {spot.tensor} has {weight.shape[axis]} output channels but {steps.size} scales.",
            where=f"node {spot.node.name}",
        )
    stored = unique_name(f"{spot.tensor}.int8", taken) if shared else spot.tensor
    step, zero, output = (
        unique_name(f"{spot.tensor}.{part}", taken) for part in ("scale", "zero_point", "dequantized")
    )
    if not shared:
        model.graph.initializer.remove(index.constants[spot.tensor])
    codes = quantize_weight(weight, steps, axis)
    zeros = np.zeros(steps.shape, np.int8)
    model.graph.initializer.extend([tensor_from(codes, stored), tensor_from(steps, step), tensor_from(zeros, zero)])
    node = helper.make_node(DEQUANTIZE, [stored, step, zero], [output], name=output)
    if steps.ndim and axis != 1:  # 1 is the operator's default, and canonical files spell out no defaults
        node.attribute.append(helper.make_attribute("axis", axis))
    model.graph.node.append(node)
    return output


def quantize_weight(weight: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """Codes round(weight / step) in -127..127, int8; one step per index of `axis`, or a 0-d one for all."""
    shape = [-1 if position == axis else 1 for position in range(weight.ndim)] if steps.ndim else ()
    return np.clip(np.rint(weight / steps.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)


def dequantize_weight(codes: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """Real values codes * step, float32; the inverse of `quantize_weight` on its own output."""
    shape = [-1 if position == axis else 1 for position in range(codes.ndim)] if steps.ndim else ()
    return (codes * steps.astype(np.float32).reshape(shape)).astype(np.float32)


def strip_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float twin of a signed symmetric graph: no Q/DQ on activations, weights dequantized to float initializers."""
    result = copy_model(model)
    index = GraphIndex(result)
    renames: dict[str, str] = {}
    kept = []
    for node in result.graph.node:
        if node.op_type == QUANTIZE:
            _require_dequantized(node, index)
        elif node.op_type != DEQUANTIZE:
            kept.append(node)
        elif (codes := index.constant(node.input[0])) is not None:
            renames[node.output[0]] = node.input[0]
            index.constants[node.input[0]].CopyFrom(tensor_from(_float_weight(node, codes, index), node.input[0]))
        elif (quantize := index.producer(node.input[0], QUANTIZE)) is not None:
            renames[node.output[0]] = quantize.input[0]
        else:
            raise ModelError("DequantizeLinear reads neither a constant nor a Q.", where=f"node {node.name}")
    rename_inputs(kept, renames)
    set_nodes(result, kept)
    _require_no_output(renames, index)
    return tidy(result)


def _float_weight(node: onnx.NodeProto, codes: np.ndarray, index: GraphIndex) -> np.ndarray:
    steps = index.required(node.input[1], f"scale of weight {node.input[0]}")
    return dequantize_weight(codes, steps, attributes(node).get("axis", 1)) if codes.dtype == np.int8 else codes


def _require_no_output(renames: Mapping[str, str], index: GraphIndex) -> None:
    bad = sorted(set(renames) & set(index.outputs))
    if bad:
        raise ModelError(f"Graph output {', '.join(bad)} is a DequantizeLinear; expected float logits.")


def remove_qdq_pair(model: onnx.ModelProto, node_name: str) -> onnx.ModelProto:
    """A copy in which one Conv, Gemm or MatMul runs in float: the control for counting int8 layers in an engine.

    The pair on the node's input goes away for this node alone; other readers of the tensor keep theirs. The int8
    weight stays behind its DequantizeLinear, so exactly one pair is removed, and the layer that lost it computes in
    float because both operands must be int8 for an integer kernel.

    Raises:
        ModelError: no such node, or its input is not quantized.
    """
    result = copy_model(model)
    index = GraphIndex(result)
    node = next((node for node in result.graph.node if node.name == node_name), None)
    if node is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        names = [n.name for n in result.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
        raise ModelError(f"No Conv, Gemm or MatMul is named {node_name!r}; there are {', '.join(names)}.")
    pair = index.producer(node.input[0], DEQUANTIZE)
    quantize = index.producer(pair.input[0], QUANTIZE) if pair is not None else None
    if quantize is None:
        raise ModelError("The input of the node is not quantized.", where=f"node {node_name}")
    node.input[0] = quantize.input[0]
    return tidy(result)
