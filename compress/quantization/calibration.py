"""Scales of activations after training: the float graph runs on samples, and histograms of |x| become ranges."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from compress.errors import DataError, ModelError
from compress.onnx_graph.graph import GraphIndex, copy_model
from compress.onnx_graph.scales import LEVELS, Scale
from compress.quantization.histogram import Histogram, thinning
from compress.quantization.samples import Batch, Chunk, InputSpec, Range, chunks
from compress.quantization.settings import Method, QuantizeSettings
from compress.quantization.thresholds import threshold
from compress.quantization.weights import SMALLEST_SCALE, ZERO_TENSOR_SCALE

PIXELS: Range = (0.0, 1.0)
# Chunks computed side by side. Each runs on one thread, so that its sums are the same on every machine, and counts add
# up in any order; the limit keeps memory from growing with the number of processors.
MOST_WORKERS = 4


@dataclass
class Calibration:
    """Scales of the tensors asked for, how many samples they rest on, and what a person should know."""

    scales: dict[str, Scale]
    samples: int
    notes: list[str] = field(default_factory=list)


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    method: Method = "mse",
    *,
    percentile: float = 99.99,
    value_range: Range | None = PIXELS,
) -> Calibration:
    """Run samples through a float graph and choose a scale for each of `tensors`.

    Args:
        model: float graph.
        tensors: names of activations (graph inputs may be among them).
        batches: samples, (n, ...), float32, for an image input (n, channels, height, width) in [0, 1]; for a graph of
            several inputs, arrays by input name. Read once, a chunk at a time; the result does not depend on how many
            samples a batch has.
        method: how a range becomes a scale, see `QuantizeSettings`. The batch of "moving_average" is a chunk: 16
            samples, fewer where a sample has more than 65,536 values.
        percentile: of |x|, in %, for the method "percentile".
        value_range: what values float inputs may have; None accepts all finite ones.

    Returns:
        scale = range / 127 for every tensor, with `method` as its source. A tensor that is zero on every sample gets
        a small positive scale and a note: dead channels and unused branches are common and harmless.

    Raises:
        UsageError: unknown method, or a percentile out of range.
        DataError: no samples, or samples of the wrong type, shape or range, or all of one value.
        ModelError: a tensor becomes NaN or infinite, every tensor is zero on every sample, or the graph does not run.
    """
    QuantizeSettings(method=method, percentile=percentile)  # refuses what it does not know, before any work
    histograms, samples = collect(model, tensors, batches, value_range)
    zero = [name for name, histogram in histograms.items() if histogram.amax == 0]
    if tensors and len(zero) == len(histograms):
        raise ModelError(
            f"All {len(zero)} activations are zero on all {samples} calibration samples: the network is dead.",
            hint="Check the checkpoint's accuracy, then train again.",
        )
    with ThreadPoolExecutor(_workers()) as pool:
        found = pool.map(lambda histogram: _scale(histogram, method, percentile), histograms.values())
        scales = dict(zip(histograms, found, strict=True))
    notes = [f"activation {name} is zero on all {samples} calibration samples" for name in zero]
    return Calibration(scales, samples, notes)


def _workers() -> int:
    return min(MOST_WORKERS, os.cpu_count() or 1)


def _scale(histogram: Histogram, method: Method, percentile: float) -> Scale:
    reach = threshold(histogram, method, percentile)
    step = max(reach / LEVELS, SMALLEST_SCALE) if reach else ZERO_TENSOR_SCALE
    return Scale(float(np.float32(step)), method)


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Batch], value_range: Range | None = PIXELS
) -> tuple[dict[str, Histogram], int]:
    """Histograms of |x| of `tensors` over all samples, and the number of samples; see `calibrate`."""
    session, exposed = _session(model, tensors)
    inputs = [InputSpec.of(node) for node in session.get_inputs()]
    histograms = {name: Histogram() for name in tensors}
    extent = {spec.name: (math.inf, -math.inf) for spec in inputs}
    samples = 0

    def measure(first: int, chunk: Chunk) -> dict[str, Histogram]:
        values = {**chunk, **_run(session, exposed, chunk)}
        return {name: _histogram(name, values[name], first, len(chunk[inputs[0].name])) for name in tensors}

    for chunk, found in _side_by_side(measure, chunks(batches, inputs, value_range)):
        for name, histogram in found.items():
            histograms[name].merge(histogram)
        for name, array in chunk.items():
            low, high = extent[name]
            extent[name] = min(low, float(array.min())), max(high, float(array.max()))
        samples += len(chunk[inputs[0].name])
    if all(low == high for low, high in extent.values()):
        raise DataError(
            f"All {samples} calibration samples consist of the one value {extent[inputs[0].name][0]}; expected images.",
            hint="Check that the calibration set holds real images.",
        )
    return histograms, samples


def _side_by_side(
    measure: Callable[[int, Chunk], dict[str, Histogram]], source: Iterable[Chunk]
) -> Iterator[tuple[Chunk, dict[str, Histogram]]]:
    """Every chunk with what `measure` makes of it, in the order of chunks, a few of them computed at a time."""
    workers = _workers()
    waiting: deque[tuple[Chunk, Future[dict[str, Histogram]]]] = deque()
    first = 0
    with ThreadPoolExecutor(workers) as pool:
        for chunk in source:
            waiting.append((chunk, pool.submit(measure, first, chunk)))
            first += len(next(iter(chunk.values())))
            if len(waiting) > workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _run(session: onnxruntime.InferenceSession, exposed: list[str], chunk: Chunk) -> dict[str, np.ndarray]:
    if not exposed:  # an empty list of names would mean all outputs
        return {}
    outputs = _guarded(lambda: session.run(exposed, chunk))
    return {name: np.asarray(output) for name, output in zip(exposed, outputs, strict=True)}


def _histogram(name: str, values: np.ndarray, first: int, count: int) -> Histogram:
    try:
        return Histogram.of(values, thinning(values.shape))
    except FloatingPointError:
        raise ModelError(
            f"Activation {name} is NaN or infinite.",
            where=f"calibration samples {first} to {first + count - 1}",
            hint="The float network overflows on real images: train again with a lower learning rate.",
        ) from None


def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnxruntime.InferenceSession, list[str]]:
    index = GraphIndex(model)
    unknown = [name for name in tensors if name not in index.producers and name not in index.inputs]
    if unknown:
        raise ModelError(f"The graph computes no tensor {', '.join(unknown)}.")
    exposed = [name for name in tensors if name not in index.inputs]
    probe = copy_model(model)
    have = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in exposed if name not in have
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the same sums on every machine
    options.enable_mem_pattern = False  # blocks planned for each run would pile up where several run side by side
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = _guarded(lambda: onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=providers))
    return session, exposed


def _guarded(action: Callable[[], Any]) -> Any:
    """What `action` returns; ONNX Runtime's own errors become a message."""
    try:
        return action()
    except Exception as error:
        # its error classes have no public base and no public names
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the float graph: {reason}",
            hint="Run `compress lint` on the file.",
        ) from error
