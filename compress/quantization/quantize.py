"""From an exported graph to the two int8 files: keep the scales that are there, calibrate the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from compress.errors import ModelError
from compress.onnx_graph.lint import raise_on_errors
from compress.onnx_graph.loading import check_model, require_finite
from compress.onnx_graph.placement import placements
from compress.onnx_graph.qdq import insert_qdq, scales_of, strip_qdq
from compress.onnx_graph.scales import ScaleTable
from compress.onnx_graph.simplify import simplify
from compress.onnx_graph.unsigned import UnsignedWeights, unsigned_from_signed
from compress.quantization.calibration import Method, calibrate, weight_scales


@dataclass(frozen=True)
class Quantized:
    """Two graphs from one scale table.

    `calibrated` counts activations whose scale was measured here, `kept` tensors (activations and weights) whose scale
    was in the graph; `notes` are sentences for people.
    """

    signed: onnx.ModelProto
    unsigned: onnx.ModelProto
    scales: ScaleTable
    calibrated: int
    kept: int
    notes: list[str]


def quantize_onnx(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray],
    method: Method = "entropy",
    *,
    unsigned_weights: UnsignedWeights = "shifted",
) -> Quantized:
    """Quantize a graph to int8, keeping what fake-quant training has decided.

    Args:
        model: float graph, or signed symmetric Q/DQ graph, whole or in part.
        batches: calibration images, (n, channels, height, width), float32 in [0, 1]; not read when every activation
            has its scale already.
        method: how ranges become scales, see `calibrate`.
        unsigned_weights: see `unsigned_from_signed`.

    Returns:
        The signed graph (TensorRT), the unsigned one (ONNX Runtime on CPUs) and their scale table.

    Raises:
        ModelError: weights or activations are not finite, the batch axis is static, Q/DQ that is there is not signed
            symmetric, or nothing can be quantized.
        DataError: calibration samples are missing or malformed.
    """
    check_model(model)
    require_finite(model)
    source = simplify(model)
    raise_on_errors(source, "tensorrt")
    kept = scales_of(source)
    spots = placements(source)
    if not spots:
        raise ModelError(
            "The graph has no Conv, Gemm, MatMul, residual add or average pool to quantize.",
            hint="Use the float graph as it is.",
        )
    wanted = {spot.tensor for spot in spots if spot.axis is None and not spot.quantized} - set(kept)
    tensors = [name for name in dict.fromkeys(spot.tensor for spot in spots) if name in wanted]
    notes: list[str] = []
    table = dict(kept)
    if tensors:
        measured = calibrate(strip_qdq(source), tensors, batches, method)
        table.update(measured.scales)
        notes += measured.notes
    weights, weight_notes = weight_scales(source, kept)
    table.update(weights)
    signed = insert_qdq(source, table)
    unsigned = unsigned_from_signed(signed, unsigned_weights=unsigned_weights)
    check_model(signed)
    check_model(unsigned)
    notes += [f"{warning} (tensorrt)" for warning in raise_on_errors(signed, "tensorrt")]
    notes += [f"{warning} (onnxruntime)" for warning in raise_on_errors(unsigned, "onnxruntime")]
    return Quantized(signed, unsigned, ScaleTable(table), len(tensors), len(kept), notes + weight_notes)
