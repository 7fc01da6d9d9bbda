"""What each layer costs in int8: its work, and what the answers lose where it alone is quantized or left in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from compress.errors import DataError, ModelError
from compress.log import progress
from compress.onnx_graph.graph import GraphIndex, attributes, copy_model
from compress.onnx_graph.lint import LAYERS
from compress.onnx_graph.placement import placements
from compress.onnx_graph.qdq import insert_qdq, strip_qdq
from compress.onnx_graph.simplify import simplify
from compress.onnx_graph.unsigned import unsigned_from_signed
from compress.quantization.quantize import DEFAULTS, Quantized, quantize_onnx
from compress.quantization.samples import Batch
from compress.quantization.settings import QuantizeSettings

MULTIPLYING = (*LAYERS, "ConvTranspose")
SQNR_CAP_DB = 200.0  # beyond what float32 resolves, so that equal answers have a number that JSON can carry

Batches = Callable[[], Iterable[Batch]]  # each call starts over: the samples are read once per trial
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """What one node computes for one sample: multiply-accumulates, and the numbers that it puts out."""

    operator: str
    macs: int
    elements: int

    @property
    def amount(self) -> int:
        """Multiply-accumulates; for a node that multiplies nothing, e.g. a residual add, its outputs."""
        return self.macs or self.elements


@dataclass(frozen=True)
class Score:
    """Answers of a graph held against those of the float graph.

    `sqnr_db` is over all logits; `loss_pp` is how many percentage points of top-1 are lost, negative for a gain, None
    without labels.
    """

    sqnr_db: float
    loss_pp: float | None


@dataclass(frozen=True)
class LayerSensitivity:
    """One node that can be quantized, and what its quantization does to the answers of the network.

    `macs` are multiply-accumulates a sample, 0 for adds and pools. `alone` is the graph in which nothing else is
    quantized, `without` the graph in which everything else is.
    """

    name: str
    operator: str
    macs: int
    alone: Score
    without: Score


class MixedGraphs:
    """Makes the two int8 graphs of a network for any choice of layers that stay in float, from one scale table.

    Args:
        model: float graph, or signed Q/DQ graph.
        full: the same quantized, with everything in int8 that may be.
        settings: with which that was done.

    Attributes:
        float_graph: the network without any Q/DQ.
        names: of the nodes that are quantized in `full`, in the order of nodes: what can be chosen from.
        beside: by name, those of them that write what a node reads or read what it writes, directly or through nodes
            that cannot be chosen, e.g. activations.
    """

    def __init__(self, model: onnx.ModelProto, full: Quantized, settings: QuantizeSettings) -> None:
        self.float_graph = strip_qdq(simplify(model))
        self._scales = full.scales
        self._settings = settings
        placed = placements(full.signed)
        self.names = tuple(dict.fromkeys(spot.node.name for spot in placed if spot.quantized))
        self._always_float = {spot.node.name for spot in placed} - set(self.names)
        self.beside = _neighbours(self.float_graph, self.names)

    def ordered(self, float_layers: Collection[str]) -> tuple[str, ...]:
        """These nodes in the order of nodes."""
        return tuple(name for name in self.names if name in float_layers)

    def signed(self, float_layers: Collection[str]) -> onnx.ModelProto:
        """The signed graph in which these nodes stay in float."""
        return insert_qdq(self.float_graph, self._scales, {*float_layers, *self._always_float})

    def unsigned(self, signed: onnx.ModelProto) -> onnx.ModelProto:
        """What ONNX Runtime's file becomes of a signed graph."""
        return unsigned_from_signed(signed, unsigned_weights=self._settings.unsigned_weights)


def _neighbours(model: onnx.ModelProto, names: Collection[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in names}
    writers: dict[str, set[str]] = {}  # tensor -> the nearest of `names` before it
    for node in model.graph.node:
        before = set[str]().union(*(writers.get(tensor, set()) for tensor in node.input))
        if node.name in found:
            found[node.name] |= before
            for other in before:
                found[other].add(node.name)
        writers |= dict.fromkeys(node.output, {node.name} if node.name in found else before)
    return found


class Judge:
    """Holds graphs against the float graph on the same samples.

    Args:
        float_graph: the reference.
        batches: samples, e.g. (n, channels, height, width) each, float32; arrays by input where there are several.
        labels: (samples,), integers; None judges by SQNR alone.

    Raises:
        DataError: no samples, or labels that are not one a sample.
        ModelError: the float graph cannot be run, or its answers are not finite or no logits of the labels' classes.
    """

    def __init__(self, float_graph: onnx.ModelProto, batches: Batches, labels: NDArray[np.integer] | None) -> None:
        self._batches = batches
        self.reference = answers(float_graph, batches)
        self._labels = None if labels is None else np.asarray(labels)
        if self._labels is not None and self._labels.shape != self.reference.shape[:1]:
            raise DataError(f"There are labels of shape {self._labels.shape} for {len(self.reference)} samples.")
        classes = self.reference.shape[1]
        if self._labels is not None and not (0 <= self._labels.min() and self._labels.max() < classes):
            raise DataError(
                f"Labels are from {self._labels.min()} to {self._labels.max()}; the network answers for "
                f"{classes} classes."
            )
        self.correct = self._count(self.reference)

    @property
    def samples(self) -> int:
        """How many samples are judged."""
        return len(self.reference)

    @property
    def top1(self) -> float | None:
        """Share of samples that the float graph has right; None without labels."""
        return None if self.correct is None else self.correct / self.samples

    def score(self, model: onnx.ModelProto, *, optimized: bool = True) -> Score:
        """Judge a graph; see `answers` for `optimized`."""
        got = answers(model, self._batches, optimized=optimized)
        correct = self._count(got)
        lost = None if correct is None or self.correct is None else 100 * (self.correct - correct) / self.samples
        return Score(sqnr_db(got, self.reference), lost)

    def _count(self, logits: Logits) -> int | None:
        return None if self._labels is None else int((logits.argmax(axis=1) == self._labels).sum())


def layer_sensitivity(
    model: onnx.ModelProto,
    batches: Batches,
    labels: NDArray[np.integer] | None = None,
    settings: QuantizeSettings = DEFAULTS,
) -> list[LayerSensitivity]:
    """Quantize a network one layer at a time, and all but one at a time, and measure what its answers lose.

    Args:
        model: float graph, or signed Q/DQ graph.
        batches: starts over at every call; samples, (n, channels, height, width) each, float32 in [0, 1]. Ranges are
            calibrated on them, and answers compared.
        labels: (samples,), integers; None leaves top-1 out.
        settings: of the quantization.

    Returns:
        One entry for each node that is quantized, in the order of nodes.

    Raises:
        DataError: samples or labels are missing or malformed.
        ModelError: the graph cannot be quantized.
    """
    graphs = MixedGraphs(model, quantize_onnx(model, batches(), settings), settings)
    work = layer_work(graphs.float_graph, graphs.names)
    return sensitivities(graphs, Judge(graphs.float_graph, batches, labels), work)


def sensitivities(graphs: MixedGraphs, judge: Judge, work: dict[str, Work]) -> list[LayerSensitivity]:
    """The same for graphs and samples that are there already; `work` comes from `layer_work`."""
    found = []
    with progress("sensitivity", len(graphs.names), "layers") as bar:
        for name in graphs.names:
            others = [other for other in graphs.names if other != name]
            alone, without = (judge.score(graphs.unsigned(graphs.signed(choice))) for choice in (others, [name]))
            found.append(LayerSensitivity(name, work[name].operator, work[name].macs, alone, without))
            bar.advance()
    return found


def sqnr_db(got: Logits, reference: Logits) -> float:
    """10 log10(sum reference^2 / sum (reference - got)^2) over all elements, in float64, clipped to +-200 dB."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - got).sum())
    if noise == 0:
        return SQNR_CAP_DB
    if signal == 0:
        return -SQNR_CAP_DB
    return float(np.clip(10 * math.log10(signal / noise), -SQNR_CAP_DB, SQNR_CAP_DB))


def answers(model: onnx.ModelProto, batches: Batches, *, optimized: bool = True) -> Logits:
    """What a graph answers: its first output, (samples, classes), float32.

    Args:
        model: float or Q/DQ graph.
        batches: samples.
        optimized: False computes each node as ONNX defines it, which signed graphs need: ONNX Runtime's fused signed
            kernels saturate at 16 bits on x86 processors without VNNI.

    Raises:
        DataError: there are no samples.
        ModelError: ONNX Runtime refuses the graph or the samples, or an answer is NaN or infinite.
    """
    session = _session(model, optimized=optimized)
    entry, output = session.get_inputs()[0], session.get_outputs()[0].name
    parts: list[np.ndarray] = []
    for batch in batches():
        feed = {entry.name: batch} if isinstance(batch, np.ndarray) else dict(batch)
        got = np.asarray(_run(session, [output], feed)[0], np.float32)
        parts.append(got.reshape(len(feed[entry.name]), -1))
    if not parts:
        raise DataError("There are no samples to judge the quantized network on; expected at least one.")
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise ModelError(f"Output {output} is NaN or infinite on {int((~np.isfinite(logits)).any(1).sum())} samples.")
    return logits


def layer_work(model: onnx.ModelProto, others: Collection[str] = ()) -> dict[str, Work]:
    """Work for one sample, by name, of every Conv, ConvTranspose, Gemm and MatMul, and of the nodes named `others`.

    The graph is run once on zeros with every dynamic axis at 1, which knows shapes that inference does not.

    Args:
        model: float graph.
        others: names of nodes of other operators.

    Raises:
        ModelError: the graph cannot be run on one sample.
    """
    index = GraphIndex(model)
    nodes = [node for node in index.graph.node if node.op_type in MULTIPLYING or node.name in others]
    wanted = dict.fromkeys(node.output[0] for node in nodes)
    wanted |= dict.fromkeys(name for node in nodes if node.op_type in MULTIPLYING for name in node.input[:2])
    shapes = _shapes(model, index, list(wanted))
    return {node.name: _work(node, shapes) for node in nodes}


def _work(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> Work:
    elements = math.prod(shapes[node.output[0]])
    macs = 0
    if node.op_type in MULTIPLYING:
        left, right = (shapes[name] for name in node.input[:2])
        if node.op_type == "ConvTranspose":
            macs = math.prod(left) * math.prod(right[1:])
        elif node.op_type == "Conv":
            macs = elements * math.prod(right[1:])
        else:
            macs = elements * left[0 if attributes(node).get("transA", 0) else -1]
    return Work(node.op_type, macs, elements)


def _shapes(model: onnx.ModelProto, index: GraphIndex, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.dims) for name, tensor in index.constants.items()}
    probe = copy_model(model)
    computed = [name for name in names if name in index.producers]
    have = set(index.outputs)
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in computed if name not in have
    )
    feed = {}
    for value in probe.graph.input:
        if value.name in index.inputs:
            tensor = value.type.tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim]
            feed[value.name] = np.zeros(dims, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            shapes[value.name] = tuple(dims)
    if computed:  # an empty list of names would mean all outputs
        arrays = _run(_session(probe, optimized=False), computed, feed)
        shapes |= {name: np.shape(array) for name, array in zip(computed, arrays, strict=True)}
    return shapes


def _session(model: onnx.ModelProto, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # the same sums on every machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types share no base but Exception
        raise ModelError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error


def _run(session: onnxruntime.InferenceSession, names: list[str], feed: dict[str, np.ndarray]) -> list[Any]:
    try:
        return list(session.run(names, feed))
    except Exception as error:  # its exception types share no base but Exception
        shapes = {name: array.shape for name, array in feed.items()}
        raise ModelError(f"ONNX Runtime fails on inputs of shape {shapes}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
