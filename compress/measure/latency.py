"""Latency of several variants in one process, interleaved so that a drifting machine cannot favour one of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from compress.errors import NotComparableError
from compress.measure.statistics import Drift, RatioEstimate, drift, percentile, ratio_interval

Call = Callable[[], object]
Clock = Callable[[], int]

BLOCKS = 20
SLOT_ITERATIONS = 50
SLOT_MS = 50.0
WARMUP_ITERATIONS = 50
WARMUP_MS = 2000.0
P99_SAMPLES = 1000


def _ignore() -> None:
    """Do nothing after a block."""


@dataclass(frozen=True)
class LatencySamples:
    """All that one variant's calls took.

    `samples_ms` holds every iteration in time order; `block_ms` one number a block: the median of the variant's slot,
    or the geometric mean of the two medians where it had two (ABBA). Both in milliseconds per call, > 0.
    """

    samples_ms: tuple[float, ...]
    block_ms: tuple[float, ...]

    @cached_property
    def ordered_ms(self) -> tuple[float, ...]:
        """Every iteration, ascending."""
        return tuple(sorted(self.samples_ms))

    def percentile_ms(self, percent: float) -> float:
        """Latency that `percent` of the iterations did not exceed, in milliseconds (linear interpolation)."""
        return percentile(self.ordered_ms, percent)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile, or None below 1,000 iterations, where fewer than ten would lie above it."""
        return self.percentile_ms(99) if len(self.samples_ms) >= P99_SAMPLES else None


@dataclass(frozen=True)
class Measurement:
    """Samples of every variant, their drift, and how often the machine was measured to get them (1 or 2)."""

    samples: dict[str, LatencySamples]
    drift: dict[str, Drift]
    attempts: int


def measure_interleaved(
    calls: Mapping[str, Call],
    *,
    blocks: int = BLOCKS,
    slot_iterations: int = SLOT_ITERATIONS,
    slot_ms: float = SLOT_MS,
    warmup_iterations: int = WARMUP_ITERATIONS,
    warmup_ms: float = WARMUP_MS,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    on_block: Callable[[], object] = _ignore,
) -> dict[str, LatencySamples]:
    """Time every variant in every block, in random order.

    Two variants get a slot order of ABBA or BAAB, so that linear drift cancels inside a block; any other number gets
    one slot each in a shuffled order. A call must return only when its result is there.

    Args:
        calls: variant -> one inference; the same batch for all of them.
        blocks: how many, >= 2 for an interval.
        slot_iterations: least calls in a slot, >= 1.
        slot_ms: least duration of a slot, milliseconds.
        warmup_iterations: least calls of each variant before the first block.
        warmup_ms: least warm-up of each variant, milliseconds.
        seed: of the order.
        clock: nanoseconds, monotonic.
        on_block: called after each block, outside of everything that is timed.

    Returns:
        Variant -> samples, in the order of `calls`.

    Raises:
        ValueError: no calls, or a count below 1.
        NotComparableError: a slot whose median is 0 ns: the clock is too coarse for the call.
    """
    if not calls or blocks < 1 or slot_iterations < 1:
        raise ValueError(
            f"expected calls, blocks >= 1 and slot_iterations >= 1, got {len(calls)}, {blocks}, {slot_iterations}"
        )
    for call in calls.values():
        _warm_up(call, warmup_iterations, warmup_ms, clock)
    chance = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    block_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        logs: dict[str, list[float]] = {name: [] for name in calls}
        for name in _block_order(list(calls), chance):
            slot = _time_slot(calls[name], slot_iterations, slot_ms, clock)
            median = percentile(sorted(slot), 50)
            if median <= 0:
                raise NotComparableError(
                    "a call took 0 ns, expected a clock that resolves it", where=name, hint="measure a larger batch"
                )
            samples[name].extend(slot)
            logs[name].append(math.log(median))
        for name, values in logs.items():
            block_ms[name].append(math.exp(math.fsum(values) / len(values)))
        on_block()
    return {name: LatencySamples(tuple(samples[name]), tuple(block_ms[name])) for name in calls}


def measure_stable(
    calls: Mapping[str, Call],
    *,
    blocks: int = BLOCKS,
    slot_iterations: int = SLOT_ITERATIONS,
    slot_ms: float = SLOT_MS,
    warmup_iterations: int = WARMUP_ITERATIONS,
    warmup_ms: float = WARMUP_MS,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    on_block: Callable[[], object] = _ignore,
) -> Measurement:
    """`measure_interleaved`, and once more where a variant drifted; the second measurement stands either way.

    Args and errors are those of `measure_interleaved`.

    Returns:
        The samples with each variant's drift; one that is still unstable decides no latency gate.
    """
    attempt, unstable = 0, True
    samples: dict[str, LatencySamples] = {}
    trends: dict[str, Drift] = {}
    while unstable and attempt < 2:
        samples = measure_interleaved(
            calls,
            blocks=blocks,
            slot_iterations=slot_iterations,
            slot_ms=slot_ms,
            warmup_iterations=warmup_iterations,
            warmup_ms=warmup_ms,
            seed=seed + attempt,
            clock=clock,
            on_block=on_block,
        )
        trends = {name: drift(taken.block_ms) for name, taken in samples.items()}
        unstable = any(trend.unstable for trend in trends.values())
        attempt += 1
    return Measurement(samples, trends, attempt)


def latency_ratio(variant: LatencySamples, twin: LatencySamples) -> RatioEstimate:
    """latency(variant) / latency(twin), block by block: below 1 the variant is faster.

    Args:
        variant: measured in the same blocks as `twin`.
        twin: its float twin, in the same kind of session on the same device.

    Returns:
        Geometric mean over the blocks with its 95 % t interval.

    Raises:
        ValueError: the two have different numbers of blocks, or fewer than 2.
    """
    if len(variant.block_ms) != len(twin.block_ms):
        raise ValueError(f"expected the same blocks, got {len(variant.block_ms)} and {len(twin.block_ms)}")
    pairs = zip(variant.block_ms, twin.block_ms, strict=True)
    return ratio_interval([math.log(of_variant) - math.log(of_twin) for of_variant, of_twin in pairs])


def _block_order(names: list[str], chance: random.Random) -> list[str]:
    order = list(names)
    chance.shuffle(order)
    return order + order[::-1] if len(order) == 2 else order


def _warm_up(call: Call, iterations: int, least_ms: float, clock: Clock) -> None:
    done, start = 0, clock()
    while done < iterations or (clock() - start) / 1e6 < least_ms:
        call()
        done += 1


def _time_slot(call: Call, iterations: int, least_ms: float, clock: Clock) -> list[float]:
    taken: list[float] = []
    start = clock()
    elapsed_ns = 0
    while len(taken) < iterations or elapsed_ns / 1e6 < least_ms:
        before = clock()
        call()
        after = clock()
        taken.append((after - before) / 1e6)
        elapsed_ns = after - start
    return taken
