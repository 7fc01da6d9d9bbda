from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import pytest
from scipy import stats

from compress.engines.session import wall_timed
from compress.errors import NotComparableError
from compress.measure.latency import (
    LEAST_BLOCKS,
    LatencySamples,
    TimedCall,
    latency_ratio,
    measure_interleaved,
    measure_stable,
)
from compress.measure.statistics import drift


class Machine:
    """A clock that only the calls advance, and a log of who ran."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now_ms: 1.0) -> None:
        self.now_ns = 0
        self.ran: list[str] = []
        self.slowdown = slowdown

    def clock(self) -> int:
        return self.now_ns

    def call(self, name: str, cost_ms: float) -> TimedCall:
        def run() -> float:
            self.ran.append(name)
            taken_ns = round(cost_ms * self.slowdown(self.now_ns / 1e6) * 1e6)
            self.now_ns += taken_ns
            return taken_ns / 1e6

        return run


def slots(ran: list[str], iterations: int) -> list[str]:
    """Names of the slots, given that every slot has the same number of calls, and one more that does not count."""
    names = ran[:: iterations + 1]
    assert ran == [name for name in names for _ in range(iterations + 1)]
    return names


def test_two_variants_run_abba_or_baab_in_every_round() -> None:
    machine = Machine()
    calls = {"float": machine.call("A", 2.0), "int8": machine.call("B", 1.0)}
    found = measure_interleaved(
        calls, blocks=5, rounds=4, slot_iterations=12, slot_ms=0, warmup_iterations=0, warmup_ms=0, seed=1,
        clock=machine.clock,
    )  # fmt: skip
    names = slots(machine.ran, 3)
    rounds = ["".join(names[i : i + 4]) for i in range(0, len(names), 4)]
    assert len(rounds) == 5 * 4
    assert set(rounds) == {"ABBA", "BAAB"}
    assert list(found) == ["float", "int8"]
    assert found["float"].samples_ms == (2.0,) * (5 * 2 * 12)
    assert found["float"].block_ms == pytest.approx((2.0,) * 5)


def test_more_variants_all_run_in_every_round_in_a_random_order() -> None:
    machine = Machine()
    calls = {name: machine.call(name, 1.0) for name in "ABCDE"}
    measure_interleaved(
        calls, blocks=5, rounds=2, slot_iterations=4, slot_ms=0, warmup_iterations=0, warmup_ms=0, seed=0,
        clock=machine.clock,
    )  # fmt: skip
    names = slots(machine.ran, 2)
    rounds = ["".join(names[i : i + 5]) for i in range(0, len(names), 5)]
    assert len(rounds) == 10
    assert all(sorted(one) == list("ABCDE") for one in rounds)
    assert len(set(rounds)) > 5


def test_the_first_call_of_a_slot_does_not_count() -> None:
    costs = {"a": iter([9.0, 1.0, 1.0] * 6), "b": iter([9.0, 2.0, 2.0] * 6)}
    found = measure_interleaved(
        {name: lambda of=of: next(of) for name, of in costs.items()},
        blocks=3, rounds=1, slot_iterations=2, slot_ms=0, warmup_iterations=0, warmup_ms=0,
    )  # fmt: skip
    assert set(found["a"].samples_ms) == {1.0}
    assert set(found["b"].samples_ms) == {2.0}


def test_a_disturbance_longer_than_a_round_hits_both_variants() -> None:
    def spread(rounds: int) -> float:
        # The machine is slower by half in every other 130 ms.
        machine = Machine(slowdown=lambda now_ms: 1.5 if int(now_ms / 130) % 2 else 1.0)
        calls = {"a": machine.call("A", 1.0), "b": machine.call("B", 1.0)}
        found = measure_interleaved(
            calls, blocks=20, rounds=rounds, warmup_iterations=0, warmup_ms=0, clock=machine.clock
        )
        return latency_ratio(found["b"], found["a"]).sd_log

    assert spread(10) < spread(1) / 2


def test_the_seed_fixes_the_order() -> None:
    orders = []
    for seed in (7, 7, 8):
        machine = Machine()
        calls = {name: machine.call(name, 1.0) for name in "ABCD"}
        measure_interleaved(
            calls, blocks=6, slot_iterations=1, slot_ms=0, warmup_iterations=0, warmup_ms=0, seed=seed,
            clock=machine.clock,
        )  # fmt: skip
        orders.append(machine.ran)
    assert orders[0] == orders[1] != orders[2]


def test_warm_up_and_slots_obey_both_their_count_and_their_duration() -> None:
    machine = Machine()
    found = measure_interleaved(
        {"fast": machine.call("f", 1.0), "slow": machine.call("s", 100.0)},
        blocks=2, rounds=1, slot_iterations=5, slot_ms=20, warmup_iterations=4, warmup_ms=30, clock=machine.clock,
    )  # fmt: skip
    assert machine.ran[:30] == ["f"] * 30
    assert machine.ran[30:34] == ["s"] * 4
    assert len(found["fast"].samples_ms) == 2 * 2 * 20
    assert len(found["slow"].samples_ms) == 2 * 2 * 5


def test_the_ratio_of_a_drifting_machine_is_right_where_running_one_after_the_other_is_not() -> None:
    machine = Machine(slowdown=lambda now_ms: 1 + now_ms / 4000)
    calls = {"float": machine.call("A", 2.0), "int8": machine.call("B", 1.0)}
    found = measure_interleaved(
        calls, blocks=20, slot_iterations=10, slot_ms=0, warmup_iterations=0, warmup_ms=0, clock=machine.clock
    )
    ratio = latency_ratio(found["int8"], found["float"])
    assert ratio.ratio == pytest.approx(0.5, rel=2e-4)
    apart = Machine(slowdown=lambda now_ms: 1 + now_ms / 4000)
    first, second = apart.call("A", 2.0), apart.call("B", 1.0)
    pooled = []
    for call in (first, second):
        start = apart.now_ns
        for _ in range(400):
            call()
        pooled.append(apart.now_ns - start)
    assert pooled[1] / pooled[0] > 0.55


def test_ratio_of_two_variants_is_half_the_sum_of_the_four_logarithms() -> None:
    chance = random.Random(3)
    machine = Machine(slowdown=lambda now_ms: chance.uniform(0.9, 1.1))
    calls = {"a": machine.call("A", 1.0), "b": machine.call("B", 3.0)}
    found = measure_interleaved(
        calls, blocks=8, rounds=1, slot_iterations=1, slot_ms=0, warmup_iterations=0, warmup_ms=0, clock=machine.clock
    )
    a, b = found["a"].samples_ms, found["b"].samples_ms  # one iteration a slot, two slots a block
    logs = [
        (math.log(b[i]) + math.log(b[i + 1]) - math.log(a[i]) - math.log(a[i + 1])) / 2 for i in range(0, len(a), 2)
    ]
    expected = stats.ttest_1samp(logs, 0).confidence_interval()
    ratio = latency_ratio(found["b"], found["a"])
    assert math.log(ratio.low) == pytest.approx(expected.low, rel=1e-6)
    assert math.log(ratio.high) == pytest.approx(expected.high, rel=1e-6)


def test_percentiles_and_the_least_count_of_a_99th() -> None:
    few = LatencySamples((tuple(float(i) for i in range(999, 0, -1)),), (1.0,))
    assert few.percentile_ms(50) == 500.0
    assert few.percentile_ms(90) == pytest.approx(899.2)
    assert few.p99_ms is None
    enough = LatencySamples((tuple(float(i) for i in range(1, 1001)),), (1.0,))
    assert enough.p99_ms == pytest.approx(990.01)


def test_a_drifting_measurement_is_repeated_once() -> None:
    warming = Machine(slowdown=lambda now_ms: 1 + min(now_ms, 200) / 400)  # settles during the first attempt
    settled = measure_stable(
        {"a": warming.call("a", 1.0), "b": warming.call("b", 1.0)},
        blocks=8, rounds=1, slot_iterations=5, slot_ms=0, warmup_iterations=0, warmup_ms=0, clock=warming.clock,
    )  # fmt: skip
    assert settled.attempts == 2
    assert not any(trend.unstable for trend in settled.drift.values())
    assert settled.samples["a"].block_ms == pytest.approx((1.5,) * 8)

    heating = Machine(slowdown=lambda now_ms: math.exp(now_ms / 500))
    counted: list[tuple[int, int]] = []
    unsettled = measure_stable(
        {"a": heating.call("a", 1.0)},
        blocks=8, rounds=1, slot_iterations=5, slot_ms=0, warmup_iterations=0, warmup_ms=0, clock=heating.clock,
        on_block=lambda done, total: counted.append((done, total)),
    )  # fmt: skip
    assert unsettled.attempts == 2
    assert unsettled.drift["a"].unstable
    assert counted == [(done, 8 if done <= 8 else 16) for done in range(1, 17)]

    steady = Machine()
    once = measure_stable(
        {"a": steady.call("a", 1.0)},
        blocks=8, slot_iterations=5, slot_ms=0, warmup_iterations=0, warmup_ms=0, clock=steady.clock,
    )  # fmt: skip
    assert once.attempts == 1


def test_the_real_clock_times_a_sleep() -> None:
    found = measure_interleaved(
        {"short": wall_timed(lambda: time.sleep(0.002)), "long": wall_timed(lambda: time.sleep(0.006))},
        blocks=3, slot_iterations=3, slot_ms=1, warmup_iterations=1, warmup_ms=0,
    )  # fmt: skip
    assert found["short"].percentile_ms(50) >= 2.0
    assert found["long"].percentile_ms(50) >= 6.0
    assert latency_ratio(found["short"], found["long"]).ratio < 1


def test_the_error_of_a_call_is_not_swallowed() -> None:
    def broken() -> float:
        raise RuntimeError("kernel failed")

    with pytest.raises(RuntimeError, match="kernel failed"):
        measure_interleaved({"a": broken}, blocks=2, warmup_ms=0)


def test_a_timer_that_stands_still_is_not_comparable() -> None:
    with pytest.raises(NotComparableError, match="a call took 0 ms") as error:
        measure_interleaved({"a": lambda: 0.0}, blocks=2, slot_iterations=3, slot_ms=0, warmup_ms=0)
    assert error.value.exit_code == 4
    assert error.value.where == "a"


@pytest.mark.parametrize(("calls", "blocks", "iterations"), [({}, 2, 1), ({"a": float}, 0, 1), ({"a": float}, 2, 0)])
def test_impossible_plans_are_refused(calls: dict[str, TimedCall], blocks: int, iterations: int) -> None:
    with pytest.raises(ValueError, match="expected calls, and blocks, rounds and slot_iterations >= 1"):
        measure_interleaved(calls, blocks=blocks, slot_iterations=iterations)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a budget > 0 s, got 0"):
        measure_interleaved({"a": float}, budget_s=0)


@pytest.mark.parametrize("names", ["AB", "ABC"])
def test_a_budget_holds_as_many_blocks_as_fit(names: str) -> None:
    machine = Machine()
    calls = {name: machine.call(name, cost) for name, cost in zip(names, (1.0, 30.0, 0.1), strict=False)}
    blocks: list[tuple[int, int]] = []
    measure_interleaved(
        calls, budget_s=60, warmup_ms=500, clock=machine.clock,
        on_block=lambda done, total: blocks.append((done, total)),
    )  # fmt: skip
    total = blocks[0][1]
    assert blocks == [(done, total) for done in range(1, total + 1)]
    assert 55e9 < machine.now_ns <= 60.1e9


def test_a_small_budget_still_gets_blocks_in_which_a_drift_can_show() -> None:
    machine = Machine()
    found = measure_interleaved({"a": machine.call("a", 100.0)}, budget_s=0.1, warmup_ms=0, clock=machine.clock)
    assert len(found["a"].block_ms) == LEAST_BLOCKS
    assert drift([2.0**block for block in range(LEAST_BLOCKS)]).unstable
    assert not drift([2.0**block for block in range(LEAST_BLOCKS - 1)]).unstable


def test_a_slot_ends_by_the_clock_and_is_timed_by_the_call() -> None:
    machine = Machine()
    run = machine.call("a", 2.0)

    def on_device() -> float:
        run()
        return 0.5

    found = measure_interleaved(
        {"a": on_device}, blocks=3, slot_iterations=1, slot_ms=40, warmup_iterations=0, warmup_ms=0, clock=machine.clock
    )
    assert found["a"].samples_ms == (0.5,) * 3 * 20  # 10 rounds of 4 ms


def test_throughput_and_the_interval_of_the_99th_percentile() -> None:
    blocks = tuple(tuple(float(i) for i in range(first, 5001, 10)) for first in range(1, 11))
    found = LatencySamples(blocks, (1.0,) * 10)
    assert found.calls_per_s == pytest.approx(1000 / 2500.5)
    interval = found.p99_interval_ms
    assert interval is not None
    assert interval.low < 4950.01 < interval.high
    assert LatencySamples((*blocks[1:], blocks[0][1:]), (1.0,) * 10).p99_interval_ms is None  # one too few
    one_slow_block = tuple(tuple(float(i) for i in range(first, first + 500)) for first in range(1, 5001, 500))
    assert LatencySamples(one_slow_block, (1.0,) * 10).p99_interval_ms is None


def test_variants_of_different_blocks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="expected the same blocks, got 2 and 3"):
        latency_ratio(LatencySamples(((1.0,),) * 2, (1.0,) * 2), LatencySamples(((1.0,),) * 3, (1.0,) * 3))
