"""The report and the comparison as one HTML file each: no script, nothing fetched, light and dark, printable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress import __version__
from compress.report.comparison import Comparison
from compress.report.comparison_page import comparison_view
from compress.report.document import ChangedSample, ReportDocument, VerdictLike
from compress.report.figures import (
    accuracy_changes,
    arm_figures,
    confusion_figures,
    confusion_rows,
    curve_figures,
    ladder_figure,
    signed,
    typographic,
)
from compress.report.latency_figures import cost_figures, distribution_figures, ratio_figures, trade_off_figures
from compress.report.page_tables import (
    CLASS_ROWS,
    class_cells,
    cost_table,
    fact_table,
    fidelity_table,
    flat,
    ladder_parity_table,
    lineage_table,
    page_latency_table,
)
from compress.report.summary import TONES, cards, caveats, ladder_sentence, outcome
from compress.report.tables import ABSENT, Table, gate_table, training_table

if TYPE_CHECKING:
    import jinja2

LEAST_KL = 0.0005  # nats; below it is rounding, which an exported float model has, too


def report_html(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> str:
    """Render a report with its gate verdicts as a self-contained page.

    Args:
        document: the report; `run` is named in the title where it is set.
        verdicts: of the run's gates; empty where the recipe has none.

    Returns:
        The file's content, one newline at the end. Sections without data are left out, and the page says so.
    """
    header, class_rows = class_cells(document)
    view: dict[str, Any] = {
        "title": f"Report of run {document.run}" if document.run else "Report",
        "document": document,
        "outcome": outcome(verdicts),
        "cards": cards(document),
        "gates": gate_rows(verdicts),
        "caveats": caveats(document, verdicts),
        "accuracy": {"figures": accuracy_changes(document, verdicts), "table": fidelity_table(document)},
        "ladder": {
            "figure": ladder_figure(document),
            "table": ladder_parity_table(document),
            "lead": ladder_sentence(document),
        },
        "trade_off": trade_off_figures(document),
        "latency": {
            "ratios": ratio_figures(document, verdicts),
            "distributions": distribution_figures(document),
            "table": page_latency_table(document),
        },
        "cost": {"figures": cost_figures(document), "table": cost_table(document)},
        "training": {
            "arms": arm_figures(document),
            "table": training_table(document),
            "curves": curve_figures(document),
        },
        "classes": {"header": header, "rows": class_rows, "lead": _class_sentence(document, class_rows)},
        "confusion": {"figures": confusion_figures(document), "table": _confusion_table(document)},
        "changed": _changed(document),
        "facts": fact_table(document),
        "lineage": lineage_table(document),
        "environment": flat(document.environment),
        "fingerprint": flat(document.fingerprint),
    }
    return _render("report.html", {**view, "sections": _sections(view), "least_kl": LEAST_KL})


def comparison_html(comparison: Comparison) -> str:
    """Render the comparison of two reports as a self-contained page.

    Args:
        comparison: with or without verdicts.

    Returns:
        The file's content, one newline at the end.
    """
    view = comparison_view(comparison)
    return _render("comparison.html", {**view, "comparison": comparison, "gates": gate_rows(comparison.gates)})


def gate_rows(verdicts: Sequence[VerdictLike]) -> list[dict[str, str]]:
    """Rows of the table of gates: its cells by name, and the tone of the verdict."""
    table = gate_table(verdicts)
    rows = [["–" if cell == ABSENT else typographic(cell) for cell in row] for row in table.rows]
    return [{**dict(zip(table.header, row, strict=True)), "tone": TONES[row[2]]} for row in rows]


def _render(template: str, view: Mapping[str, Any]) -> str:
    text = _environment().get_template(template).render(**view, version=__version__)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _sections(view: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, in its order: anchor and name."""
    confusion, cost = view["confusion"], view["cost"]
    there = (
        ("gates", "Gates", view["gates"]),
        ("limits", "What this does not show", view["caveats"]),
        ("accuracy", "Accuracy", True),
        ("ladder", "Loss ladder", view["ladder"]["table"].rows),
        ("trade-off", "Accuracy over latency", view["trade_off"]),
        ("latency", "Latency", view["latency"]["table"].rows),
        ("cost", "Size and start", cost["figures"]),
        ("training", "Training", view["training"]["curves"]),
        ("classes", "Classes", view["classes"]["rows"]),
        ("confusion", "Confusion", confusion["figures"] or confusion["table"].rows),
        ("changed", "Most changed samples", view["changed"]),
        ("facts", "Facts", view["facts"].rows),
        ("lineage", "Lineage", view["lineage"].rows),
        ("environment", "Environment", view["environment"] or view["fingerprint"]),
    )
    return [(anchor, name) for anchor, name, content in there if content]


def _class_sentence(document: ReportDocument, rows: Sequence[object]) -> str:
    counts = [row.n for variant in document.variants for row in variant.classes]
    if not counts:
        return ""
    classes = max(len(variant.classes) for variant in document.variants)
    shown = f" Of {classes} classes the {CLASS_ROWS} that changed most." if classes > len(rows) else ""
    return f"One sample of the smallest class is {100 / min(counts):.2g} pp.{shown}"


def _confusion_table(document: ReportDocument) -> Table:
    rows = tuple((name, label, taken, signed(change, 0)) for name, label, taken, change in confusion_rows(document))
    title = "Largest changes, samples; more classes changed than a heat map can show"
    return Table(title, ("variant", "label", "taken for", "change"), rows, frozenset({3}))


def _changed(document: ReportDocument) -> list[tuple[str, list[dict[str, str]]]]:
    return [
        (variant.name, [_sample(document, one) for one in variant.changed if _has_moved(one)])
        for variant in document.variants
        if variant.changed
    ]


def _has_moved(one: ChangedSample) -> bool:
    return one.kl >= LEAST_KL or one.predicted != one.reference


def _sample(document: ReportDocument, one: ChangedSample) -> dict[str, str]:
    before, after = one.reference == one.label, one.predicted == one.label
    words, tone = ("lost", "bad") if before and not after else ("gained", "good") if after and not before else ("", "")
    picture = document.pictures.get(one.id, "")
    return {
        "id": one.id,
        "label": one.label,
        "reference": one.reference,
        "predicted": one.predicted,
        "kl": f"{one.kl:.3f}",
        "chip": words,
        "tone": tone,
        # Anything but a picture inside the file would make the page fetch something.
        "picture": picture if picture.startswith("data:image/") else "",
    }
