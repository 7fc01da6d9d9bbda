"""What a page says first: the outcome, each deployable variant in a few figures, and what the report does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compress.report.document import RatioRow, ReportDocument, Variant, VerdictLike
from compress.report.figures import hop_changes, paired_change, signed
from compress.report.gates import QUANTIZED_KINDS
from compress.report.tables import size_text

TONES = {"pass": "good", "fail": "bad", "inconclusive": "open", "not run": "none"}


@dataclass(frozen=True)
class Outcome:
    """How the gates ended: `tone` names a style, `word` stands alone, `sentence` says why."""

    tone: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Fact:
    """One figure of a card."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Card:
    """A variant in a few figures; `absent` says why it has none."""

    name: str
    kind: str
    facts: Sequence[Fact]
    absent: str = ""


def outcome(verdicts: Sequence[VerdictLike]) -> Outcome:
    """Sum the gates up, the gravest first, in the order of the exit codes 3, 7, 4, 0."""
    if not verdicts:
        return Outcome("none", "No gates", "The recipe sets no limits: nothing here was judged.")
    counts = Counter(v.verdict for v in verdicts)
    parts = [f"{counts[name]} {words}" for name, words in _COUNTED if counts[name]]
    sentence = f"Of {len(verdicts)} verdict{'s' if len(verdicts) > 1 else ''}: {', '.join(parts)}."
    required = [v for v in verdicts if v.gate == "require" and v.verdict == "not run"]
    if counts["fail"]:
        return Outcome("bad", "Failed", f"{sentence} Failed: {_named(verdicts, 'fail')}.")
    if required:
        names = ", ".join(v.variant for v in required)
        return Outcome("bad", "Not run", f"{sentence} Required, but not run here: {names}.")
    if counts["inconclusive"]:
        return Outcome("open", "Inconclusive", f"{sentence} Undecided: {_named(verdicts, 'inconclusive')}.")
    if counts["pass"]:
        missing = f" Not judged: {_named(verdicts, 'not run')}." if counts["not run"] else ""
        return Outcome("good", "Passed", sentence + missing)
    return Outcome("none", "Not run", f"{sentence} No gate could be judged here.")


def cards(document: ReportDocument) -> list[Card]:
    """Show the quantized variants; where there are none, all but the reference and the float twin."""
    held_against = (document.reference, document.float_twin)
    chosen = [one for one in document.variants if one.kind in QUANTIZED_KINDS and one.name != document.reference]
    chosen = chosen or [one for one in document.variants if one.name not in held_against] or document.variants
    return [_card(document, variant) for variant in chosen]


def caveats(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> list[str]:
    """Say what a reader might take for shown and is not."""
    found = [f"{v.name} was not run: {v.reason}." for v in document.variants if v.status == "not run"]
    drifted = [f"{v.name} at batch {row.batch}" for v in document.variants for row in v.latency if row.unstable]
    if drifted:
        found.append(f"Latency drifted by more than 5 % in both measurements: {', '.join(drifted)}.")
    short = [row for v in document.variants for row in v.latency if row.p99_ms is None]
    if short:
        rows = sum(len(v.latency) for v in document.variants)
        found.append(f"{len(short)} of {rows} latencies have no p99: it needs 1,000 calls or more.")
    sessions = {v.session for v in document.variants if v.session}
    if len(sessions) > 1:
        kinds = ", ".join(sorted(sessions))
        found.append(f"Ratios compare variants in one kind of session only ({kinds}): across kinds there is none.")
    missing = [words for words, there in _optional(document) if not there]
    if missing:
        found.append(f"Not stored in this report: {', '.join(missing)}.")
    unjudged = [v for v in verdicts if v.verdict == "not run"]
    if unjudged:
        found.append(f"Gates without a measurement: {_named(unjudged, 'not run')}.")
    return found


def ladder_sentence(document: ReportDocument) -> str:
    """Name the hop that lost most."""
    changes = hop_changes(document.ladder)
    one = f"One sample is {100 / document.n:.3g} pp."
    if not changes:
        return f"No hop was measured on both sides. {one}"
    hop, change = min(changes, key=lambda found: found[1])
    if change > -0.005:
        return f"No hop lost accuracy. {one}"
    return f"Largest loss: {hop.hop.replace(' -> ', ' → ')}, {signed(change)} pp. {one}"


def speed_text(row: RatioRow, other: str) -> Fact:
    """A ratio of latencies as a speed, for people: `1.40× as fast`; nothing is claimed where the interval holds 1."""
    note = f"as fast as {other}; 95 %: {1 / row.high:.2f} to {1 / row.low:.2f}"
    if row.low <= 1 <= row.high:
        note += "; no difference shown"
    return Fact(f"Speed, batch {row.batch}", f"{1 / row.ratio:.2f}×", note)


def _card(document: ReportDocument, variant: Variant) -> Card:
    facts: list[Fact] = []
    reference = document.variant(document.reference)
    if variant.top1 is not None and variant.top1_interval is not None:
        low, high = variant.top1_interval
        facts.append(Fact("Top-1", f"{100 * variant.top1:.2f} %", f"95 %: {100 * low:.2f} to {100 * high:.2f}"))
    if variant.paired_to_reference is not None and variant.name != reference.name:
        change, interval = paired_change(variant.paired_to_reference)
        note = f"against {reference.name}; 95 %: {signed(interval.low)} to {signed(interval.high)}"
        facts.append(Fact("Change", f"{signed(change)} pp", note))
    if variant.size_bytes:
        share = _share(variant.size_bytes, reference) if reference.size_bytes and variant is not reference else ""
        facts.append(Fact("File", size_text(variant.size_bytes), share))
    if variant.ratio_to_float and document.float_twin:
        facts += [speed_text(row, document.float_twin) for row in variant.ratio_to_float[-1:]]
    if variant.agreement is not None and variant.name != reference.name:
        facts.append(Fact("Agreement", f"{100 * variant.agreement:.2f} %", f"same answer as {reference.name}"))
    absent = f"Not run: {variant.reason}." if variant.status == "not run" else ""
    return Card(variant.name, variant.kind.replace("_", " "), facts, absent)


def _share(size: int, of: Variant) -> str:
    times = size / (of.size_bytes or size)
    if 0.95 < times < 1.05:
        return f"as large as {of.name}"
    if times > 0.5:
        return f"{times:.{1 if times > 1 else 2}f}× that of {of.name}"
    return f"1/{1 / times:.1f} of {of.name}"


def _named(verdicts: Sequence[VerdictLike], verdict: str) -> str:
    return ", ".join(dict.fromkeys(f"{v.gate} of {v.variant}" for v in verdicts if v.verdict == verdict))


def _optional(document: ReportDocument) -> list[tuple[str, bool]]:
    measured = [variant for variant in document.variants if variant.status == "measured"]
    return [
        ("accuracy of the classes", any(one.classes for one in measured)),
        ("confusion", any(one.classes or one.confusion for one in measured)),
        ("latency distributions", any(row.quantiles_ms for one in measured for row in one.latency)),
        ("medians of fresh processes", any(one.fresh for one in measured)),
        ("cold starts and memory", any(one.cold_start for one in measured)),
        ("training curves", bool(document.curves)),
        ("the samples that changed most", any(one.changed or one.classes for one in measured)),
    ]


_COUNTED = (("fail", "failed"), ("inconclusive", "inconclusive"), ("pass", "passed"), ("not run", "not run"))
