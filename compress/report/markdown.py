"""The report as Markdown, for a file or a comment on a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report.document import ReportDocument, VerdictLike
from compress.report.gates import not_evaluated
from compress.report.tables import Table, fact_lines, report_tables, training_table


def markdown(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> str:
    """Render a report with its gate verdicts.

    Args:
        document: the report; `run` is named in the title where it is set.
        verdicts: of the run's gates; empty where the recipe has none.

    Returns:
        GitHub-flavoured Markdown, one newline at the end.
    """
    title = f"# Report of run {escaped(document.run)}" if document.run else "# Report"
    twin = "" if document.float_twin is None else f", ratios against float twin `{document.float_twin}`"
    parts = [
        title,
        f"Reference `{document.reference}`{twin}; split {document.split}, n {document.n:,}. "
        "Ratio = latency(variant) / latency(float twin): below 1 the variant is faster. Intervals cover 95 %.",
    ]
    training = training_table(document)
    tables = [*report_tables(document, verdicts), *([training] if training.rows else [])]
    parts += [markdown_table(table) for table in tables]
    facts = [*fact_lines(document), *filter(None, [not_evaluated(verdicts)])]
    if facts:
        parts.append("\n".join(f"- {escaped(line)}" for line in facts))
    measured_on = "; ".join(f"{name} {value}" for name, value in document.environment.items() if _scalar(value))
    if measured_on:
        parts.append(f"Measured on: {escaped(measured_on)}.")
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """Return a table under a heading of the second level."""
    rules = ["---:" if column in table.numeric else "---" for column in range(len(table.header))]
    lines = [table.header, rules, *table.rows]
    body = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
    return f"## {table.title}\n\n{body}"


def escaped(text: str | None) -> str:
    """Return a text on one line that means nothing to a Markdown table or as HTML."""
    plain = (text or "").replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(plain.split())


def _scalar(value: object) -> bool:
    return isinstance(value, str | int | float)
