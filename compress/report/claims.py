"""What may be said of each metric of each variant in two reports, with the evidence for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compress.errors import ArtifactError
from compress.measure.comparison import (
    REPORT_TOLERANCE,
    RatioComparison,
    holm,
    needed_medians,
    paired_counts,
    ratio_verdict,
    slower_p,
    welch_ratio,
)
from compress.measure.statistics import Tango, normal_sf, tango_noninferiority
from compress.report.comparison import Claim
from compress.report.document import ReportDocument, Variant

MARGIN_PP = 1.0
# A file of the same model differs by names and padding; peak memory by how the allocator rounds.
SIZE_TOLERANCE = 0.01
MEMORY_TOLERANCE = 0.05
MIN_MEDIANS = 5
ALPHA = 0.025  # one-sided
_LATENCY = {"metric": "latency", "unit": "ms", "change_unit": "ratio", "tolerance": REPORT_TOLERANCE}


@dataclass(frozen=True)
class Finding:
    """A claim judged by itself: `p_better` is the one-sided p of a change for the better beyond the tolerance."""

    claim: Claim
    p_better: float | None = None


def judged_claims(base: ReportDocument, new: ReportDocument) -> list[Claim]:
    """Compare every variant that both reports have, metric by metric.

    A change counts only beyond its tolerance: 5 % of a latency, 1 pp of an accuracy. Claims for the worse, and those
    for the better, are each held together against 2.5 % (Holm, 1979): with many variants, chance alone finds one.

    Args:
        base: what the other is held against.
        new: measured under the same conditions, on the same samples.

    Returns:
        Claims in the order of the base's variants; by variant latencies by batch size, top-1, agreement, size, memory.

    Raises:
        ArtifactError: a report's answers per sample are damaged.
    """
    return _holm_corrected([found for pair in _pairs(base, new) for found in _findings(*pair, base, new)])


def figures(base: ReportDocument, new: ReportDocument, *, same_samples: bool) -> list[Claim]:
    """The same claims without verdicts.

    Args:
        base: what the other is held against.
        new: measured under any conditions.
        same_samples: whether accuracies may be paired sample by sample.
    """
    plain = {"p": None, "verdict": None, "harmless": False}  # whatever would decide: nothing is decided here
    unpaired = {"low": None, "high": None, "detail": "not paired by sample: the conditions differ"}
    claims = [found.claim for pair in _pairs(base, new) for found in _findings(*pair, base, new, paired=same_samples)]
    return [
        claim.model_copy(update=plain if same_samples or claim.change_unit != "pp" else plain | unpaired)
        for claim in claims
    ]


def latency_pairs(base: Variant, new: Variant) -> dict[int, RatioComparison | None]:
    """Compare the fresh-process medians of one variant.

    Args:
        base: as measured for one report.
        new: as measured for the other.

    Returns:
        Batch size -> latency(new) / latency(base), ascending; None where a side has fewer than 5 medians.
    """
    ours, theirs = _fresh(new), _fresh(base)
    return {
        batch: welch_ratio(theirs[batch], ours[batch])
        if min(len(theirs.get(batch, ())), len(ours.get(batch, ()))) >= MIN_MEDIANS
        else None
        for batch in sorted(ours.keys() | theirs.keys())
    }


def answer_pairs(base: Variant, new: Variant, n: int) -> tuple[int, int] | None:
    """Count the samples on which exactly one side is right.

    Args:
        base: as measured for one report.
        new: as measured for the other, on the same samples in the same order.
        n: samples.

    Returns:
        Gained (right in new only) and lost; None where a report holds no answers per sample.

    Raises:
        ArtifactError: the answers are damaged.
    """
    if base.correct is None or new.correct is None:
        return None
    try:
        return paired_counts(base.correct, new.correct, n)
    except ArtifactError as error:
        raise error.at(f"variant {new.name}") from error


def _pairs(base: ReportDocument, new: ReportDocument) -> Iterator[tuple[Variant, Variant]]:
    there = {variant.name: variant for variant in new.variants}
    return ((variant, there[variant.name]) for variant in base.variants if variant.name in there)


def _findings(
    base: Variant, new: Variant, base_report: ReportDocument, new_report: ReportDocument, *, paired: bool = True
) -> Iterator[Finding]:
    yield from _latency_findings(base, new)
    if base.top1 is not None:
        counts = answer_pairs(base, new, base_report.n) if paired else None
        yield _top1_finding(base, new, base_report.n, counts)
    is_reference = base.name in (base_report.reference, new_report.reference)
    if base.agreement is not None and not is_reference and base_report.reference == new_report.reference:
        yield _agreement_finding(base, new, base_report, new_report)
    if base.size_bytes is not None:
        yield _bytes_finding("size", new, base.size_bytes, new.size_bytes, SIZE_TOLERANCE, "of the file that is loaded")
    if base.cold_start is not None:
        peak = None if new.cold_start is None else new.cold_start.peak_bytes
        detail = f"peak of a fresh process, median of {base.cold_start.processes}; no interval"
        yield _bytes_finding("memory", new, base.cold_start.peak_bytes, peak, MEMORY_TOLERANCE, detail)


def _fresh(variant: Variant) -> dict[int, list[float]]:
    return {row.batch: row.medians_ms for row in variant.fresh}


def _latency_findings(base: Variant, new: Variant) -> Iterator[Finding]:
    pairs = latency_pairs(base, new)
    for batch in sorted(pairs.keys() | {row.batch for row in base.latency}):
        found = pairs.get(batch)
        common: dict[str, Any] = {**_LATENCY, "variant": base.name, "batch": batch}
        if found is None:
            yield Finding(_latency_without_interval(base, new, batch, common))
            continue
        means = _geometric(_fresh(base)[batch]), _geometric(_fresh(new)[batch])
        verdict = ratio_verdict(found.low, found.high, REPORT_TOLERANCE)
        harmless = found.high <= 1 + REPORT_TOLERANCE
        detail = f"geometric means of {found.base_count} and {found.new_count} processes"
        if verdict == "inconclusive":
            detail += "; not slower beyond the tolerance, whether faster is open" if harmless else ""
            detail += "" if harmless else _what_decides(needed_medians(found, REPORT_TOLERANCE), "processes a report")
        claim = Claim(
            **common,
            base=means[0],
            new=means[1],
            change=found.ratio,
            low=found.low,
            high=found.high,
            p=slower_p(found, 1 + REPORT_TOLERANCE),
            verdict=verdict,
            harmless=harmless and verdict == "inconclusive",
            detail=detail,
        )
        backwards = welch_ratio(_fresh(new)[batch], _fresh(base)[batch])
        yield Finding(claim, slower_p(backwards, 1 + REPORT_TOLERANCE))


def _latency_without_interval(base: Variant, new: Variant, batch: int, common: dict[str, Any]) -> Claim:
    """Too few fresh processes: show what there is, say what is missing."""
    values: list[float | None] = []
    for variant in (base, new):
        medians = _fresh(variant).get(batch, [])
        in_run = next((row.p50_ms for row in variant.latency if row.batch == batch), None)
        values.append(_geometric(medians) if medians else in_run)
    before, after = values
    if new.status == "not run":
        detail = f"was not run in the new report: {new.reason}"
    elif before is None or after is None:
        detail = f"not timed at this batch size in the {'base' if before is None else 'new'} report"
    else:
        counts = [len(_fresh(variant).get(batch, [])) for variant in (base, new)]
        detail = f"a verdict needs {MIN_MEDIANS} fresh processes in each report, got {counts[0]} and {counts[1]}"
        detail += "" if all(counts) else "; p50 within one process"
    change = None if before is None or after is None else after / before
    return Claim(**common, base=before, new=after, change=change, verdict="inconclusive", detail=detail)


def _top1_finding(base: Variant, new: Variant, n: int, counts: tuple[int, int] | None) -> Finding:
    if counts is None:
        detail = "a report holds no answers per sample"
        if new.status == "not run":
            detail = f"was not run in the new report: {new.reason}"
        return Finding(_fraction_claim("top1", new, base.top1, new.top1, "inconclusive", detail))
    gained, lost = counts
    detail = f"n {n:,}: {gained:,} gained, {lost:,} lost; Tango's test"
    return _paired_finding("top1", new, (base.top1, new.top1), (gained, lost, n), detail)


def _agreement_finding(base: Variant, new: Variant, base_report: ReportDocument, new_report: ReportDocument) -> Finding:
    if base.agreement is None or new.agreement is None:
        detail = f"was not run in the new report: {new.reason}"
        return Finding(_fraction_claim("agreement", new, base.agreement, new.agreement, "inconclusive", detail))
    n = base_report.n
    gained, lost = round((1 - base.agreement) * n), round((1 - new.agreement) * n)
    # Which samples agree is not stored. At worst none disagrees in both reports, which gives the widest interval.
    shared = max(0, gained + lost - n)
    detail = f"with {new_report.reference}; n {n:,}; Tango's test at the most unfavourable pairing"
    counts = (gained - shared, lost - shared, n)
    finding = _paired_finding("agreement", new, (base.agreement, new.agreement), counts, detail)
    # Agreement supports top-1, which is paired by sample: it may fail a comparison, but not hold it up.
    if finding.claim.verdict == "inconclusive":
        return Finding(finding.claim.model_copy(update={"harmless": True}), finding.p_better)
    return finding


def _paired_finding(
    metric: str, new: Variant, values: tuple[float | None, float | None], counts: tuple[int, int, int], detail: str
) -> Finding:
    gained, lost, n = counts
    loss = tango_noninferiority(gained, lost, n, MARGIN_PP / 100)
    gain = tango_noninferiority(lost, gained, n, MARGIN_PP / 100)
    verdict, harmless = _paired_verdict(loss, gain)
    if verdict == "inconclusive":
        open_question = f"; no loss of {MARGIN_PP:g} pp or more, whether better is open"
        detail += open_question if harmless else _what_decides(loss.needed_n, "samples")
    claim = _fraction_claim(metric, new, values[0], values[1], verdict, detail).model_copy(
        update={"low": 100 * loss.low, "high": 100 * loss.high, "p": normal_sf(-loss.z), "harmless": harmless}
    )
    return Finding(claim, normal_sf(-gain.z))


def _paired_verdict(loss: Tango, gain: Tango) -> tuple[str, bool]:
    if loss.decision == "fail":
        return "worse", False
    if gain.decision == "fail":
        return "better", False
    if loss.decision == gain.decision == "pass":
        return "no difference", False
    return "inconclusive", loss.decision == "pass"


def _fraction_claim(
    metric: str, new: Variant, before: float | None, after: float | None, verdict: str, detail: str
) -> Claim:
    return Claim.model_validate(
        {
            "variant": new.name,
            "metric": metric,
            "base": before,
            "new": after,
            "unit": "fraction",
            "change": None if before is None or after is None else 100 * (after - before),
            "change_unit": "pp",
            "tolerance": MARGIN_PP,
            "verdict": verdict,
            "detail": detail,
        }
    )


def _bytes_finding(metric: str, new: Variant, before: int, after: int | None, tolerance: float, detail: str) -> Finding:
    ratio = None if after is None or before == 0 else after / before
    if ratio is None:
        verdict, detail = "inconclusive", "not known in the new report" if after is None else "0 bytes in the base"
    elif ratio > 1 + tolerance:
        verdict = "worse"
    else:
        verdict = "better" if ratio < 1 / (1 + tolerance) else "no difference"
    claim = {
        "variant": new.name,
        "metric": metric,
        "base": before,
        "new": after,
        "unit": "bytes",
        "change": ratio,
        "change_unit": "ratio",
        "tolerance": tolerance,
        "verdict": verdict,
        "detail": detail,
    }
    return Finding(Claim.model_validate(claim))


def _holm_corrected(findings: Sequence[Finding]) -> list[Claim]:
    worse = [found.claim.p for found in findings if found.claim.p is not None]
    better = [found.p_better for found in findings if found.p_better is not None]
    adjusted_worse, adjusted_better = iter(holm(worse)), iter(holm(better))
    claims: list[Claim] = []
    for found in findings:
        claim = found.claim
        p_worse = None if claim.p is None else next(adjusted_worse)
        p_better = None if found.p_better is None else next(adjusted_better)
        changes: dict[str, Any] = {"p_holm": p_worse}
        lost_for_worse = claim.verdict in ("slower", "worse") and p_worse is not None and p_worse >= ALPHA
        lost_for_better = claim.verdict in ("faster", "better") and p_better is not None and p_better >= ALPHA
        if lost_for_worse or lost_for_better:
            family = len(worse) if lost_for_worse else len(better)
            detail = f"{claim.detail}; by itself {claim.verdict}, among {family} claims perhaps chance (Holm)"
            changes |= {
                "verdict": "inconclusive",
                "harmless": lost_for_better or claim.metric == "agreement",
                "detail": detail,
            }
        claims.append(claim.model_copy(update=changes))
    return claims


def _what_decides(count: int | None, what: str) -> str:
    if count is None:
        return "; the observed change is the tolerance itself, so that no number decides"
    return f"; about {count:,} {what} would decide"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
