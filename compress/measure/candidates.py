"""Graphs of one network that differ in what is quantized: which of them is faster on this machine's processor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.engines.session import Arrays
from compress.measure.latency import LatencySamples, measure_interleaved
from compress.measure.quantiles import quantile_interval
from compress.onnx_graph.loading import checked_bytes

SECONDS = 2.0  # of one measurement, about
TOLERANCE = 0.02  # a file beside itself, on a processor that was busy with other work: 0.983 to 1.016 in 30 tries
LEAST_BLOCKS = 12  # with fewer than 10 the interval of a median has no ends
SLOT_MS = 2.0
WARMUP_MS = 50.0


@dataclass(frozen=True)
class LatencyRatio:
    """Median over blocks of one latency over another: below 1 the first is faster.

    `low` and `high` are the 95 % interval of that median, infinite where there are too few blocks for an end.
    """

    ratio: float
    low: float
    high: float
    blocks: int

    @property
    def faster(self) -> bool:
        """Whether the first is faster by more than the tolerance, beyond the noise of this measurement."""
        return self.high < 1 - TOLERANCE

    def as_json(self) -> dict[str, Any]:
        """Plain values, ratios to ten-thousandths; null for an end that is infinite."""
        ends = {"low": self.low, "high": self.high}
        rounded = {name: round(end, 4) if math.isfinite(end) else None for name, end in ends.items()}
        return {"ratio": round(self.ratio, 4), **rounded, "blocks": self.blocks}


def time_together(
    graphs: Mapping[str, onnx.ModelProto], feed: Arrays, *, threads: int = 1, seconds: float = SECONDS
) -> dict[str, LatencySamples]:
    """Time graphs in ONNX Runtime, in this process, in slots of a few milliseconds that take turns.

    Many short blocks: what slows the machine slows all graphs of a block, and the median over blocks does not notice
    the few in which it did not.

    Args:
        graphs: by name, 2 or more.
        feed: inputs of one call.
        threads: of every session, >= 1.
        seconds: about so long, > 0, loading and warm-up apart; longer where 12 blocks take longer.

    Returns:
        By name; blocks belong together.

    Raises:
        ModelError: ONNX Runtime refuses a graph, or fails on the inputs.
        NotComparableError: a call takes less than the clock resolves.
    """
    sessions = {name: _session(graph, threads) for name, graph in graphs.items()}
    calls = {name: session.timed(feed) for name, session in sessions.items()}
    call_ms = max(min(call() for _ in range(3)) for call in calls.values())
    slots = 2 if len(calls) == 2 else 1  # as `measure_interleaved` has them
    block_ms = slots * len(calls) * (max(SLOT_MS, call_ms) + call_ms)
    taken = measure_interleaved(
        calls,
        blocks=max(LEAST_BLOCKS, int(1000 * seconds / block_ms)),
        rounds=1,
        slot_iterations=1,
        slot_ms=SLOT_MS,
        warmup_iterations=1,
        warmup_ms=WARMUP_MS,
    )
    for session in sessions.values():
        session.close()
    return taken


def median_ratio(one: LatencySamples, other: LatencySamples) -> LatencyRatio:
    """Latency of one graph over that of another, both from the same call of `time_together`."""
    ratios = [mine / its for mine, its in zip(one.block_ms, other.block_ms, strict=True)]
    interval = quantile_interval([[ratio] for ratio in ratios], 50)
    return LatencyRatio(statistics.median(ratios), interval.low, interval.high, len(ratios))


def _session(graph: onnx.ModelProto, threads: int) -> OnnxRuntimeSession:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(checked_bytes(graph))
        return OnnxRuntimeSession.load(file, threads=threads)
