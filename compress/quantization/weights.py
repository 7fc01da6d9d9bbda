"""Scales of weights, from the weights alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.placement import placements
from compress.onnx_graph.scales import Scale
from compress.onnx_graph.signs import half_range_oracle
from compress.quantization.scheme import Scheme
from compress.quantization.settings import Granularity, WeightMethod

# A tensor that is zero throughout gets this step: any positive one reproduces zeros, and one this small would also
# carry a later non-zero value of moderate size without saturating the int32 bias (see the QAT observers).
ZERO_TENSOR_SCALE = 2.0**-12
SMALLEST_SCALE = 2.0**-24
SHRINK_FACTORS = np.linspace(1.0, 0.4, 61)  # of the largest |w|; below, clipping costs more than finer steps gain


def weight_scales(
    model: onnx.ModelProto,
    known: Mapping[str, Scale],
    *,
    method: WeightMethod = "max",
    granularity: Granularity = "per_channel",
    float_layers: Collection[str] = (),
) -> tuple[dict[str, Scale], list[str]]:
    """Symmetric scales for every weight that is to be quantized and is not in `known`.

    Args:
        model: a float or partly quantized graph.
        known: tensors that have a scale already.
        method: "max" takes the largest |w|, "mse" the range of the least squared error.
        granularity: one scale per output channel, or one per tensor.
        float_layers: names of nodes whose weights stay float.

    Returns:
        scale = range / 127 per channel, / 63 where `Scheme` has 7 bits, with `method` as its source; and notes. A
        channel of zeros gets the largest scale of its tensor, because a tiny one would push the channel's bias out of
        int32. A weight whose readers have their output channels along different axes gets one scale for all of it.
    """
    index = GraphIndex(model)
    spots = placements(model, float_layers)
    half_range = half_range_oracle(index)
    activations = {spot.node.output[0]: spot.tensor for spot in spots if spot.axis is None}
    levels: dict[str, int] = {}
    axes: dict[str, list[int]] = {}
    for spot in spots:
        if spot.axis is None or spot.quantized or spot.tensor in known:
            continue
        _, top = Scheme().weight_range(half_range=half_range(activations[spot.node.output[0]]))
        levels[spot.tensor] = min(top, levels.get(spot.tensor, top))  # a shared weight suits its strictest reader
        axes.setdefault(spot.tensor, []).append(spot.axis)
    scales: dict[str, Scale] = {}
    notes = []
    for name, top in levels.items():
        axis, *others = dict.fromkeys(axes[name])
        rows = _by_channel(index.required(name, "weight"), axis)
        dead = int((~rows.any(axis=1)).sum())
        if dead:
            notes.append(f"weight {name}: {dead} of {len(rows)} output channels are zero")
        if others and granularity == "per_channel":
            notes.append(f"weight {name}: its readers want scales along different axes, so it has one for all of it")
        if others or granularity == "per_tensor":
            (step,) = _steps(rows.reshape(1, -1), top, method)
            scales[name] = Scale(float(step), method)
        else:
            scales[name] = Scale(tuple(map(float, _steps(rows, top, method))), method, axis)
    return scales, notes


def _by_channel(weight: np.ndarray, axis: int) -> np.ndarray:
    """One row per output channel, float64."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)


def _steps(rows: np.ndarray, levels: int, method: WeightMethod) -> np.ndarray:
    largest = np.abs(rows).max(axis=1)
    reach = largest * best_shrink(rows, levels) if method == "mse" else largest
    fallback = reach.max() / levels if reach.any() else ZERO_TENSOR_SCALE
    return np.where(largest > 0, np.maximum(reach / levels, SMALLEST_SCALE), fallback).astype(np.float32)


def best_shrink(rows: np.ndarray, levels: int) -> np.ndarray:
    """For each row the part of its largest |w| that, as range of the codes, gives the least squared error.

    Args:
        rows: weights, (channels, values), float64.
        levels: largest code.

    Returns:
        (channels,), float, values of `SHRINK_FACTORS`; of equally good ones the largest, so 1 for a row of zeros.
    """
    largest = np.abs(rows).max(axis=1)
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for factor in SHRINK_FACTORS:  # a loop, so that memory stays that of the weight
        steps = np.where(largest > 0, largest * factor / levels, 1.0)[:, None]
        codes = np.clip(np.rint(rows / steps), -levels, levels)
        errors = ((rows - codes * steps) ** 2).sum(axis=1)
        best, least = np.where(errors < least, factor, best), np.minimum(errors, least)
    return best
