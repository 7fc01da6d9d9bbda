"""What may be said of each metric of each variant in two reports, with the evidence for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
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
DEPLOYED_KINDS = frozenset({"onnx_model", "quantized_onnx", "engine"})
# Agreement supports top-1 and has no family; sizes and memory are compared as they are.
_FAMILIES = ("latency", "top1")
_LATENCY = {"metric": "latency", "unit": "ms", "change_unit": "ratio", "tolerance": REPORT_TOLERANCE}


@dataclass(frozen=True)
class Finding:
    """A claim judged by itself.

    `p_better` is the one-sided p of a change for the better beyond the tolerance, `outlook` what an inconclusive
    verdict leaves open.
    """

    claim: Claim
    p_better: float | None = None
    outlook: str = ""


def judged_claims(base: ReportDocument, new: ReportDocument) -> list[Claim]:
    """Compare every variant that both reports have, metric by metric.

    A change counts only beyond its tolerance: 5 % of a latency, 1 pp of an accuracy. What gets deployed decides (ONNX
    models and engines); claims about checkpoints, and agreement, are information. The deciding latencies, and the
    deciding top-1s, are held together against 2.5 % in each direction (Holm, 1979): among many claims, chance alone
    finds one. Where no such variant was measured in either report, checkpoints decide.

    Args:
        base: what the other is held against.
        new: measured under the same conditions, on the same samples.

    Returns:
        Claims in the order of the base's variants; by variant latencies by batch size, top-1, agreement, size, memory.

    Raises:
        ArtifactError: a report's answers per sample are damaged.
    """
    pairs = list(_pairs(base, new))
    findings = [found for pair in pairs for found in _findings(*pair, base, new)]
    return _judged(findings, _deciding(pairs))


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
    return _paired_bits(base.correct, new.correct, n, f"variant {new.name}")


def references_differ(base: ReportDocument, new: ReportDocument) -> str | None:
    """Return why agreement in the two reports is not agreement with one model; None where it is.

    Args:
        base: one report.
        new: the other.
    """
    digests = [
        next((entry.digest for entry in report.lineage if entry.step == report.reference), None)
        for report in (base, new)
    ]
    if None in digests:
        return "a report does not say which model its reference is (its lineage has no such step)"
    if digests[0] != digests[1]:
        shown = (
            f"{report.reference} {digest[:12]}" for report, digest in zip((base, new), digests, strict=True) if digest
        )
        return f"the references are different models ({', '.join(shown)})"
    return None


def _paired_bits(base: str | None, new: str | None, n: int, where: str) -> tuple[int, int] | None:
    if base is None or new is None:
        return None
    try:
        return paired_counts(base, new, n)
    except ArtifactError as error:
        raise error.at(where) from error


def _pairs(base: ReportDocument, new: ReportDocument) -> Iterator[tuple[Variant, Variant]]:
    there = {variant.name: variant for variant in new.variants}
    return ((variant, there[variant.name]) for variant in base.variants if variant.name in there)


def _deciding(pairs: Sequence[tuple[Variant, Variant]]) -> set[str]:
    deployed = [pair for pair in pairs if DEPLOYED_KINDS & {one.kind for one in pair}]
    # Without a measured one among them, to judge no checkpoint would be to pass unseen.
    ran = any(one.status == "measured" for pair in deployed for one in pair)
    return {base.name for base, _ in (deployed if ran else pairs)}


def _findings(
    base: Variant, new: Variant, base_report: ReportDocument, new_report: ReportDocument, *, paired: bool = True
) -> Iterator[Finding]:
    yield from _latency_findings(base, new)
    if base.top1 is not None:
        counts = answer_pairs(base, new, base_report.n) if paired else None
        yield _top1_finding(base, new, base_report.n, counts)
    is_reference = base.name in (base_report.reference, new_report.reference)
    if base.agreement is not None and not is_reference and references_differ(base_report, new_report) is None:
        yield _agreement_finding(base, new, base_report.n, new_report.reference, paired=paired)
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
        outlook = ""
        if verdict == "inconclusive":
            outlook = "; not slower beyond the tolerance, whether faster is open" if harmless else ""
            outlook = outlook or _what_decides(needed_medians(found, REPORT_TOLERANCE), "processes a report")
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
            detail=f"geometric means of {found.base_count} and {found.new_count} processes",
        )
        backwards = welch_ratio(_fresh(new)[batch], _fresh(base)[batch])
        yield Finding(claim, slower_p(backwards, 1 + REPORT_TOLERANCE), outlook)


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


def _agreement_finding(base: Variant, new: Variant, n: int, reference: str, *, paired: bool) -> Finding:
    if base.agreement is None or new.agreement is None:
        detail = f"was not run in the new report: {new.reason}"
        return Finding(_fraction_claim("agreement", new, base.agreement, new.agreement, "inconclusive", detail))
    counts = _paired_bits(base.agrees, new.agrees, n, f"variant {new.name}, agrees") if paired else None
    if counts is not None:
        how = f"{counts[0]:,} gained, {counts[1]:,} lost; Tango's test"
    else:
        # Unknown which samples agree: at worst none disagrees in both reports, which gives the widest interval.
        gained, lost = round((1 - base.agreement) * n), round((1 - new.agreement) * n)
        shared = max(0, gained + lost - n)
        counts = gained - shared, lost - shared
        how = "Tango's test at the most unfavourable pairing"
    detail = f"with {reference}; n {n:,}; {how}"
    return _paired_finding("agreement", new, (base.agreement, new.agreement), (*counts, n), detail)


def _paired_finding(
    metric: str, new: Variant, values: tuple[float | None, float | None], counts: tuple[int, int, int], detail: str
) -> Finding:
    gained, lost, n = counts
    loss = tango_noninferiority(gained, lost, n, MARGIN_PP / 100)
    gain = tango_noninferiority(lost, gained, n, MARGIN_PP / 100)
    verdict, harmless = _paired_verdict(loss, gain)
    outlook = ""
    if verdict == "inconclusive":
        outlook = f"; no loss of {MARGIN_PP:g} pp or more, whether better is open" if harmless else ""
        outlook = outlook or _what_decides(loss.needed_n, "samples")
    claim = _fraction_claim(metric, new, values[0], values[1], verdict, detail).model_copy(
        update={"low": 100 * loss.low, "high": 100 * loss.high, "p": normal_sf(-loss.z), "harmless": harmless}
    )
    return Finding(claim, normal_sf(-gain.z), outlook)


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


def _judged(findings: Sequence[Finding], deciding: Collection[str]) -> list[Claim]:
    """Hold the claims that decide together, and mark the others as information."""
    decides = [found.claim.variant in deciding and found.claim.metric != "agreement" for found in findings]
    judged = [found for found, decisive in zip(findings, decides, strict=True) if decisive]
    worse, better = _by_family(judged, lambda found: found.claim.p), _by_family(judged, lambda found: found.p_better)
    claims: list[Claim] = []
    for found, decisive in zip(findings, decides, strict=True):
        claim = found.claim
        if decisive:
            claims.append(_held_together(found, worse.get(id(found)), better.get(id(found))))
            continue
        why = "supports top-1" if claim.variant in deciding else "a checkpoint is not what gets deployed"
        detail = "; ".join(filter(None, [claim.detail, f"information, decides nothing: {why}"]))
        claims.append(claim.model_copy(update={"harmless": True, "detail": detail}))
    return claims


def _by_family(findings: Sequence[Finding], p_of: Callable[[Finding], float | None]) -> dict[int, tuple[float, int]]:
    """Identity of a finding -> its p adjusted within its metric, and the claims of that family."""
    adjusted: dict[int, tuple[float, int]] = {}
    for metric in _FAMILIES:
        family = [(found, p) for found in findings if found.claim.metric == metric and (p := p_of(found)) is not None]
        for (found, _), p in zip(family, holm([p for _, p in family]), strict=True):
            adjusted[id(found)] = p, len(family)
    return adjusted


def _held_together(found: Finding, worse: tuple[float, int] | None, better: tuple[float, int] | None) -> Claim:
    claim = found.claim
    changes: dict[str, Any] = {"p_holm": None if worse is None else worse[0], "detail": claim.detail + found.outlook}
    against = {"slower": worse, "worse": worse, "faster": better, "better": better}.get(claim.verdict or "")
    if against is not None and against[0] >= ALPHA:
        changes |= {
            "verdict": "inconclusive",
            "harmless": claim.verdict in ("faster", "better"),
            "detail": f"{claim.detail}; by itself {claim.verdict}, among {against[1]} claims perhaps chance (Holm)",
        }
    return claim.model_copy(update=changes)


def _what_decides(count: int | None, what: str) -> str:
    if count is None:
        return "; the observed change is the tolerance itself, so that no number decides"
    return f"; about {count:,} {what} would decide"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
