"""Latency of several variants in one process, interleaved so that a drifting machine cannot favour one of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from compress.errors import NotComparableError
from compress.measure.quantiles import quantile_interval
from compress.measure.statistics import (
    Drift,
    Interval,
    RatioEstimate,
    drift,
    percentile,
    ratio_interval,
)

TimedCall = Callable[[], float]  # one inference; returns its duration in ms, by the timer of what ran it
Clock = Callable[[], int]
OnBlock = Callable[[int, int], object]  # blocks done, blocks in all

BLOCKS = 20
ROUNDS = 10
SLOT_ITERATIONS = 50
SLOT_MS = 50.0
HARNESS_VERSION = 1  # bump when the same model would get other figures; reports of two versions are not comparable
WARMUP_ITERATIONS = 50
WARMUP_MS = 2000.0
LEAST_BLOCKS = 6  # with 5, Kendall's test for drift could never reach p < .01: its smallest p is .0167, with 6 .0028
P99_SAMPLES = 1000
P99_INTERVAL_SAMPLES = 5000
TIMINGS_OF_ESTIMATE = 25


def _ignore(done: int, total: int) -> None:
    """Do nothing after a block."""


@dataclass(frozen=True)
class LatencySamples:
    """All that one variant's calls took.

    `iterations_ms` holds every iteration of every block in time order; `block_ms` one number a block: the geometric
    mean of the medians of the variant's slots. Both in milliseconds per call, > 0.
    """

    iterations_ms: tuple[tuple[float, ...], ...]
    block_ms: tuple[float, ...]

    @cached_property
    def samples_ms(self) -> tuple[float, ...]:
        """Every iteration in time order."""
        return tuple(chain.from_iterable(self.iterations_ms))

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

    @property
    def p99_interval_ms(self) -> Interval | None:
        """95 % interval of the 99th percentile; None below 5,000 iterations, and where slow ones cluster too much."""
        if len(self.samples_ms) < P99_INTERVAL_SAMPLES or len(self.iterations_ms) < 2:
            return None
        interval = quantile_interval(self.iterations_ms, 99)
        return interval if math.isfinite(interval.low) and math.isfinite(interval.high) else None

    @property
    def calls_per_s(self) -> float:
        """Calls per second of their own duration, over all iterations."""
        return 1000 * len(self.samples_ms) / math.fsum(self.samples_ms)


@dataclass(frozen=True)
class Measurement:
    """Samples of every variant, their drift, and how often the machine was measured to get them (1 or 2)."""

    samples: dict[str, LatencySamples]
    drift: dict[str, Drift]
    attempts: int


def measure_interleaved(
    calls: Mapping[str, TimedCall],
    *,
    blocks: int = BLOCKS,
    rounds: int = ROUNDS,
    budget_s: float | None = None,
    slot_iterations: int = SLOT_ITERATIONS,
    slot_ms: float = SLOT_MS,
    warmup_iterations: int = WARMUP_ITERATIONS,
    warmup_ms: float = WARMUP_MS,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    on_block: OnBlock = _ignore,
) -> dict[str, LatencySamples]:
    """Time every variant in every round of every block, in random order.

    Two variants get slots in the order ABBA or BAAB, so that linear drift cancels; any other number one slot each in
    a shuffled order. Rounds are short, so that a disturbance hits all variants; blocks are long, so that they are
    independent. A slot begins with one call that does not count: it meets the caches that another variant left.

    Args:
        calls: variant -> one inference, e.g. from `Session.timed`; the same batch for all of them.
        blocks: how many, >= 2 for an interval.
        rounds: of a block, >= 1; they share its iterations and its duration.
        budget_s: seconds in all, warm-up included: replaces `blocks` by as many as fit, at least 6. None: no budget.
        slot_iterations: least calls of a variant in a block, >= 1; of two variants, twice as many.
        slot_ms: least duration of the same, milliseconds of `clock`.
        warmup_iterations: least calls of each variant before the first block.
        warmup_ms: least warm-up of each variant, milliseconds of `clock`.
        seed: of the order.
        clock: nanoseconds, monotonic; it ends slots, the calls time themselves.
        on_block: called with the blocks done and in all after each block, outside of everything that is timed.

    Returns:
        Variant -> samples, in the order of `calls`.

    Raises:
        ValueError: no calls, a count below 1, or a budget that is not positive.
        NotComparableError: a slot whose median is 0 ms: the timer is too coarse for the call.
    """
    _check_plan(len(calls), blocks, rounds, slot_iterations, budget_s)
    start = clock()
    slot = _Slot(math.ceil(slot_iterations / rounds), slot_ms / rounds, clock)
    least = warmup_iterations if budget_s is None else max(1, warmup_iterations)  # one to estimate from
    per_call_ms = [_warm_up(call, least, warmup_ms, clock) for call in calls.values()]
    if budget_s is not None:
        left_ms = 1000 * budget_s - (clock() - start) / 1e6
        blocks = _blocks_that_fit(left_ms, per_call_ms, rounds, slot)
    chance = random.Random(seed)
    iterations: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    block_ms: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(1, blocks + 1):
        for name, slots in _time_block(calls, rounds, slot, chance).items():
            iterations[name].append(tuple(chain.from_iterable(slots)))
            block_ms[name].append(math.exp(math.fsum(_log_median(one, name) for one in slots) / len(slots)))
        on_block(done, blocks)
    return {name: LatencySamples(tuple(iterations[name]), tuple(block_ms[name])) for name in calls}


def measure_stable(
    calls: Mapping[str, TimedCall],
    *,
    blocks: int = BLOCKS,
    rounds: int = ROUNDS,
    budget_s: float | None = None,
    slot_iterations: int = SLOT_ITERATIONS,
    slot_ms: float = SLOT_MS,
    warmup_iterations: int = WARMUP_ITERATIONS,
    warmup_ms: float = WARMUP_MS,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    on_block: OnBlock = _ignore,
) -> Measurement:
    """`measure_interleaved`, and once more where a variant drifted; the second measurement stands either way.

    Args and errors are those of `measure_interleaved`; a budget holds for each of the two, and `on_block` goes on
    counting in the second, whose blocks add to those in all.

    Returns:
        The samples with each variant's drift; one that is still unstable decides no latency gate.
    """
    attempt, unstable, before = 0, True, 0

    def count(done: int, total: int) -> None:
        on_block(before + done, before + total)

    samples: dict[str, LatencySamples] = {}
    trends: dict[str, Drift] = {}
    while unstable and attempt < 2:
        samples = measure_interleaved(
            calls,
            blocks=blocks,
            rounds=rounds,
            budget_s=budget_s,
            slot_iterations=slot_iterations,
            slot_ms=slot_ms,
            warmup_iterations=warmup_iterations,
            warmup_ms=warmup_ms,
            seed=seed + attempt,
            clock=clock,
            on_block=count,
        )
        before += len(next(iter(samples.values())).block_ms)
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


@dataclass(frozen=True)
class _Slot:
    """When a slot ends: after that many calls and that much time."""

    iterations: int
    least_ms: float
    clock: Clock


def _check_plan(calls: int, blocks: int, rounds: int, slot_iterations: int, budget_s: float | None) -> None:
    if min(calls, blocks, rounds, slot_iterations) < 1:
        raise ValueError(
            "expected calls, and blocks, rounds and slot_iterations >= 1, "
            f"got {calls}, {blocks}, {rounds}, {slot_iterations}"
        )
    if budget_s is not None and budget_s <= 0:
        raise ValueError(f"expected a budget > 0 s, got {budget_s}")


def _round_order(names: list[str], chance: random.Random) -> list[str]:
    order = list(names)
    chance.shuffle(order)
    return order + order[::-1] if len(order) == 2 else order


def _blocks_that_fit(left_ms: float, per_call_ms: list[float], rounds: int, slot: _Slot) -> int:
    slots = 2 if len(per_call_ms) == 2 else 1
    # A slot that ends by its duration runs on until the call under way is done: half a call on average.
    slot_ms = (one + max(slot.iterations * one, slot.least_ms + one / 2) for one in per_call_ms)
    return max(LEAST_BLOCKS, math.floor(left_ms / (rounds * slots * math.fsum(slot_ms))))


def _warm_up(call: TimedCall, iterations: int, least_ms: float, clock: Clock) -> float:
    """Run until both are reached; returns milliseconds of `clock` a call, over the last ones (0 for no call)."""
    ends = [clock()]
    while len(ends) <= iterations or (ends[-1] - ends[0]) / 1e6 < least_ms:
        call()
        ends.append(clock())
    last = ends[-TIMINGS_OF_ESTIMATE - 1 :]
    return (last[-1] - last[0]) / max(len(last) - 1, 1) / 1e6


def _time_block(
    calls: Mapping[str, TimedCall], rounds: int, slot: _Slot, chance: random.Random
) -> dict[str, list[list[float]]]:
    """Milliseconds of every call, by variant and slot."""
    slots: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in _round_order(list(calls), chance):
            slots[name].append(_time_slot(calls[name], slot))
    return slots


def _time_slot(call: TimedCall, slot: _Slot) -> list[float]:
    call()
    taken: list[float] = []
    start = slot.clock()
    while len(taken) < slot.iterations or (slot.clock() - start) / 1e6 < slot.least_ms:
        taken.append(call())
    return taken


def _log_median(slot: list[float], name: str) -> float:
    median = percentile(sorted(slot), 50)
    if median <= 0:
        raise NotComparableError(
            "a call took 0 ms, expected a timer that resolves it", where=name, hint="measure a larger batch"
        )
    return math.log(median)
