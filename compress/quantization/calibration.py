"""Scales after training: ranges of activations streamed through ONNX Runtime, ranges of weights from the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from compress.errors import DataError, ModelError, UsageError
from compress.onnx_graph.graph import GraphIndex, copy_model
from compress.onnx_graph.placement import placements
from compress.onnx_graph.scales import LEVELS, Scale
from compress.onnx_graph.signs import half_range_oracle
from compress.quantization.scheme import Scheme

Method = Literal["minmax", "entropy"]
BINS = 4096  # the range fills more than half of them, so at least the 2,048 of Migacz's method cover it
QUANTIZED_LEVELS = 128  # of |x| in int8
CLIPPED_LIMIT = 0.05  # of the values; see entropy_threshold
CHUNK_SAMPLES = 32  # run at a time: memory does not depend on how many samples there are
# A tensor that is zero on every sample gets this step: any positive one reproduces zeros, and one this small would
# also carry a later non-zero value of moderate size without saturating the int32 bias (see the QAT observers).
ZERO_TENSOR_SCALE = 2.0**-12
SMALLEST_SCALE = 2.0**-24


class Histogram:
    """Counts of |x| in bins that grow with the data, and the largest |x|; constant memory.

    The bins cover [0, limit) with `limit` a power of two above the largest |x| seen. A larger value doubles the limit
    and merges bins in pairs, which is exact, so that the result does not depend on how samples were batched.
    """

    def __init__(self) -> None:
        self.amax = 0.0
        self.limit = 0.0  # 0 until a value differs from zero
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape."""
        sizes = np.abs(values, dtype=np.float32).reshape(-1)
        top = float(sizes.max(initial=0.0))
        self.amax = max(self.amax, top)
        if top >= self.limit and top > 0:
            self._grow(math.ldexp(1.0, math.frexp(top)[1]))
        if self.limit == 0:
            self.counts[0] += sizes.size
            return
        # the factor is a power of two, so the product is exact and floor() puts no value into a wrong bin
        positions = (sizes * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(positions, minlength=BINS)

    def _grow(self, limit: float) -> None:
        while 0 < self.limit < limit and self.counts[1:].any():
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        self.limit = limit

    @property
    def width(self) -> float:
        """Of one bin, in the tensor's unit."""
        return self.limit / BINS


def entropy_threshold(histogram: Histogram) -> float:
    """The range [0, t] whose 128-level quantization loses the least information (Migacz, 2017, GTC talk S7310).

    t minimizes `kl_divergences`. Three repairs, all for shapes on which the plain method fails: the first bin is set
    to its neighbour's count, because the many exact zeros behind a Relu are represented by any scale and would
    otherwise drown the rest; a range below a sixteenth of the largest |x| is not considered (128 of 2,048 bins, as in
    the talk); nor is one that clips more than 5 % of the values, because the divergence sees the shape of what is
    left and not how far clipped values move.

    Returns:
        t, in the tensor's unit, 0 < t <= the largest |x|; 0 for a tensor of zeros.
    """
    if histogram.amax == 0:
        return 0.0
    used = int(histogram.amax / histogram.width) + 1
    counts = histogram.counts[:used].astype(np.float64)
    counts[0] = counts[1]
    candidates = np.arange(max(QUANTIZED_LEVELS, used // 16), used + 1)
    kept = np.cumsum(counts)[candidates - 1] / max(counts.sum(), 1)
    candidates = candidates[kept >= 1 - CLIPPED_LIMIT]
    if candidates.size == 0:
        return histogram.amax
    best = int(candidates[np.argmin(kl_divergences(counts, candidates))])
    return min((best + 0.5) * histogram.width, histogram.amax)


def kl_divergences(counts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """KL(P || Q) for every candidate range, in nats, from cumulative sums instead of loops.

    P is the distribution of |x| with everything beyond the range counted in its last bin. Q is P without that clipped
    mass, averaged within each of 128 levels over the bins that are not empty in P. Where only clipped mass is in the
    last level, Q counts one sample there: an infinite divergence would let a single outlier forbid all clipping.

    Args:
        counts: of |x| in equal bins from 0, (bins,), float.
        candidates: ranges in bins, (n,), each from 128 to `len(counts)`, with values below each of them.

    Returns:
        (n,), float.
    """
    total = counts.sum()
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    nonempty = np.concatenate([[0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    clipped = total - sums[candidates]
    last = counts[candidates - 1]

    edges = candidates[:, None] * np.arange(QUANTIZED_LEVELS + 1) // QUANTIZED_LEVELS
    mass = np.diff(sums[edges], axis=1)  # of Q, per level
    bins = np.diff(nonempty[edges], axis=1)
    reference = mass.copy()  # of P, per level
    reference[:, -1] += clipped
    bins[:, -1] += (last == 0) & (clipped > 0)  # the clipped mass fills the last bin of P
    mass[:, -1] = np.where((mass[:, -1] == 0) & (clipped > 0), 1.0, mass[:, -1])
    filled = reference > 0
    log_q = np.log(np.where(filled, mass, 1.0) / np.where(filled, bins, 1))
    own = entropy[candidates - 1] + _x_log_x(last + clipped)
    return (own - (reference * log_q).sum(axis=1)) / total - np.log(total) + np.log(sums[candidates])


def _x_log_x(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1.0))


@dataclass
class Calibration:
    """Scales of the tensors asked for, how many samples they rest on, and what a person should know."""

    scales: dict[str, Scale]
    samples: int
    notes: list[str] = field(default_factory=list)


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray], method: Method = "entropy"
) -> Calibration:
    """Run samples through a float graph and choose a scale for each of `tensors`.

    Args:
        model: float graph with one image input.
        tensors: names of activations (the graph input may be one).
        batches: images, (n, channels, height, width), float32 in [0, 1]; read once, a chunk at a time.
        method: "minmax" takes the largest |x|, "entropy" the threshold of least information loss.

    Returns:
        scale = threshold / 127 for every tensor, with `method` as its source. A tensor that is zero on every sample
        gets a small positive scale and a note: dead channels and unused branches are common and harmless.

    Raises:
        UsageError: unknown method.
        DataError: no samples, or samples of the wrong type, shape or range, or all of one value.
        ModelError: a tensor becomes NaN or infinite, or every tensor is zero on every sample.
    """
    if method not in get_args(Method):
        raise UsageError(f"Unknown calibration method {method!r}; expected one of {', '.join(get_args(Method))}.")
    histograms, samples = collect(model, tensors, batches)
    zero = [name for name, histogram in histograms.items() if histogram.amax == 0]
    if tensors and len(zero) == len(histograms):
        raise ModelError(
            f"All {len(zero)} activations are zero on all {samples} calibration samples: the network is dead.",
            hint="Check the checkpoint's accuracy, then train again.",
        )
    scales = {}
    for name, histogram in histograms.items():
        threshold = histogram.amax if method == "minmax" else entropy_threshold(histogram)
        step = max(threshold / LEVELS, SMALLEST_SCALE) if threshold else ZERO_TENSOR_SCALE
        scales[name] = Scale(float(np.float32(step)), method)
    notes = [f"activation {name} is zero on all {samples} calibration samples" for name in zero]
    return Calibration(scales, samples, notes)


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]
) -> tuple[dict[str, Histogram], int]:
    """Histograms of |x| of `tensors` over all samples, and the number of samples; see `calibrate`."""
    session, exposed = _session(model, tensors)
    source = session.get_inputs()[0]
    histograms = {name: Histogram() for name in tensors}
    samples, low, high = 0, math.inf, -math.inf
    for chunk in _chunks(batches, source.name, tuple(source.shape)):
        # an empty list of names would mean all outputs
        outputs = [np.asarray(output) for output in session.run(exposed, {source.name: chunk})] if exposed else []
        values = {source.name: chunk, **dict(zip(exposed, outputs, strict=True))}
        for name, histogram in histograms.items():
            if not np.isfinite(values[name]).all():
                raise ModelError(
                    f"Activation {name} is NaN or infinite.",
                    where=f"calibration samples {samples} to {samples + len(chunk) - 1}",
                    hint="The float network overflows on real images: train again with a lower learning rate.",
                )
            histogram.add(values[name])
        samples += len(chunk)
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if samples == 0:
        raise DataError("There are no calibration samples; expected at least one.", hint="Raise `samples`.")
    if low == high:
        raise DataError(
            f"All {samples} calibration samples consist of the one value {low}; expected images.",
            hint="Check that the calibration set holds real images.",
        )
    return histograms, samples


def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnxruntime.InferenceSession, list[str]]:
    index = GraphIndex(model)
    if len(index.inputs) != 1:
        raise ModelError(f"The graph has {len(index.inputs)} inputs ({', '.join(index.inputs)}); expected one.")
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
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, exposed


def _chunks(batches: Iterable[np.ndarray], name: str, shape: tuple[int | str, ...]) -> Iterator[np.ndarray]:
    start = 0
    for batch in batches:
        _require_images(batch, name, shape, f"calibration samples from {start}")
        for first in range(0, len(batch), CHUNK_SAMPLES):
            yield np.ascontiguousarray(batch[first : first + CHUNK_SAMPLES])
        start += len(batch)


def _require_images(batch: np.ndarray, name: str, shape: tuple[int | str, ...], where: str) -> None:
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        got = getattr(batch, "dtype", type(batch).__name__)
        raise DataError(
            f"A calibration batch is {got}; expected a float32 numpy array.",
            where=where,
            hint="Convert with images.astype(numpy.float32) / 255.",
        )
    wrong = any(isinstance(want, int) and want != got for want, got in zip(shape[1:], batch.shape[1:], strict=False))
    if batch.ndim != len(shape) or wrong:
        raise DataError(
            f"A calibration batch has shape {batch.shape}; input {name} expects {shape}.",
            where=where,
            hint="Calibrate with images of the size and channels that the network was trained on.",
        )
    # not (a and b) rather than (not a or not b): NaN fails both comparisons
    if batch.size and not (batch.min() >= 0 and batch.max() <= 1):
        raise DataError(
            f"A calibration batch has values from {batch.min()} to {batch.max()}; expected [0, 1].",
            where=where,
            hint="Divide pixels by 255; normalisation is inside the graph.",
        )


def weight_scales(model: onnx.ModelProto, known: Mapping[str, Scale]) -> tuple[dict[str, Scale], list[str]]:
    """Symmetric scales, one per output channel, for every weight that is to be quantized and is not in `known`.

    Returns:
        scale = max |w| / 127 per channel, / 63 where `Scheme` has 7 bits, source "weights"; and notes. A channel of
        zeros gets the largest scale of its tensor, because a tiny one would push the channel's bias out of int32.
    """
    index, spots = GraphIndex(model), placements(model)
    half_range = half_range_oracle(index)
    activations = {spot.node.output[0]: spot.tensor for spot in spots if spot.position == 0}
    scales: dict[str, Scale] = {}
    notes = []
    for spot in spots:
        if spot.axis is None or spot.quantized or spot.tensor in known or spot.tensor in scales:
            continue
        weight = index.required(spot.tensor, "weight")
        other = tuple(axis for axis in range(weight.ndim) if axis != spot.axis)
        largest = np.abs(weight.astype(np.float64)).max(axis=other)
        dead = int((largest == 0).sum())
        if dead:
            notes.append(f"weight {spot.tensor}: {dead} of {largest.size} output channels are zero")
        _, levels = Scheme().weight_range(half_range=half_range(activations[spot.node.output[0]]))
        fallback = largest.max() / levels if dead < largest.size else ZERO_TENSOR_SCALE
        steps = np.where(largest > 0, np.maximum(largest / levels, SMALLEST_SCALE), fallback).astype(np.float32)
        scales[spot.tensor] = Scale(tuple(map(float, steps)), "weights", spot.axis)
    return scales, notes
