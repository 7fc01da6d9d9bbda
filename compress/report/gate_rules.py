"""The rule of each gate: one variant's stored statistics against one limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from compress.measure.statistics import (
    Z_900,
    Z_975,
    Tango,
    needed_blocks,
    needed_samples,
    normal_sf,
    proportion_decision,
    ratio_decision,
    tango_noninferiority,
    wilson,
)
from compress.report.document import (
    ClassRow,
    LatencyRow,
    Paired,
    RatioRow,
    ReportDocument,
    Variant,
    Verdict,
)

# Fewer iterations leave the 99th percentile to the 50 slowest of them; reports then hold no interval of it.
P99_ITERATIONS = 5_000
DEFAULT_BLOCKS = 20  # of a benchmark; a report tells its own only beside a float twin
ALPHA = 0.025  # one-sided, of a failure

Answer = Callable[[str, float | None, str], Verdict]


def verdicts_for(gate: str, variant: str, limit: float | None, unit: str) -> Answer:
    """Return what makes the verdicts of one gate on one variant, from decision, value and detail."""

    def answer(verdict: str, value: float | None, detail: str) -> Verdict:
        return Verdict.model_validate(
            {
                "gate": gate,
                "variant": variant,
                "verdict": verdict,
                "limit": limit,
                "value": value,
                "unit": unit,
                "detail": detail,
            }
        )

    return answer


def judge_drop(gate: str, limit_pp: float, variant: Variant, against: Variant, pair: Paired | None) -> Verdict:
    """Is the loss of accuracy within its limit? Decided by Tango's test on samples paired with the other variant."""
    answer = verdicts_for(gate, variant.name, limit_pp, "pp")
    for side in (variant, against):
        if side.status == "not run":
            return answer("not run", None, f"{side.name} was not run: {side.reason}")
    if pair is None:
        return answer("not run", None, f"the report holds no counts paired with {against.name}")
    return drop_verdict(answer, limit_pp, against.name, pair.gained, pair.lost, pair.n)


def drop_verdict(answer: Answer, limit_pp: float, against: str, gained: int, lost: int, n: int) -> Verdict:
    """Judge a loss of accuracy from paired counts, by Tango's test.

    Args:
        answer: makes the verdict.
        limit_pp: allowed loss, percentage points.
        against: what the variant is held against, for the detail.
        gained: samples that only the variant has right.
        lost: samples that only the other has right.
        n: all samples.
    """
    test = tango_noninferiority(gained, lost, n, limit_pp / 100)
    detail = (
        f"change against {against} {100 * test.difference:+.2f} pp "
        f"(95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f} pp; n {n:,}: "
        f"{gained:,} gained, {lost:,} lost), p {test.p:.2g} against a loss of {limit_pp:g} pp or more"
    )
    if test.decision == "inconclusive":
        if test.needed_n is None:
            detail += "; the observed loss is the limit itself, so that no number of samples decides"
        else:
            detail += f"; about {test.needed_n:,} samples would decide {test.needed_if}"
    return answer(test.decision, 100 * (lost - gained) / n, detail)


def judge_latency(limits: float | dict[int, float], variant: Variant, twin: Variant) -> Iterator[Verdict]:
    """Is the latency ratio to the float twin within its limit? Decided by its 95 % interval, batch by batch."""
    rows = {row.batch: row for row in variant.ratio_to_float}
    by_batch = limits if isinstance(limits, dict) else dict.fromkeys(rows, limits)
    reasons = [f"{side.name} was not run: {side.reason}" for side in (variant, twin) if side.status == "not run"]
    if not reasons and not by_batch:
        reasons = [f"not timed against {twin.name} in the same kind of session"]
    if reasons:
        answer = verdicts_for("latency_ratio", variant.name, None if isinstance(limits, dict) else limits, "ratio")
        yield answer("not run", None, reasons[0])
        return
    for batch, limit in by_batch.items():
        answer = verdicts_for("latency_ratio", variant.name, limit, "ratio")
        if batch in rows:
            timed = [row for side in (variant, twin) for row in side.latency if row.batch == batch]
            yield _judge_ratio(answer, rows[batch], limit, twin, timed)
        else:
            yield answer("not run", None, f"batch {batch}: not timed against {twin.name} in the same kind of session")


def _judge_ratio(answer: Answer, row: RatioRow, limit: float, twin: Variant, timed: list[LatencyRow]) -> Verdict:
    detail = (
        f"batch {row.batch}: latency {row.ratio:.3f} x that of {twin.name} "
        f"(95 % interval {row.low:.3f} to {row.high:.3f}; {row.blocks} blocks)"
    )
    if any(latency.unstable for latency in timed):
        return answer(
            "inconclusive",
            row.ratio,
            f"{detail}; latencies drifted in both measurements, so measure on an idle machine",
        )
    decision = ratio_decision(row.low, row.high, limit)
    if decision == "inconclusive":
        blocks = needed_blocks(row.mean_log, row.sd_log, limit)
        detail += "; the observed ratio is the limit itself" if blocks is None else ""
        detail += "" if blocks is None else f"; about {blocks:,} blocks would decide at this ratio"
    return answer(decision, row.ratio, detail)


def judge_p99(limits: float | dict[int, float], variant: Variant) -> Iterator[Verdict]:
    """Is the 99th percentile of the latency within its limit? Decided by its 95 % interval."""
    rows = {row.batch: row for row in variant.latency}
    by_batch = limits if isinstance(limits, dict) else dict.fromkeys(rows, limits)
    if not rows or not by_batch:
        answer = verdicts_for("p99_ms_max", variant.name, None if isinstance(limits, dict) else limits, "ms")
        not_run = variant.status == "not run"
        yield answer(
            "not run", None, f"{variant.name} was not run: {variant.reason}" if not_run else "its latency was not timed"
        )
        return
    blocks = {row.batch: row.blocks for row in variant.ratio_to_float}
    for batch, limit in by_batch.items():
        answer = verdicts_for("p99_ms_max", variant.name, limit, "ms")
        if batch in rows:
            yield _judge_p99_row(answer, rows[batch], limit, blocks.get(batch, DEFAULT_BLOCKS))
        else:
            yield answer("not run", None, f"batch {batch}: not timed")


def _judge_p99_row(answer: Answer, row: LatencyRow, limit: float, blocks: int) -> Verdict:
    if row.n >= P99_ITERATIONS and row.p99_interval_ms is None:
        detail = f"batch {row.batch}: the slow ones of {row.n:,} iterations fall into few blocks; measure more blocks"
        return answer("inconclusive", row.p99_ms, detail)
    if row.p99_ms is None or row.p99_interval_ms is None:
        detail = (
            f"batch {row.batch}: {row.n:,} iterations; at least {P99_ITERATIONS:,} would decide"
            f"{_more_iterations(P99_ITERATIONS, blocks)}"
        )
        return answer("inconclusive", row.p99_ms, detail)
    low, high = row.p99_interval_ms
    detail = (
        f"batch {row.batch}: 99th percentile {row.p99_ms:.3f} ms "
        f"(95 % interval {low:.3f} to {high:.3f} ms; {row.n:,} iterations)"
    )
    if row.unstable:
        return answer("inconclusive", row.p99_ms, f"{detail}; latencies drifted, so measure on an idle machine")
    if high <= limit:
        return answer("pass", row.p99_ms, detail)
    if low > limit:
        return answer("fail", row.p99_ms, detail)
    gap = abs(limit - row.p99_ms)
    if gap == 0:
        return answer("inconclusive", row.p99_ms, f"{detail}; the observed percentile is the limit itself")
    # The interval narrows with the root of the count of blocks, not of iterations: those of a block are slow together.
    half = high - row.p99_ms if row.p99_ms <= limit else row.p99_ms - low
    needed = math.ceil(blocks * ((1 + Z_900 / Z_975) * half / gap) ** 2)  # 9 of 10 repetitions shall then decide
    detail += f"; about {needed:,} blocks would decide at this percentile: --set steps.STEP.latency.blocks={needed}"
    return answer("inconclusive", row.p99_ms, detail)


def _more_iterations(needed: int, blocks: int) -> str:
    # A multiple of the present setting would not do: where slots end by their duration, it changes nothing.
    each = math.ceil(needed / blocks)
    return f": --set steps.STEP.latency.slot_iterations={each} gives them in {blocks} blocks"


def judge_agreement(minimum: float, variant: Variant, document: ReportDocument) -> Verdict:
    """Is the reference's prediction met often enough? Decided by Wilson's interval."""
    answer = verdicts_for("agreement_min", variant.name, minimum, "fraction")
    if variant.agreement is None:
        return answer("not run", None, f"{variant.name} was not run: {variant.reason}")
    same = round(variant.agreement * document.n)
    interval = wilson(same, document.n)
    detail = (
        f"same prediction as {document.reference} for {same:,} of {document.n:,} samples "
        f"(95 % interval {interval.low:.4f} to {interval.high:.4f})"
    )
    decision = proportion_decision(same, document.n, minimum)
    if decision == "inconclusive":
        needed = needed_samples(same, document.n, minimum)
        detail += "; the observed share is the limit itself" if needed is None else ""
        detail += "" if needed is None else f"; about {needed:,} samples would decide at this share"
    return answer(decision, variant.agreement, detail)


def judge_worst_class(limit_pp: float, variant: Variant, document: ReportDocument) -> Verdict:
    """Did any class lose more accuracy against the reference than allowed?

    A report stores how many samples of a class are right in both variants, not which. The test therefore assumes the
    most discordant pairs that all counts allow, which makes passing and failing harder, never easier. Every class has
    to pass; for a failure the level is divided by the number of classes (Bonferroni).
    """
    answer = verdicts_for("worst_class_drop_pp", variant.name, limit_pp, "pp")
    for side in (variant, document.variant(document.reference)):
        if side.status == "not run":
            return answer("not run", None, f"{side.name} was not run: {side.reason}")
    if not variant.classes or variant.paired_to_reference is None:
        return answer("not run", None, "the report holds no accuracies by class")
    pair = variant.paired_to_reference
    tests = [(row, _class_test(row, pair, limit_pp / 100)) for row in variant.classes]
    worst, of_worst = min(tests, key=lambda found: (found[0].change_pp, found[1].z))
    value = max(0.0, -worst.change_pp)
    detail = (
        f"worst of {len(tests)} classes is {worst.name!r}: {worst.change_pp:+.2f} pp (95 % interval "
        f"{100 * of_worst.low:+.2f} to {100 * of_worst.high:+.2f} pp at the most unfavourable pairing; n {worst.n:,})"
    )
    if any(normal_sf(-test.z) < ALPHA / len(tests) for _, test in tests):
        return answer("fail", value, detail)
    open_tests = [found for found in tests if found[1].decision != "pass"]
    if not open_tests:
        return answer("pass", value, detail)
    row, test = min(open_tests, key=lambda found: found[1].z)
    if test.decision == "fail":
        detail += f"; by itself a loss, among {len(tests)} classes perhaps chance: more samples of {row.name!r} decide"
    elif test.needed_n is None:
        detail += f"; the observed loss of {row.name!r} is the limit itself, so that no number of samples decides"
    else:
        detail += f"; about {test.needed_n:,} samples of {row.name!r} would decide {test.needed_if}"
    return answer("inconclusive", value, detail)


def _class_test(row: ClassRow, pair: Paired, margin: float) -> Tango:
    correct, change = round(row.top1 * row.n), round(row.change_pp * row.n / 100)
    before = correct - change
    most = min(correct, row.n - before, pair.gained, pair.lost + change)
    gained = max(most, change, 0)
    return tango_noninferiority(gained, gained - change, row.n, margin)


def judge_int8_operands(minimum: float, variant: Variant) -> Verdict:
    """Does the engine compute in int8 what it should? Exact: its own program says so, whether or not it runs here."""
    answer = verdicts_for("int8_operands_min", variant.name, minimum, "fraction")
    counts = {name: value for name, value in variant.facts.items() if isinstance(value, int)}
    total = counts.get("convolutions", 0) + counts.get("gemms", 0)
    if not total:
        return answer("not run", None, f"{variant.name} does not tell its operand types without a GPU")
    int8 = counts.get("int8_convolutions", 0) + counts.get("int8_gemms", 0)
    detail = f"{int8:,} of {total:,} convolutions and matrix products have int8 operands"
    return answer("pass" if int8 >= minimum * total else "fail", int8 / total, detail)


def judge_size(limit: int, variant: Variant) -> Verdict:
    """Is the file small enough?"""
    answer = verdicts_for("size_bytes_max", variant.name, limit, "bytes")
    if variant.size_bytes is None:
        return answer("not run", None, f"{variant.name} has no file whose size is known")
    verdict = "pass" if variant.size_bytes <= limit else "fail"
    return answer(verdict, variant.size_bytes, f"{variant.size_bytes:,} bytes, allowed {limit:,}")


def judge_memory(limit: int, variant: Variant) -> Verdict:
    """Is the peak of resident memory within its limit? A median over fresh processes, without an interval."""
    answer = verdicts_for("memory_bytes_max", variant.name, limit, "bytes")
    if variant.cold_start is None:
        not_run = variant.status == "not run"
        reason = f"{variant.name} was not run: {variant.reason}" if not_run else "no fresh process measured its memory"
        return answer("not run", None, reason)
    peak, base = variant.cold_start.peak_bytes, variant.cold_start.base_bytes
    detail = (
        f"peak of a fresh process {peak:,} bytes ({base:,} before the model is loaded; median of "
        f"{variant.cold_start.processes} processes), allowed {limit:,}"
    )
    return answer("pass" if peak <= limit else "fail", peak, detail)


def judge_required(variant: Variant) -> Verdict:
    """Was the variant measured?"""
    answer = verdicts_for("require", variant.name, None, "")
    if variant.status == "measured":
        return answer("pass", None, f"{variant.name} was measured")
    return answer("not run", None, f"{variant.name} was not run: {variant.reason}")
