"""A comparison for the terminal, for pull requests and for CI servers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from compress.report.comparison import Claim, Comparison
from compress.report.document import Verdict
from compress.report.gates import not_evaluated
from compress.report.markdown import escaped, markdown_table
from compress.report.tables import ABSENT, Table, gate_table, size_text

_METRICS = {"top1": "top-1", "agreement": "agreement", "size": "file size", "memory": "peak memory"}
_ENDS = {
    0: "nothing is worse",
    3: "something is worse",
    4: "inconclusive",
    7: "a required variant was not run",
}
_GATE_ENDS = {**_ENDS, 0: "the gates passed", 3: "a gate failed", 4: "a gate is inconclusive"}
# XML 1.0 has no place for these, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def headline(comparison: Comparison) -> str:
    """Say in one line what the comparison found, the claims that decided it by name."""
    if comparison.informational:
        return "informational: figures without verdicts"
    if comparison.gates:
        end, bad = _GATE_ENDS[comparison.exit_code], [v for v in comparison.gates if v.verdict in _bad(comparison)]
        named = [f"{verdict.gate} of {verdict.variant}" for verdict in bad]
    else:
        end = _ENDS[comparison.exit_code]
        named = [
            f"{claim.variant} {metric_name(claim)} {change_text(claim)}"
            for claim in comparison.claims
            if claim.verdict in _bad(comparison) and not claim.harmless
        ]
    return f"{end}: {', '.join(dict.fromkeys(named))}" if named else end


def metric_name(claim: Claim) -> str:
    """Name a claim's metric, a latency with its batch size."""
    return _METRICS.get(claim.metric, f"latency, batch {claim.batch}")


def change_text(claim: Claim) -> str:
    """Return the change with its unit: `1.120 x` or `-0.40 pp`."""
    if claim.change is None:
        return ABSENT
    return f"{claim.change:.3f} x" if claim.change_unit == "ratio" else f"{claim.change:+.2f} pp"


def interval_text(claim: Claim) -> str:
    """Return the change's 95 % interval, in its unit."""
    if claim.low is None or claim.high is None:
        return ABSENT
    form = "{:.3f} to {:.3f}" if claim.change_unit == "ratio" else "{:+.2f} to {:+.2f}"
    return form.format(claim.low, claim.high)


def value_text(value: float | None, unit: str) -> str:
    """Return a figure of one side with its unit."""
    if value is None:
        return ABSENT
    if unit == "bytes":
        return size_text(int(value))
    return f"{100 * value:.2f} %" if unit == "fraction" else f"{value:.3f} ms"


def claim_table(comparison: Comparison) -> Table:
    """Return every claim, one a row."""
    header = ("variant", "metric", "base", "new", "change", "95 % interval", "verdict", "detail")
    rows = tuple(
        (
            claim.variant,
            metric_name(claim),
            value_text(claim.base, claim.unit),
            value_text(claim.new, claim.unit),
            change_text(claim),
            interval_text(claim),
            claim.verdict or ABSENT,
            claim.detail,
        )
        for claim in comparison.claims
    )
    return Table("Changes", header, rows, frozenset(range(2, 6)))


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return all tables of a comparison; those without rows are left out."""
    mismatches = tuple((one.entry, _plain(one.base), _plain(one.new)) for one in comparison.mismatches)
    tables = (
        claim_table(comparison),
        gate_table(comparison.gates),
        Table("Conditions that differ", ("condition", "base", "new"), mismatches),
    )
    return [table for table in tables if table.rows]


def remarks(comparison: Comparison) -> list[str]:
    """Return what stands below the tables: the notes, and the gates that nothing was measured for."""
    return [*comparison.notes, *filter(None, [not_evaluated(comparison.gates)])]


def comparison_markdown(comparison: Comparison) -> str:
    """Render a comparison as GitHub-flavoured Markdown that fits a comment, one newline at the end."""
    base, new = comparison.base, comparison.new
    parts = [
        f"# {escaped(new.title)} against {escaped(base.title)}",
        f"**{escaped(headline(comparison))}**",
        f"Split {escaped(new.split)}, n {new.n:,}. A ratio is new / base: below 1 is faster or smaller. "
        "Intervals cover 95 %; a change counts beyond 5 % of a latency or of memory, 1 % of a file, 1 pp of an "
        "accuracy. What gets deployed decides: claims about checkpoints, and agreement, are information.",
    ]
    parts += [markdown_table(table) for table in comparison_tables(comparison)]
    notes = remarks(comparison)
    if notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def comparison_junit(comparison: Comparison) -> str:
    """Render a comparison as JUnit XML: a test case a variant and metric, and one a gate.

    Worse is a failure, inconclusive an error and what was not judged skipped; where gates decide, the metrics' own
    verdicts are only told.
    """
    suite = ElementTree.Element("testsuite", name=_xml(f"{comparison.new.title} against {comparison.base.title}"))
    for claim in comparison.claims:
        _claim_case(suite, claim, decides=not comparison.gates)
    for verdict in comparison.gates:
        _gate_case(suite, verdict)
    counts = {"tests": len(suite)}
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        counts[attribute] = len(suite.findall(f"testcase/{tag}"))
    root = ElementTree.Element("testsuites")
    for element in (suite, root):
        element.attrib.update({name: str(count) for name, count in counts.items()})
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _claim_case(suite: ElementTree.Element, claim: Claim, *, decides: bool) -> None:
    text = (
        f"{value_text(claim.base, claim.unit)} -> {value_text(claim.new, claim.unit)}, change {change_text(claim)} "
        f"(95 % interval {interval_text(claim)}), {claim.verdict or 'no verdict'}"
        + (f"; {claim.detail}" if claim.detail else "")
    )
    outcome = ""
    if claim.verdict is None:
        outcome = "skipped"
    elif decides and claim.verdict in ("worse", "slower") and not claim.harmless:
        outcome = "failure"
    elif decides and claim.verdict == "inconclusive" and not claim.harmless:
        outcome = "error"
    _case(suite, claim.variant, metric_name(claim), outcome, claim.verdict or "no verdict", text)


def _gate_case(suite: ElementTree.Element, verdict: Verdict) -> None:
    outcome = {"pass": "", "fail": "failure", "inconclusive": "error"}.get(verdict.verdict, "skipped")
    if verdict.gate == "require" and outcome == "skipped":
        outcome = "error"
    batch = re.match(r"(batch \d+):", verdict.detail)
    name = f"gate {verdict.gate}" + (f", {batch[1]}" if batch else "")
    _case(suite, verdict.variant, name, outcome, verdict.verdict, verdict.detail)


def _case(suite: ElementTree.Element, variant: str, name: str, outcome: str, verdict: str, text: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(variant), name=_xml(name), time="0")
    if not outcome:
        ElementTree.SubElement(case, "system-out").text = _xml(text)
        return
    result = ElementTree.SubElement(case, outcome, message=_xml(f"{verdict}: {text}"))
    if outcome != "skipped":
        result.set("type", verdict)
        result.text = _xml(text)


def _bad(comparison: Comparison) -> Sequence[str]:
    return {3: ("fail", "worse", "slower"), 4: ("inconclusive",), 7: ("not run",)}.get(comparison.exit_code, ())


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _plain(value: object) -> str:
    return ABSENT if value is None else str(value)
