"""Tables of a page: more columns than a terminal has room for, each left out where no row has anything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from compress.report.document import ReportDocument, Variant
from compress.report.figures import paired_change, signed
from compress.report.latency_figures import milliseconds
from compress.report.tables import ABSENT, Table, size_text

CLASS_ROWS = 40


@dataclass(frozen=True)
class Cell:
    """A table cell; `tone` is empty, `worse` or `better`, `shade` from 0 to 5 how much."""

    text: str
    tone: str = ""
    shade: int = 0


def compact(table: Table) -> Table:
    """The table without the columns in which every row is absent; the first one stays."""
    kept = [
        column
        for column in range(len(table.header))
        if column == 0 or any(row[column] not in (ABSENT, "") for row in table.rows)
    ]
    return Table(
        table.title,
        tuple(table.header[column] for column in kept),
        tuple(tuple(row[column] for column in kept) for row in table.rows),
        frozenset(index for index, column in enumerate(kept) if column in table.numeric),
    )


def fidelity_table(document: ReportDocument) -> Table:
    """How close every variant is to the reference, in accuracy and in its answers."""
    header = ("variant", "kind", "top-1 % (95 %)", "change pp (95 %)", "gained / lost", "McNemar p", "agreement %",
              "KL mean / p99, nats", "ECE %", "worst class")  # fmt: skip
    rows = tuple(_fidelity_row(document, variant) for variant in document.variants)
    title = f"Against {document.reference}, {document.split} split, n {document.n:,}"
    return compact(Table(title, header, rows, frozenset(range(2, 9))))


def ladder_parity_table(document: ReportDocument) -> Table:
    """Accuracy after every hop and how far the hop moved the logits."""
    header = ("hop", "top-1 %", "agreement %", "SQNR dB", "max abs", "cosine")
    rows = tuple(
        (
            hop.hop.replace(" -> ", " → "),
            _percent(hop.top1),
            _percent(hop.agreement),
            _number(hop.sqnr_db, ".1f"),
            _number(hop.max_abs, ".3g"),
            _number(hop.cosine, ".6f"),
        )
        for hop in document.ladder
    )
    return compact(Table("Parity of every hop; none on training hops", header, rows, frozenset(range(1, 6))))


def page_latency_table(document: ReportDocument) -> Table:
    """Latency of every variant and batch size, and its ratios."""
    header = ("variant", "batch", "session", "p50 ms", "p90 ms", "p99 ms", "p99 (95 %)", "samples/s", "calls",
              "drift %", "ratio to float (95 %)", "ratio to reference (95 %)")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for one in document.variants:
        for row in one.latency:
            ratios = [
                next((f"{r.ratio:.3f} ({r.low:.3f} to {r.high:.3f})" for r in found if r.batch == row.batch), ABSENT)
                if one.name != other
                else ABSENT
                for found, other in (
                    (one.ratio_to_float, document.float_twin),
                    (one.ratio_to_reference, document.reference),
                )
            ]
            interval = row.p99_interval_ms
            rows.append(
                (
                    one.name,
                    str(row.batch),
                    one.session or ABSENT,
                    milliseconds(row.p50_ms),
                    milliseconds(row.p90_ms),
                    ABSENT if row.p99_ms is None else milliseconds(row.p99_ms),
                    ABSENT if interval is None else " to ".join(map(milliseconds, interval)),
                    _number(row.throughput, ",.0f"),
                    f"{row.n:,}",
                    ABSENT if row.drift is None else signed(100 * row.drift, 1) + (" unstable" if row.unstable else ""),
                    *ratios,
                )
            )
    return compact(Table("Latency per call", header, tuple(rows), frozenset({1, *range(3, 12)})))


def cost_table(document: ReportDocument) -> Table:
    """Size, memory and cold start of every variant."""
    header = ("variant", "parameters", "file", "load ms", "first call ms", "memory before", "peak memory", "processes")
    rows = tuple(
        (
            one.name,
            _number(one.parameters, ",d"),
            ABSENT if one.size_bytes is None else size_text(one.size_bytes),
            ABSENT if (cold := one.cold_start) is None else milliseconds(cold.load_ms),
            ABSENT if cold is None else milliseconds(cold.first_ms),
            ABSENT if cold is None else size_text(cold.base_bytes),
            ABSENT if cold is None else size_text(cold.peak_bytes),
            ABSENT if cold is None else str(cold.processes),
        )
        for one in document.variants
    )
    return compact(Table("Size and cold start", header, rows, frozenset(range(1, 8))))


def class_cells(document: ReportDocument) -> tuple[tuple[str, ...], list[list[Cell]]]:
    """Accuracy of every class: header, and rows of cells; the 40 most changed where there are more.

    The reference's column holds accuracies, every other one accuracy and change.
    """
    shown = [one for one in document.variants if one.classes]
    shown.sort(key=lambda one: one.name != document.reference)
    if not shown:
        return (), []
    by_class = {one.name: {row.name: row for row in one.classes} for one in shown}
    names = [row.name for row in shown[0].classes]
    sizes = {row.name: row.n for row in shown[0].classes}
    change = {name: max(abs(found[name].change_pp) for found in by_class.values() if name in found) for name in names}
    if len(names) > CLASS_ROWS:
        names = sorted(names, key=lambda name: -change[name])[:CLASS_ROWS]
    largest = max((change[name] for name in names), default=0) or 1
    rows: list[list[Cell]] = []
    for name in names:
        cells = [Cell(name), Cell(f"{sizes[name]:,}")]
        for one in shown:
            row = by_class[one.name].get(name)
            if row is None:
                cells.append(Cell(ABSENT))
            elif one.name == document.reference:
                cells.append(Cell(f"{100 * row.top1:.1f}"))
            else:
                tone = "" if abs(row.change_pp) < 0.005 else "worse" if row.change_pp < 0 else "better"
                shade = 0 if not tone else max(1, round(5 * abs(row.change_pp) / largest))
                cells.append(Cell(f"{100 * row.top1:.1f} ({signed(row.change_pp, 1)})", tone, shade))
        rows.append(cells)
    return ("class", "n", *(one.name for one in shown)), rows


def lineage_table(document: ReportDocument) -> Table:
    """Every artifact on the way to the report."""
    rows = tuple(
        (
            one.step,
            one.stage,
            one.kind.replace("_", " "),
            ", ".join(f"{role}: {', '.join(steps)}" for role, steps in one.inputs.items()) or ABSENT,
            one.key[:12],
            one.digest[:12],
        )
        for one in document.lineage
    )
    return Table(
        "Every artifact on the way to this report", ("step", "stage", "kind", "made from", "key", "digest"), rows
    )


def fact_table(document: ReportDocument) -> Table:
    """What is known of variants without running them."""
    rows = tuple(
        (one.name, name.replace("_", " "), _plain(value))
        for one in document.variants
        for name, value in one.facts.items()
    )
    return Table("Known without running it", ("variant", "fact", "value"), rows, frozenset({2}))


def flat(entries: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted names and texts, in its order."""
    found: list[tuple[str, str]] = []
    for name, value in entries.items():
        if isinstance(value, Mapping):
            found += flat(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found.append((f"{prefix}{name}", ", ".join(map(_plain, cast("Sequence[Any]", value))) or "none"))
        else:
            found.append((f"{prefix}{name}", _plain(value)))
    return found


def _fidelity_row(document: ReportDocument, one: Variant) -> tuple[str, ...]:
    is_reference = one.name == document.reference
    pair = None if is_reference else one.paired_to_reference
    interval = one.top1_interval
    change, around = (None, None) if pair is None else paired_change(pair)
    roles = [role for role, name in (("reference", document.reference), ("float twin", document.float_twin))
             if name == one.name]  # fmt: skip
    worst = one.worst_class
    return (
        f"{one.name} ({', '.join(roles)})" if roles else one.name,
        one.kind.replace("_", " ") + ("" if one.status == "measured" else ", not run"),
        ABSENT if one.top1 is None or interval is None
        else f"{100 * one.top1:.2f} ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})",
        ABSENT if change is None or around is None
        else f"{signed(change)} ({signed(around.low)} to {signed(around.high)})",
        ABSENT if pair is None else f"{pair.gained:,} / {pair.lost:,}",
        ABSENT if pair is None else _number(pair.mcnemar_p, ".2g"),
        ABSENT if is_reference else _percent(one.agreement),
        ABSENT if is_reference or one.mean_kl is None
        else " / ".join(f"{kl:.4f}" for kl in (one.mean_kl, one.p99_kl) if kl is not None),
        _percent(one.ece),
        ABSENT if worst is None or is_reference or worst.change_pp >= 0
        else f"{worst.name} ({signed(worst.change_pp)} pp, n {worst.n:,})",
    )  # fmt: skip


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.2f}"


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form).replace("-", "−")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
