"""Figures of a report about accuracy: change, loss ladder, training curves, confusion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from compress.measure.statistics import Interval, tango_interval
from compress.report.charts import Series, curves, heat_map
from compress.report.document import Curve, Hop, Paired, ReportDocument, Variant, VerdictLike
from compress.report.svg import Figure, Line, Row, Scale, element, line, rect, row_middle, rows_chart

COLORS = 8
HEAT_MAP_CLASSES = 20
# Name in a training's history, title, unit, note.
_ARM_QUANTITIES = (
    ("validation_top1", "Validation top-1", "%", "Of every training; its beginning only where it is on the scale."),
    ("validation_loss", "Validation loss", "nats", "Cross-entropy: the same function for every training."),
    ("loss", "Training loss", "nats", "Each training minimises its own function."),
)
_LEAST_SPAN_PP = 2.0  # an axis that zooms further would make noise look like news


def colors(document: ReportDocument) -> dict[str, str]:
    """Give every variant its colour class, the same in all figures; the reference's is grey."""
    others = [variant.name for variant in document.variants if variant.name != document.reference]
    return {document.reference: "v0"} | {name: f"v{1 + i % (COLORS - 1)}" for i, name in enumerate(others)}


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, typographically; zero has none."""
    rounded = f"{value:+.{digits}f}"
    return rounded[1:] if float(rounded) == 0 else rounded.replace("-", "−")


def typographic(words: str) -> str:
    """A sentence with real minus signs before its numbers."""
    return re.sub(r"(?<![\w.)])-(?=[\d.])", "−", words)


def paired_change(pair: Paired) -> tuple[float, Interval]:
    """Change of accuracy, percentage points, with its 95 % interval (Tango)."""
    interval = tango_interval(pair.gained, pair.lost, pair.n)
    return 100 * (pair.gained - pair.lost) / pair.n, Interval(100 * interval.low, 100 * interval.high)


def interval_marks(scale: Scale, low: float, high: float, at: float, color: str) -> list[str]:
    """A point with its interval, for a row."""
    ends = [line(scale(x), -4, scale(x), 4, f"whisker {color}") for x in (low, high)]
    dot = element("circle", cx=scale(at), cy=0, r=4, class_=f"{color} full")
    return [line(scale(low), 0, scale(high), 0, f"whisker {color}"), *ends, dot]


def accuracy_changes(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> list[Figure]:
    """Draw the paired change of top-1 of every variant, against the reference and against the float twin."""
    figures: list[Figure] = []
    for other, role, gate in (
        (document.reference, "reference", "top1_drop_pp"),
        (document.float_twin, "float twin", "top1_drop_to_float_pp"),
    ):
        pairs = [
            (one, pair)
            for one in document.variants
            if one.name != other and (pair := _pair(one, other == document.reference))
        ]
        if other is None or (role == "float twin" and other == document.reference) or not pairs:
            continue
        limits = sorted({-v.limit for v in verdicts if v.gate == gate and v.limit is not None})
        figures.append(_change_figure(document, pairs, f"{role} {other}", limits, f"change-{len(figures)}"))
    return figures


def ladder_figure(document: ReportDocument) -> Figure | None:
    """Draw the loss ladder as a waterfall: each hop from the accuracy before it to the one after it."""
    rungs = ladder_rungs(document.ladder)
    levels = [100 * hop.top1 for _, _, hop in rungs if hop.top1 is not None]
    if not levels:
        return None
    scale = _zoomed(min(levels), max(levels))
    rows: list[Row] = []
    behind: list[str] = []
    seen: dict[str, tuple[int, float]] = {}
    for index, (parent, name, hop) in enumerate(rungs):
        start, before = seen.get(parent or "", (0, None))
        rows.append(_rung(hop, before, scale))
        if before is not None and hop.top1 is not None:
            behind.append(line(scale(100 * before), row_middle(start), scale(100 * before), row_middle(index), "link"))
        if hop.top1 is not None:
            seen[name] = (index, hop.top1)
    facts = "; ".join(f"{row.label} {row.value}" for row in rows)
    svg = rows_chart("ladder", "Loss ladder", facts, rows, scale, "top-1 %", behind=behind)
    return Figure("Top-1 after every hop", "Each bar runs from the accuracy before the hop to that after it.", svg)


def ladder_rungs(ladder: Sequence[Hop]) -> list[tuple[str | None, str, Hop]]:
    """Split every hop's name into what it starts from (None at the top) and what it makes."""
    rungs: list[tuple[str | None, str, Hop]] = []
    for hop in ladder:
        parent, arrow, child = hop.hop.partition(" -> ")
        rungs.append((parent, child, hop) if arrow else (None, parent, hop))
    return rungs


def hop_changes(ladder: Sequence[Hop]) -> list[tuple[Hop, float]]:
    """Change of top-1 over every hop that was measured on both sides, percentage points."""
    rungs = ladder_rungs(ladder)
    levels = {name: hop.top1 for _, name, hop in rungs}
    return [
        (hop, 100 * (hop.top1 - before))
        for parent, _, hop in rungs
        if parent is not None and hop.top1 is not None and (before := levels.get(parent)) is not None
    ]


def arm_figures(document: ReportDocument) -> list[Figure]:
    """Draw all training steps in one plot, a figure for each quantity that at least two of them logged.

    The first half of each training is left out as far as it is off the scale of the second halves.
    """
    styles = _arm_styles(document)
    figures: list[Figure] = []
    for key, (name, title, unit, note) in enumerate(_ARM_QUANTITIES):
        factor = 100 if unit == "%" else 1
        logged = {
            curve.step: [(float(one.epoch), factor * value) for one in curve.epochs
                         if (value := one.values.get(name)) is not None]
            for curve in document.curves
        }  # fmt: skip
        arms = _settled({step: points for step, points in logged.items() if points})
        if len(arms) < 2:
            continue
        group = [Series(step, points, *styles[step]) for step, points in arms.items()]
        facts = "; ".join(f"{one.label} ends at {one.points[-1][1]:.4g} {unit}" for one in group)
        svg = curves(f"arms-{key}", f"{title} of every training", facts, [(unit, group)], plot=170.0)
        figures.append(Figure(title, note, svg))
    return figures


def curve_figures(document: ReportDocument) -> list[Figure]:
    """Draw the training of every artifact on the way: accuracies above, losses below."""
    found = [_curve_figure(curve, index) for index, curve in enumerate(document.curves)]
    return [figure for figure in found if figure is not None]


def confusion_figures(document: ReportDocument) -> list[Figure]:
    """Draw which labels are taken for which classes more or less often than by the reference.

    A variant whose changes touch more than 20 classes is left out: `confusion_rows` lists its largest.
    """
    figures: list[Figure] = []
    for variant in document.variants:
        names = _touched(variant)
        if not 0 < len(names) <= HEAT_MAP_CLASSES:
            continue
        place = {name: index for index, name in enumerate(names)}
        cells = {(place[one.label], place[one.predicted]): one.change for one in variant.confusion}
        facts = "; ".join(f"{c.label} as {c.predicted} {c.change:+d}" for c in variant.confusion[:12])
        title = f"{variant.name} against {document.reference}"
        svg = heat_map(f"confusion-{len(figures)}", f"Confusion change of {title}", facts, names, cells,
                       "rows: label; columns: prediction")  # fmt: skip
        figures.append(Figure(title, "Samples more (+) or fewer (−) than by the reference.", svg))
    return figures


def confusion_rows(document: ReportDocument) -> list[tuple[str, str, str, int]]:
    """List the 10 largest changes of every variant that is too wide for a heat map: variant, label, prediction."""
    wide = [variant for variant in document.variants if len(_touched(variant)) > HEAT_MAP_CLASSES]
    return [(one.name, c.label, c.predicted, c.change) for one in wide for c in one.confusion[:10]]


def _touched(variant: Variant) -> list[str]:
    """Classes that the changes touch, in the order of the report's classes."""
    names = dict.fromkeys(name for one in variant.confusion for name in (one.label, one.predicted))
    if not any(one.change for one in variant.confusion):
        return []
    order = {row.name: index for index, row in enumerate(variant.classes)}
    if order and len(order) <= HEAT_MAP_CLASSES and names.keys() <= order.keys():
        return list(order)
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def _pair(variant: Variant, to_reference: bool) -> Paired | None:
    return variant.paired_to_reference if to_reference else variant.paired_to_float


def _change_figure(
    document: ReportDocument, pairs: Sequence[tuple[Variant, Paired]], against: str, limits: Sequence[float], key: str
) -> Figure:
    palette = colors(document)
    found = [(variant, *paired_change(pair)) for variant, pair in pairs]
    ends = [end for _, _, interval in found for end in (interval.low, interval.high)]
    scale = _zoomed(min([0.0, *ends, *limits]), max([0.0, *ends]))
    rows = [
        Row(
            variant.name,
            f"{signed(change)} pp ({signed(interval.low)} to {signed(interval.high)})",
            interval_marks(scale, interval.low, interval.high, change, palette[variant.name]),
        )
        for variant, change, interval in found
    ]
    facts = "; ".join(f"{row.label} {row.value}" for row in rows)
    lines = [Line(0.0, "", "zero"), *(Line(at, f"limit of a gate: {signed(at)} pp") for at in limits)]
    title = f"Change of top-1 against {against}"
    svg = rows_chart(key, title, facts, rows, scale, "percentage points", lines=lines)
    return Figure(title, f"Paired by sample, n {document.n:,}; 95 % intervals (Tango).", svg)


def _rung(hop: Hop, before: float | None, scale: Scale) -> Row:
    label = hop.hop.replace(" -> ", " → ")
    if hop.top1 is None:
        return Row(label, "not run", tone="m")
    after = 100 * hop.top1
    level = line(scale(after), -8, scale(after), 8, "level")
    if before is None:
        return Row(label, f"{after:.2f} %", [level])
    change = after - 100 * before
    left, right = sorted((scale(after), scale(100 * before)))
    tone = "loss" if change < 0 else "gain"
    value = f"{signed(change)} pp · {after:.2f} %" if abs(change) >= 0.005 else f"{after:.2f} %"
    return Row(label, value, [rect(left, -4.5, right - left, 9.0, tone), level], tone=tone if change <= -0.005 else "")


def _curve_figure(curve: Curve, index: int) -> Figure | None:
    named: dict[str, list[tuple[float, float]]] = {}
    for epoch in curve.epochs:
        for name, value in epoch.values.items():
            if value is not None:
                named.setdefault(name, []).append((epoch.epoch, value))
    accuracies = {name: points for name, points in named.items() if "top1" in name or "accuracy" in name}
    losses = {name: points for name, points in named.items() if name in ("loss", "validation_loss")}
    if not losses:
        losses = {name: points for name, points in named.items() if "loss" in name}
    panels: list[tuple[str, list[Series]]] = []
    if accuracies:
        panels.append(("top-1 %", _series({k: [(x, 100 * y) for x, y in v] for k, v in accuracies.items()})))
    if losses:
        panels.append(("loss", _series(losses)))
    if not panels:
        return None
    facts = "; ".join(f"{s.label} ends at {s.points[-1][1]:.4g} ({unit})" for unit, group in panels for s in group)
    count = f"{len(curve.epochs)} epoch{'s' if len(curve.epochs) != 1 else ''}"
    if curve.kept is not None:
        count += f", epoch {curve.kept} kept"
    return Figure(curve.step, count, curves(f"curve-{index}", f"Training of {curve.step}", facts, panels))


def _arm_styles(document: ReportDocument) -> dict[str, tuple[str, bool]]:
    """Colour of every training step, and whether it is dashed: a variant's own colour, else one that is left."""
    palette = colors(document)
    free = [(f"v{k}", dashed) for dashed in (False, True) for k in range(1, COLORS)]
    styles: dict[str, tuple[str, bool]] = {}
    for step in sorted((curve.step for curve in document.curves), key=lambda step: step not in palette):
        own = (palette.get(step, ""), False)
        left = [one for one in free if one not in styles.values()] or free  # more than fit look alike
        styles[step] = own if step in palette and own not in styles.values() else left[0]
    return styles


def _settled(arms: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Sequence[tuple[float, float]]]:
    """Curves without their beginnings, as far as those are off the scale of all second halves."""
    later = [value for points in arms.values() for _, value in points[len(points) // 2 :]]
    low, high = (min(later), max(later)) if later else (0.0, 0.0)
    found: dict[str, Sequence[tuple[float, float]]] = {}
    for step, points in arms.items():
        off = [index for index, (_, value) in enumerate(points) if not low <= value <= high]
        found[step] = points[off[-1] + 1 :] if off else points
    return found


def _series(named: Mapping[str, Sequence[tuple[float, float]]]) -> list[Series]:
    words = {"loss": "training", "validation_loss": "validation", "top1": "training", "validation_top1": "validation"}
    palette = {"training": "v0", "validation": "v1"}
    return [
        Series(label, points, palette.get(label, f"v{2 + i % (COLORS - 2)}"), dashed=label == "training")
        for i, (name, points) in enumerate(sorted(named.items()))
        for label in [words.get(name, name.replace("_", " "))]
    ]


def _zoomed(low: float, high: float) -> Scale:
    spare = max(_LEAST_SPAN_PP - (high - low), 0.0) / 2
    pad = 0.06 * (high - low + 2 * spare)
    return Scale(low - spare - pad, high + spare + pad)
