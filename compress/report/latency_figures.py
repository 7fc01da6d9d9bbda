"""Figures of a report about cost: latency, its distribution and ratios, size, memory, cold start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.report.charts import Point, pareto_front, scatter
from compress.report.document import LatencyRow, ReportDocument, Variant, VerdictLike
from compress.report.figures import colors, interval_marks
from compress.report.svg import Figure, Line, Row, Scale, line, rect, rows_chart
from compress.report.tables import size_text

# Pairs of places in `quantiles_ms` (steps of 2.5 %) between which a band is drawn, the widest first.
_BANDS = ((1, 39, "band-95"), (4, 36, "band-80"), (10, 30, "band-50"))
_QUANTILES = 41


def trade_off_figures(document: ReportDocument) -> list[Figure]:
    """Draw accuracy over latency, one figure a batch size, with the Pareto front over the measured variants."""
    palette = colors(document)
    sessions = list(dict.fromkeys(one.session or "" for one in document.variants if one.latency))
    figures: list[Figure] = []
    for batch in batches(document):
        rows = [(one, row) for one in document.variants for row in one.latency if row.batch == batch]
        known = [(v, row, v.top1, v.top1_interval) for v, row in rows if v.top1 is not None and v.top1_interval]
        if len(known) < 2:
            continue
        front = pareto_front([(row.p50_ms, top1) for _, row, top1, _ in known])
        points = [
            Point(v.name, row.p50_ms, 100 * top1, 100 * low, 100 * high, palette[v.name],
                  sessions.index(v.session or ""), best)
            for (v, row, top1, (low, high)), best in zip(known, front, strict=True)
        ]  # fmt: skip
        best = ", ".join(point.label for point in points if point.front)
        facts = "; ".join(f"{point.label} {point.x:.3g} ms, {point.y:.2f} %" for point in points)
        title = f"Batch {batch}"
        svg = scatter(f"trade-{batch}", f"Accuracy over latency, batch {batch}", f"{facts}. On the front: {best}.",
                      points, ("p50 latency, ms per call (log)", "top-1 %"), sessions)  # fmt: skip
        figures.append(Figure(title, f"On the front (filled): {best}.", svg))
    return figures


def distribution_figures(document: ReportDocument) -> list[Figure]:
    """Draw the latency of every variant as bands of quantiles, one figure a batch size."""
    palette = colors(document)
    figures: list[Figure] = []
    for batch in batches(document):
        rows = [(one, row) for one in document.variants for row in one.latency if row.batch == batch]
        fresh = {one.name: [ms for f in one.fresh if f.batch == batch for ms in f.medians_ms] for one, _ in rows}
        ends = [end for _, row in rows for end in _shown_range(row)] + [ms for found in fresh.values() for ms in found]
        scale = _log_scale(ends)
        drawn = [
            Row(
                f"{one.name} · n {row.n:,}{' · drifted' if row.unstable else ''}",
                _latency_words(row),
                [*_bands(row, scale, palette[one.name]), *_fresh(fresh[one.name], scale)],
            )
            for one, row in rows
        ]
        facts = "; ".join(f"{row.label}: {row.value}" for row in drawn)
        svg = rows_chart(f"latency-{batch}", f"Latency, batch {batch}", facts, drawn, scale, "ms per call (log)")
        whole = all(len(row.quantiles_ms) == _QUANTILES for _, row in rows)
        note = "Middle 50, 80 and 95 % of the calls; line: median."
        if not whole:
            note = "Line: median; bar: to p90; thin line: to p99, where 1,000 calls or more show one."
        if any(fresh.values()):
            note += " Ticks below: medians of fresh processes."
        figures.append(Figure(f"Batch {batch}", note, svg))
    return figures


def ratio_figures(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> list[Figure]:
    """Draw the ratios to the float twin and to the reference with their intervals."""
    twin = [(one, row) for one in document.variants for row in one.ratio_to_float]
    reference = [(one, row) for one in document.variants for row in one.ratio_to_reference]
    limits = sorted({v.limit for v in verdicts if v.gate == "latency_ratio" and v.limit is not None})
    palette, figures = colors(document), list[Figure]()
    for found, role, name, lines in (
        (twin, "float twin", document.float_twin, limits),
        (reference, "reference", document.reference, []),
    ):
        found = [(one, row) for one, row in found if one.name != name]
        if not found or (role == "reference" and name == document.float_twin):
            continue
        scale = _log_scale([*(end for _, row in found for end in (row.low, row.high)), 1.0, *lines], least=1.5)
        rows = [
            Row(
                f"{one.name} · batch {row.batch}",
                f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})",
                interval_marks(scale, row.low, row.high, row.ratio, palette[one.name]),
            )
            for one, row in found
        ]
        marks = [Line(1.0, "", "zero"), *(Line(at, f"limit of a gate: {at:g}") for at in lines)]
        title, facts = f"Latency against {role} {name}", "; ".join(f"{row.label}: {row.value}" for row in rows)
        key = f"ratio-{len(figures)}"
        svg = rows_chart(key, title, facts, rows, scale, "ratio (log); left of 1 is faster", lines=marks)
        blocks = sorted({row.blocks for _, row in found})
        note = f"Same run, interleaved, {' or '.join(map(str, blocks))} blocks; 95 % intervals."
        figures.append(Figure(title, note, svg))
    return figures


def cost_figures(document: ReportDocument) -> list[Figure]:
    """Draw file sizes, memory and cold starts as bars from zero."""
    sized = [_Bar(v, [v.size_bytes], size_text(v.size_bytes)) for v in document.variants if v.size_bytes]
    cold = [(v, v.cold_start) for v in document.variants if v.cold_start is not None]
    memory = [
        _Bar(v, [c.base_bytes, max(0, c.peak_bytes - c.base_bytes)],
             f"{size_text(c.peak_bytes)} (+{size_text(max(0, c.peak_bytes - c.base_bytes))})")
        for v, c in cold
    ]  # fmt: skip
    started = [_Bar(v, [c.load_ms, c.first_ms], f"{c.load_ms:.1f} + {c.first_ms:.1f} ms") for v, c in cold]
    processes = f"Median of {max((c.processes for _, c in cold), default=0)} fresh processes."
    figures = [
        _bars(document, "size", "File size", "Of the file that the session loads.", sized, "bytes"),
        _bars(document, "memory", "Peak resident memory",
              f"Pale: the runtime alone; in brackets: what the variant adds. {processes}", memory, "bytes"),
        _bars(document, "cold", "Cold start", f"Pale: load; full: first call. {processes}", started, "ms"),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


def batches(document: ReportDocument) -> list[int]:
    """Batch sizes at which anything was timed, ascending."""
    return sorted({row.batch for variant in document.variants for row in variant.latency})


@dataclass(frozen=True)
class _Bar:
    variant: Variant
    parts: Sequence[float]
    value: str


def _bars(document: ReportDocument, key: str, title: str, note: str, bars: Sequence[_Bar], unit: str) -> Figure | None:
    if not bars:
        return None
    palette = colors(document)
    largest = max(sum(bar.parts) for bar in bars)
    divisor, unit = _unit(largest, unit)
    scale = Scale(0.0, largest / divisor * 1.02 or 1.0)
    rows: list[Row] = []
    for bar in bars:
        marks: list[str] = []
        at, color = 0.0, palette[bar.variant.name]
        for index, part in enumerate(bar.parts):
            pale = " pale" if len(bar.parts) > 1 and index == 0 else ""
            x, end = scale(at), scale(at + part / divisor)
            marks.append(rect(x, -5, max(end - x, 1.0), 10.0, f"{color} full{pale}"))
            at += part / divisor
        rows.append(Row(bar.variant.name, bar.value, marks))
    facts = "; ".join(f"{row.label} {row.value}" for row in rows)
    return Figure(title, note, rows_chart(key, title, facts, rows, scale, unit))


def _unit(largest: float, unit: str) -> tuple[float, str]:
    if unit != "bytes":
        return 1.0, unit
    return next(((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size), (1.0, "B"))


def _shown_range(row: LatencyRow) -> tuple[float, float]:
    if len(row.quantiles_ms) == _QUANTILES:
        return row.quantiles_ms[1], max(row.quantiles_ms[39], row.p90_ms)
    return row.p50_ms, row.p99_ms or row.p90_ms


def _latency_words(row: LatencyRow) -> str:
    p99 = "" if row.p99_ms is None else f" · p99 {milliseconds(row.p99_ms)}"
    return f"p50 {milliseconds(row.p50_ms)}{p99} ms"


def milliseconds(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:,.0f}"
    )


def _bands(row: LatencyRow, scale: Scale, color: str) -> list[str]:
    median = line(scale(row.p50_ms), -7, scale(row.p50_ms), 7, "median")
    if len(row.quantiles_ms) == _QUANTILES:
        places = [scale(value) for value in row.quantiles_ms]
        bands = [rect(places[a], -5, max(places[b] - places[a], 1.0), 10.0, f"{color} {kind}") for a, b, kind in _BANDS]
        return [*bands, median]
    left, right = scale(row.p50_ms), scale(row.p90_ms)
    tail = [] if row.p99_ms is None else [line(right, 0, scale(row.p99_ms), 0, f"whisker {color}")]
    return [*tail, rect(left, -5, max(right - left, 1.0), 10.0, f"{color} band-50"), median]


def _fresh(medians: Sequence[float], scale: Scale) -> list[str]:
    return [line(scale(ms), 7, scale(ms), 11.5, "fresh") for ms in medians]


def _log_scale(values: Sequence[float], least: float = 2.0) -> Scale:
    """A scale over all values; at least a factor of `least` wide, so that little differences look little."""
    low, high = min(values), max(values)
    spare = max(1.0, (least / (high / low)) ** 0.5)
    return Scale(low / spare / 1.06, high * spare * 1.06, log=True)
