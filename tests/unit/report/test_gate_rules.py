"""Gates on p99, memory and the worst class; the others are tested with `judge`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compress.report.document import ReportDocument, Verdict
from compress.report.gates import GatesConfig, judge

Report = Callable[..., ReportDocument]


def of_int8(gates: dict[str, Any], document: ReportDocument) -> Verdict:
    verdicts = judge(GatesConfig.model_validate(gates), document)
    assert verdicts[-1].variant == "engine"
    assert verdicts[-1].detail == "engine was not run: no NVIDIA driver"
    (found,) = [verdict for verdict in verdicts if verdict.variant == "int8"]
    return found


def row(n: int = 10_000, interval: tuple[float, float] | None = (1.9, 2.2), **fields: Any) -> dict[str, Any]:
    return {
        "batch": 1, "p50_ms": 1.0, "p90_ms": 1.5, "p99_ms": 2.0, "p99_interval_ms": interval, "n": n, **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "decision"), [(2.2, "pass"), (1.89, "fail"), (2.1, "inconclusive"), (1.95, "inconclusive")]
)
def test_p99_is_judged_by_the_ends_of_its_interval(report: Report, limit: float, decision: str) -> None:
    found = of_int8({"p99_ms_max": limit}, report(int8={"latency": [row()]}))
    assert (found.verdict, found.value, found.limit, found.unit) == (decision, 2.0, limit, "ms")
    assert found.detail.startswith(
        "batch 1: 99th percentile 2.000 ms (95 % interval 1.900 to 2.200 ms; 10,000 iterations)"
    )


def test_p99_says_how_many_blocks_would_decide(report: Report) -> None:
    found = of_int8({"p99_ms_max": 2.1}, report(int8={"latency": [row()]}))
    # Half the interval is .2 and must shrink below .1 with 1.28 / 1.96 to spare: (2 * 1.65386)^2 times 20 blocks.
    assert found.detail.endswith(
        "; about 219 blocks would decide at this percentile: --set steps.STEP.latency.blocks=219"
    )
    hopeless = of_int8({"p99_ms_max": 2.0}, report(int8={"latency": [row()]}))
    assert hopeless.detail.endswith("; the observed percentile is the limit itself")


@pytest.mark.parametrize(("n", "p99"), [(4999, 2.0), (999, None)])
def test_p99_of_few_iterations_decides_nothing(report: Report, n: int, p99: float | None) -> None:
    found = of_int8({"p99_ms_max": 100.0}, report(int8={"latency": [row(n, None, p99_ms=p99)]}))
    assert (found.verdict, found.value) == ("inconclusive", p99)
    assert found.detail == (
        f"batch 1: {n:,} iterations; at least 5,000 would decide: "
        "--set steps.STEP.latency.slot_iterations=250 gives them in 20 blocks"
    )


def test_p99_says_what_gives_the_iterations_in_the_blocks_of_this_report(report: Report) -> None:
    ratio = {"batch": 1, "ratio": 1.0, "low": 0.9, "high": 1.1, "blocks": 6, "mean_log": 0.0, "sd_log": 0.1}
    document = report(int8={"latency": [row(999, None, p99_ms=None)], "ratio_to_float": [ratio]})
    found = of_int8({"p99_ms_max": 100.0}, document)
    assert found.detail.endswith(": --set steps.STEP.latency.slot_iterations=834 gives them in 6 blocks")


def test_p99_by_batch_on_a_drifting_machine_and_untimed(report: Report) -> None:
    drifted = of_int8({"p99_ms_max": {1: 9.0}}, report(int8={"latency": [row(unstable=True)]}))
    assert drifted.verdict == "inconclusive"
    assert "latencies drifted" in drifted.detail
    other = of_int8({"p99_ms_max": {8: 9.0}}, report(int8={"latency": [row()]}))
    assert (other.verdict, other.detail) == ("not run", "batch 8: not timed")
    untimed = of_int8({"p99_ms_max": 9.0}, report(int8={"latency": [], "ratio_to_float": []}))
    assert (untimed.verdict, untimed.detail) == ("not run", "its latency was not timed")


COLD = {"processes": 5, "load_ms": 10.0, "first_ms": 1.0, "base_bytes": 50_000_000, "peak_bytes": 80_000_000}


@pytest.mark.parametrize(("limit", "decision"), [(80_000_000, "pass"), (79_999_999, "fail")])
def test_memory_is_the_peak_of_a_fresh_process(report: Report, limit: int, decision: str) -> None:
    found = of_int8({"memory_bytes_max": limit}, report(int8={"cold_start": COLD}))
    assert (found.verdict, found.value, found.unit) == (decision, 80_000_000, "bytes")
    assert "peak of a fresh process 80,000,000 bytes (50,000,000 before the model is loaded" in found.detail


def test_memory_that_was_not_measured_is_no_pass(report: Report) -> None:
    found = of_int8({"memory_bytes_max": 1}, report())
    assert (found.verdict, found.detail) == ("not run", "no fresh process measured its memory")


def classes(n: int, *changes: int, right: float = 0.9) -> list[dict[str, Any]]:
    """Classes of n samples each, `right` of them right, with so many more right than before."""
    return [
        {"name": str(number), "n": n, "top1": right, "change_pp": 100 * change / n}
        for number, change in enumerate(changes)
    ]


def pair(gained: int, lost: int, n: int) -> dict[str, int]:
    return {"gained": gained, "lost": lost, "n": n}


@pytest.mark.parametrize(
    ("rows", "counts", "decision", "value"),
    [
        (classes(1000, 3, -5, 0), pair(8, 10, 3000), "pass", 0.5),
        (classes(1000, 3, -90, 0), pair(8, 95, 3000), "fail", 9.0),
        (classes(1000, 3, -28, 0), pair(8, 33, 3000), "inconclusive", 2.8),
        (classes(45, 0, 0, 0), pair(3, 3, 135), "inconclusive", 0.0),
    ],
)
def test_worst_class(
    report: Report, rows: list[dict[str, Any]], counts: dict[str, int], decision: str, value: float
) -> None:
    document = report(int8={"classes": rows, "paired_to_reference": counts})
    found = of_int8({"worst_class_drop_pp": 3.0}, document)
    assert (found.verdict, found.value, found.unit) == (decision, pytest.approx(value), "pp")
    assert str(found.value) != "-0.0"
    assert found.detail.startswith("worst of 3 classes is ")


def test_the_worst_class_says_how_many_samples_would_decide(report: Report) -> None:
    document = report(int8={"classes": classes(45, 0, 0, -1), "paired_to_reference": pair(0, 1, 135)})
    found = of_int8({"worst_class_drop_pp": 5.0}, document)
    assert "worst of 3 classes is '2': -2.22 pp" in found.detail
    assert "samples of '2' would decide" in found.detail


def test_one_lost_class_among_many_may_be_chance(report: Report) -> None:
    # 10 of 100 lost against 4 allowed: p .005 by itself, above .025 / 10.
    document = report(int8={"classes": classes(100, -10, *[0] * 9), "paired_to_reference": pair(0, 10, 1000)})
    found = of_int8({"worst_class_drop_pp": 4.0}, document)
    assert found.verdict == "inconclusive"
    assert "among 10 classes perhaps chance" in found.detail
    alone = report(int8={"classes": classes(100, -10), "paired_to_reference": pair(0, 10, 100)})
    assert of_int8({"worst_class_drop_pp": 4.0}, alone).verdict == "fail"


def test_discordant_pairs_are_bounded_by_every_count(report: Report) -> None:
    # The same class, change and n: only the totals say whether 100 or 2 samples may have swapped.
    rows = classes(1000, -2, right=0.5)
    few = of_int8({"worst_class_drop_pp": 1.5}, report(int8={"classes": rows, "paired_to_reference": pair(0, 2, 1000)}))
    many = of_int8(
        {"worst_class_drop_pp": 1.5}, report(int8={"classes": rows, "paired_to_reference": pair(100, 102, 1000)})
    )
    assert (few.verdict, many.verdict) == ("pass", "inconclusive")


def test_a_report_without_classes_is_no_pass(report: Report) -> None:
    found = of_int8({"worst_class_drop_pp": 3.0}, report())
    assert (found.verdict, found.detail) == ("not run", "the report holds no accuracies by class")
