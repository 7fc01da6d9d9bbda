"""From two reports to a comparison: may they be compared, what changed, and what that deserves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from compress.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, NotComparableError
from compress.measure.comparison import RatioComparison, holm, needed_medians_for_limit, slower_p
from compress.measure.statistics import ratio_decision
from compress.report.claims import (
    ALPHA,
    MIN_MEDIANS,
    answer_pairs,
    figures,
    judged_claims,
    latency_pairs,
    references_differ,
)
from compress.report.comparison import Claim, Comparison, Mismatch, Side
from compress.report.document import ReportDocument, Variant, Verdict
from compress.report.gate_rules import drop_verdict, verdicts_for
from compress.report.gates import QUANTIZED_KINDS, GatesConfig, judge

_ABSENT = "nothing"
_NO_BASE = ("not run", None, "the base has no such variant")
_INFORMATIONAL = "--informational shows the figures without verdicts"


def compare_reports(
    base: ReportDocument, new: ReportDocument, *, base_name: str, new_name: str, informational: bool = False
) -> Comparison:
    """Hold one report against another.

    Args:
        base: what the other is held against.
        new: the other.
        base_name: what the user calls it.
        new_name: the same.
        informational: figures without verdicts, whatever the conditions were.

    Returns:
        The comparison; its exit code is 3 where something is worse, else 4 where something is inconclusive, else 0.

    Raises:
        NotComparableError: conditions differ, a variant is missing in the new report, or nothing was measured.
        ArtifactError: a report's answers per sample are damaged.
    """
    mismatches = find_mismatches(base, new)
    for document, name in ((base, base_name), (new, new_name)):
        if not any(variant.status == "measured" for variant in document.variants):
            raise NotComparableError("no variant of this report was measured", where=name, hint="compress doctor")
    if not informational:
        _check_comparable(base, new, mismatches, base_name, new_name)
    claims = figures(base, new, same_samples=not mismatches) if informational else judged_claims(base, new)
    return Comparison(
        base=_side(base, base_name),
        new=_side(new, new_name),
        informational=informational,
        mismatches=mismatches,
        claims=claims,
        notes=list(_notes(base, new)),
        exit_code=_exit_code(claims),
    )


def find_mismatches(base: ReportDocument, new: ReportDocument) -> list[Mismatch]:
    """Find what must be equal before figures may be compared, and is not.

    Args:
        base: one report.
        new: the other.

    Returns:
        Every entry of the fingerprints that differs, its name dotted, the split and its size, and session and kind of
        a variant that both ran; sorted. Without a fingerprint nothing is known to be equal: one entry, `fingerprint`,
        says so.
    """
    before, after = _flat(base.fingerprint), _flat(new.fingerprint)
    if not before or not after:
        stored = ["stored" if entries else "missing" for entries in (before, after)]
        return [Mismatch(entry="fingerprint", base=stored[0], new=stored[1])]
    ran_twice = _ran(base) & _ran(new)
    before |= {"split": base.split, "n": base.n, **_ways(base, ran_twice)}
    after |= {"split": new.split, "n": new.n, **_ways(new, ran_twice)}
    return [
        Mismatch(entry=entry, base=before.get(entry), new=after.get(entry))
        for entry in sorted(before.keys() | after.keys())
        if (entry in before) != (entry in after) or before.get(entry) != after.get(entry)
    ]


def judge_comparison(gates: GatesConfig, base: ReportDocument, new: ReportDocument) -> list[Verdict]:
    """Judge gates on a comparison of two comparable reports.

    `top1_drop_pp` and `latency_ratio` hold each quantized variant against the same variant of the base, by answers
    paired per sample and by medians of fresh processes; every other gate judges the new report by itself.

    Args:
        gates: the limits.
        base: what the other is held against.
        new: the other.

    Returns:
        A verdict for each gate that is set and each quantized variant of the new report. What the base has and the
        new report has not is inconclusive: a measurement that was lost must not pass unseen.

    Raises:
        ArtifactError: a report's answers per sample are damaged.
    """
    before = {variant.name: variant for variant in base.variants}
    pairs = [(before.get(one.name), one) for one in new.variants if one.kind in QUANTIZED_KINDS]
    verdicts: list[Verdict] = []
    if gates.top1_drop_pp is not None:
        verdicts += [_drop(gates.top1_drop_pp, there, here, new.n) for there, here in pairs]
    if gates.latency_ratio is not None:
        verdicts += _latency(gates.latency_ratio, pairs)
    alone = gates.model_copy(update={"top1_drop_pp": None, "latency_ratio": None})
    return verdicts + judge(alone, new)


def _check_comparable(
    base: ReportDocument, new: ReportDocument, mismatches: Sequence[Mismatch], base_name: str, new_name: str
) -> None:
    where = f"{base_name}, {new_name}"
    if mismatches and mismatches[0].entry == "fingerprint":
        older = [name for name, document in ((base_name, base), (new_name, new)) if not document.fingerprint]
        raise NotComparableError(
            "the report does not say under which conditions it was measured (it has no fingerprint)",
            where=", ".join(older),
            hint=f"run its benchmark again: compress run RECIPE --force STEP; {_INFORMATIONAL}",
        )
    if mismatches:
        lines = "".join(f"\n  {one.entry}: {_said(one.base)} in the base, {_said(one.new)}" for one in mismatches)
        raise NotComparableError(
            f"the reports were measured under different conditions:{lines}",
            where=where,
            hint=f"measure both on one machine with the same data and versions; {_INFORMATIONAL}",
        )
    there = [variant.name for variant in new.variants]
    missing = [variant.name for variant in base.variants if variant.name not in there]
    if missing:
        raise NotComparableError(
            f"the new report has no variant {', '.join(map(repr, missing))}; it has: {', '.join(there)}",
            where=new_name,
            hint=f"measure the variants of the base again; {_INFORMATIONAL} of what both have",
        )


def _ran(document: ReportDocument) -> set[str]:
    return {variant.name for variant in document.variants if variant.status == "measured"}


def _ways(document: ReportDocument, names: Collection[str]) -> dict[str, Any]:
    """What each variant is and what ran it, by dotted entry."""
    variants = [variant for variant in document.variants if variant.name in names]
    kinds = {f"variants.{variant.name}.kind": variant.kind for variant in variants}
    return kinds | {f"variants.{variant.name}.session": variant.session for variant in variants}


def _side(document: ReportDocument, name: str) -> Side:
    return Side(
        name=name,
        run=document.run,
        reference=document.reference,
        split=document.split,
        n=document.n,
        environment=document.environment,
    )


def _notes(base: ReportDocument, new: ReportDocument) -> Iterator[str]:
    before = {variant.name: variant for variant in base.variants}
    after = {variant.name: variant for variant in new.variants}
    yield from (f"{name} is in the base only" for name in before if name not in after)
    yield from (f"{name} is new, there is nothing to hold it against" for name in after if name not in before)
    for name, variant in before.items():
        reasons = [(side, one) for side, one in (("base", variant), ("new", after.get(name))) if one is not None]
        missing = [f"in the {side} report ({one.reason})" for side, one in reasons if one.status == "not run"]
        if missing:
            yield f"{name} was not run {' and '.join(missing)}"
    reason = references_differ(base, new)
    if reason is not None:
        yield f"{reason}, so that agreement is not compared"


def _exit_code(claims: Sequence[Claim]) -> int:
    verdicts = {claim.verdict for claim in claims if not claim.harmless}
    if verdicts & {"worse", "slower"}:
        return EXIT_GATE_FAILED
    return EXIT_INCONCLUSIVE if "inconclusive" in verdicts else EXIT_OK


def _drop(limit_pp: float, there: Variant | None, here: Variant, n: int) -> Verdict:
    answer = verdicts_for("top1_drop_pp", here.name, limit_pp, "pp")
    missing = _not_on_both(there, here)
    if there is None or missing is not None:
        return answer(*(missing or _NO_BASE))
    counts = answer_pairs(there, here, n)
    if counts is None:
        return answer("inconclusive", None, "a report holds no answers per sample")
    return drop_verdict(answer, limit_pp, "the base", counts[0], counts[1], n)


def _latency(limits: float | dict[int, float], pairs: Sequence[tuple[Variant | None, Variant]]) -> Iterator[Verdict]:
    questions = [question for pair in pairs for question in _latency_questions(limits, *pair)]
    decidable = [(one.found, one.limit) for one in questions]
    raw = [slower_p(found, limit) for found, limit in decidable if found is not None and limit is not None]
    adjusted = iter(holm(raw))
    for one in questions:
        answer = verdicts_for("latency_ratio", one.variant, one.limit, "ratio")
        if one.found is None or one.limit is None:
            yield answer(*one.undecided)
            continue
        found = one.found
        detail = (
            f"batch {one.batch}: latency {found.ratio:.3f} x that of the base (95 % interval {found.low:.3f} to "
            f"{found.high:.3f}; {found.base_count} and {found.new_count} processes)"
        )
        decision, p = ratio_decision(found.low, found.high, one.limit), next(adjusted)
        if decision == "fail" and p >= ALPHA:
            decision, detail = "inconclusive", f"{detail}; among several claims perhaps chance (Holm's p {p:.2g})"
        if decision == "inconclusive":
            needed = needed_medians_for_limit(found, one.limit, len(raw))
            detail += "" if needed is None else f"; about {needed:,} processes a report would decide at this ratio"
        yield answer(decision, found.ratio, detail)


@dataclass(frozen=True)
class _Question:
    """A latency gate of one variant at one batch size; `undecided` is verdict, value and detail without figures."""

    variant: str
    batch: int | None
    limit: float | None
    found: RatioComparison | None
    undecided: tuple[str, None, str]


def _latency_questions(limits: float | dict[int, float], there: Variant | None, here: Variant) -> Iterator[_Question]:
    missing = _not_on_both(there, here)
    found = latency_pairs(there, here) if there is not None and missing is None else {}
    by_batch = limits if isinstance(limits, dict) else dict.fromkeys(found, limits)
    if missing is not None or not by_batch:
        limit = None if isinstance(limits, dict) else limits
        yield _Question(here.name, None, limit, None, missing or ("inconclusive", None, "no fresh process was timed"))
        return
    for batch, limit in by_batch.items():
        detail = f"batch {batch}: needs medians of {MIN_MEDIANS} fresh processes in each report"
        yield _Question(here.name, batch, limit, found.get(batch), ("inconclusive", None, detail))


def _not_on_both(there: Variant | None, here: Variant) -> tuple[str, None, str] | None:
    """Return verdict, value and detail where a side cannot be held against the other."""
    if there is None:
        return _NO_BASE
    if there.status == "not run":
        return "not run", None, f"was not run in the base report: {there.reason}"
    if here.status == "not run":
        return "inconclusive", None, f"was not run in the new report: {here.reason}"
    return None


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            flat |= _flat(cast("dict[str, Any]", inner), f"{name}.")
        else:
            flat[name] = inner
    return flat


def _said(value: object) -> str:
    return _ABSENT if value is None else str(value)
