"""What the HTML page of a comparison shows: figures of the changes, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.report.comparison import Claim, Comparison, Side
from compress.report.comparison_text import change_text, headline, interval_text, metric_name, value_text
from compress.report.figures import interval_marks, typographic
from compress.report.page_tables import flat
from compress.report.summary import Outcome
from compress.report.svg import Figure, Line, Row, Scale, element, rows_chart
from compress.report.tables import Table

TONES = {
    "faster": "good",
    "better": "good",
    "no difference": "none",
    "inconclusive": "open",
    "slower": "bad",
    "worse": "bad",
}
_ENDS = {0: "good", 3: "bad", 4: "open", 7: "bad"}  # tone of the exit code
_COLORS = {"good": "good-mark", "bad": "bad-mark", "open": "open-mark", "none": "v0"}


def comparison_view(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page's template names."""
    base, new = comparison.base, comparison.new
    return {
        "title": f"{new.title} against {base.title}",
        "outcome": comparison_outcome(comparison),
        "figures": change_figures(comparison),
        "claims": [_claim_row(claim) for claim in comparison.claims],
        "mismatches": Table(
            "Entries of the fingerprints that differ",
            ("entry", "base", "new"),
            tuple((one.entry, _plain(one.base), _plain(one.new)) for one in comparison.mismatches),
        ),
        "sides": Table("The two reports", ("", "base", "new"), _sides(base, new)),
        "environment": _environments(base, new),
    }


def comparison_outcome(comparison: Comparison) -> Outcome:
    """The answer of the comparison in a word, and the claims that decided it by name."""
    if comparison.informational:
        return Outcome("none", "Figures only", "No verdict was asked for.")
    word, _, named = headline(comparison).partition(": ")
    counts = {name: sum(claim.verdict == name for claim in comparison.claims) for name in TONES}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    silent = sum(claim.harmless for claim in comparison.claims)
    told += f"; {silent} of them decide{'s' * (silent == 1)} nothing" if silent else ""
    total = f"Of {len(comparison.claims)} changes: {told or 'none judged'}."
    sentence = f"{typographic(named).replace(' x', '×')}. {total}" if named else total
    return Outcome(_ENDS[comparison.exit_code], f"{word[0].upper()}{word[1:]}", sentence)


def change_figures(comparison: Comparison) -> list[Figure]:
    """Draw the changes with their intervals: latencies, other ratios, accuracies."""
    groups = (
        ("latency", "Latency", "new / base (log); left of 1 is faster", ("latency",)),
        ("accuracy", "Accuracy", "new − base, percentage points; left of 0 is worse", ("top1", "agreement")),
        ("size", "File size", "new / base (log); left of 1 is smaller", ("size",)),
        ("memory", "Peak memory", "new / base (log); left of 1 is smaller", ("memory",)),
    )
    found = [
        (key, title, unit, [c for c in comparison.claims if c.metric in metrics and c.change is not None])
        for key, title, unit, metrics in groups
    ]
    return [_figure(key, title, unit, claims) for key, title, unit, claims in found if claims]


def _figure(key: str, title: str, unit: str, claims: Sequence[Claim]) -> Figure:
    ends = [end for claim in claims for end in (claim.low, claim.change, claim.high) if end is not None]
    tolerances = sorted({claim.tolerance for claim in claims})
    if claims[0].change_unit == "ratio":
        limits = [1 + tolerance for tolerance in tolerances]
        low, high = min([*ends, 1 / limits[-1]]), max([*ends, limits[-1]])
        scale, zero = Scale(max(low, 1e-6) / 1.03, high * 1.03, log=True), 1.0
        words = [f"accepted: {limit:g}" for limit in limits]
    else:
        limits = [-tolerance for tolerance in tolerances]
        low, high = min([*ends, limits[0], -1.0]), max([*ends, 1.0])
        scale, zero = Scale(low - 0.06 * (high - low), high + 0.06 * (high - low)), 0.0
        words = [f"accepted: −{tolerance:g} pp" for tolerance in tolerances]
    rows = [
        Row(
            f"{claim.variant} · {_short_metric(claim)}",
            f"{_change(claim)}{f' {claim.verdict}' if claim.verdict else ''}",
            _marks(claim, scale),
            tip=f"{claim.variant}, {metric_name(claim)}: {change_text(claim)} ({interval_text(claim)}) {claim.verdict}",
        )
        for claim in claims
    ]
    facts = "; ".join(row.tip for row in rows)
    lines = [Line(zero, "", "zero"), *(Line(at, word) for at, word in zip(limits, words, strict=True))]
    note = "95 % intervals." if any(claim.low is not None for claim in claims) else "Exact figures: no interval."
    return Figure(title, note, rows_chart(f"claims-{key}", title, facts, rows, scale, unit, lines=lines))


def _tone(claim: Claim) -> str:
    tone = TONES.get(claim.verdict or "", "none")
    return "open" if claim.harmless and tone == "bad" else tone


def _marks(claim: Claim, scale: Scale) -> list[str]:
    color = _COLORS[_tone(claim)]
    assert claim.change is not None, "only claims with a change are drawn"
    at = max(claim.change, scale.low) if scale.log else claim.change
    if claim.low is None or claim.high is None:
        return [element("circle", cx=scale(at), cy=0, r=4, class_=f"{color} full")]
    low = max(claim.low, scale.low) if scale.log else claim.low
    return interval_marks(scale, low, claim.high, at, color)


def _short_metric(claim: Claim) -> str:
    return f"batch {claim.batch}" if claim.metric == "latency" else metric_name(claim)


def _change(claim: Claim) -> str:
    return "–" if claim.change is None else typographic(change_text(claim)).replace(" x", "×")


def _claim_row(claim: Claim) -> dict[str, str]:
    verdict = claim.verdict or "not judged"
    return {
        "variant": claim.variant,
        "metric": metric_name(claim),
        "base": value_text(claim.base, claim.unit),
        "new": value_text(claim.new, claim.unit),
        "change": _change(claim),
        "interval": "–" if claim.low is None else typographic(interval_text(claim)),
        "verdict": verdict + (" (decides nothing)" if claim.harmless else ""),
        "tone": _tone(claim),
        "p": "–" if claim.p_holm is None else f"{claim.p_holm:.2g}",
        "detail": typographic(claim.detail),
    }


def _sides(base: Side, new: Side) -> tuple[tuple[str, ...], ...]:
    pairs = (
        ("called", base.name, new.name),
        ("run", base.run or "-", new.run or "-"),
        ("reference", base.reference, new.reference),
        ("split", base.split, new.split),
        ("samples", f"{base.n:,}", f"{new.n:,}"),
    )
    return tuple(pairs)


def _environments(base: Side, new: Side) -> Table:
    left, right = dict(flat(base.environment)), dict(flat(new.environment))
    names = list(dict.fromkeys([*left, *right]))
    rows = tuple((name, left.get(name, "-"), right.get(name, "-")) for name in names)
    differing = sum(a != b for _, a, b in rows)
    title = f"Environment; {differing} of {len(rows)} entries differ" if differing else "Environment; all entries equal"
    ordered = tuple(sorted(rows, key=lambda row: row[1] == row[2]))
    return Table(title, ("entry", "base", "new"), ordered)


def _plain(value: object) -> str:
    return "–" if value is None else str(value)
