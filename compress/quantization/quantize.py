"""From an exported graph to the two int8 files: keep the scales that are there, calibrate the rest."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from compress.errors import ModelError, UsageError
from compress.onnx_graph.canonical import QUANTIZE
from compress.onnx_graph.lint import Target, raise_on_errors
from compress.onnx_graph.loading import check_model, require_finite
from compress.onnx_graph.placement import float_notes, placements
from compress.onnx_graph.qdq import insert_qdq, release_layers, scales_of, share_scales, strip_qdq
from compress.onnx_graph.scales import Scale, ScaleTable
from compress.onnx_graph.simplify import simplify
from compress.onnx_graph.unsigned import unsigned_from_signed
from compress.quantization.calibration import PIXELS, calibrate
from compress.quantization.samples import Batch, Range
from compress.quantization.settings import QuantizeSettings
from compress.quantization.weights import weight_scales

DEFAULTS = QuantizeSettings()


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

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the float tensors that are quantized, without weights, sorted."""
        return tuple(sorted({node.input[0] for node in self.signed.graph.node if node.op_type == QUANTIZE}))


def quantize_onnx(
    model: onnx.ModelProto,
    batches: Iterable[Batch],
    settings: QuantizeSettings = DEFAULTS,
    *,
    value_range: Range | None = PIXELS,
    static_batch: bool = False,
) -> Quantized:
    """Quantize a graph to int8, keeping what fake-quant training has decided.

    Args:
        model: float graph, or signed symmetric Q/DQ graph, whole or in part.
        batches: calibration samples, see `calibrate`; not read when every activation has its scale already.
        settings: how ranges become scales, and which layers stay float: those lose the Q/DQ that they have, and an
            activation that only they read gets none.
        value_range: what values the samples may have; None accepts all finite ones.
        static_batch: whether a graph of one batch size may pass; what a recipe builds from needs a dynamic axis.

    Returns:
        The signed graph (TensorRT), the unsigned one (ONNX Runtime on CPUs) and their scale table.

    Raises:
        UsageError: a float layer that the graph does not have.
        ModelError: weights or activations are not finite, the batch axis is static, Q/DQ that is there is not signed
            symmetric, or nothing can be quantized.
        DataError: calibration samples are missing or malformed.
    """
    check_model(model)
    require_finite(model)
    source = simplify(model)
    raise_on_errors(source, "tensorrt", static_batch=static_batch)
    left = resolve_float_layers(source, settings.float_layers)
    source = release_layers(source, left)
    if not placements(source, left):
        raise ModelError(
            "All layers that could be quantized are to stay in float."
            if left
            else "The graph has no Conv, Gemm, MatMul, residual add or average pool to quantize.",
            hint="Use the float graph as it is.",
        )
    kept = scales_of(source)
    table, calibrated, notes = _scales(source, left, kept, batches, settings, value_range)
    signed = insert_qdq(source, table, left)
    unsigned = unsigned_from_signed(signed, unsigned_weights=settings.unsigned_weights)
    files: dict[Target, onnx.ModelProto] = {"tensorrt": signed, "onnxruntime": unsigned}
    for target, graph in files.items():
        check_model(graph)
        notes += _warnings(graph, target, left, static_batch)
    return Quantized(signed, unsigned, ScaleTable(table), calibrated, len(kept), notes)


def _scales(
    source: onnx.ModelProto,
    left: Collection[str],
    kept: Mapping[str, Scale],
    batches: Iterable[Batch],
    settings: QuantizeSettings,
    value_range: Range | None,
) -> tuple[dict[str, Scale], int, list[str]]:
    """A scale for everything that is quantized, how many activations were calibrated for it, and notes."""
    spots = placements(source, left)
    table = share_scales(source, kept, left)
    wanted = {spot.tensor for spot in spots if spot.axis is None and not spot.quantized} - set(table)
    tensors = [name for name in dict.fromkeys(spot.tensor for spot in spots) if name in wanted]
    notes = float_notes(source)
    if left:
        notes.append(f"left in float as asked: {', '.join(left)}")
    if tensors:
        measured = calibrate(
            strip_qdq(source),
            tensors,
            batches,
            settings.method,
            percentile=settings.percentile,
            value_range=value_range,
        )
        table = share_scales(source, {**table, **measured.scales}, left)
        notes += measured.notes
    weights, weight_notes = weight_scales(
        source, kept, method=settings.weights, granularity=settings.granularity, float_layers=left
    )
    return {**table, **weights}, len(tensors), notes + weight_notes


def _warnings(graph: onnx.ModelProto, target: Target, left: Collection[str], static_batch: bool) -> list[str]:
    """What the linter finds, apart from layers that are float because somebody wanted them so."""
    findings = raise_on_errors(graph, target, static_batch=static_batch)
    return [f"{one} ({target})" for one in findings if not (one.rule.startswith("float-") and one.node in left)]


def resolve_float_layers(model: onnx.ModelProto, wanted: Iterable[str]) -> tuple[str, ...]:
    """The nodes that names and patterns mean, in the order of nodes.

    Args:
        model: a float or Q/DQ graph.
        wanted: names of nodes that would be quantized, or patterns of shells (`conv_*`).

    Raises:
        UsageError: a name that no such node has, or a pattern that fits none; with the nearest name.
    """
    wanted = tuple(wanted)
    if not wanted:
        return ()
    names = list(dict.fromkeys(spot.node.name for spot in placements(model)))
    for pattern in wanted:
        if not any(_meant(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0) or ["none"]
            raise UsageError(
                f"No layer that is quantized is named {pattern!r}; nearest: {near[0]}.",
                hint=f"There are {', '.join(names)}.",
            )
    return tuple(name for name in names if any(_meant(name, pattern) for pattern in wanted))


def _meant(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # names from elsewhere may hold brackets
