"""Forms of figures that are more than rows: points, curves over epochs, heat maps. Plain values in, SVG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.svg import (
    TEXT,
    WIDTH,
    Scale,
    axis,
    drawing,
    element,
    line,
    number,
    rect,
    shortened,
    text,
    text_width,
    tipped,
)

_LEFT = 40.0
_PLOT = 210.0
_SHAPES = ("circle", "square", "diamond")


@dataclass(frozen=True)
class Point:
    """A point with a vertical interval; `shape` counts from 0, `color` names a class, `front`: it is on the front."""

    label: str
    x: float
    y: float
    low: float
    high: float
    color: str
    shape: int
    front: bool


@dataclass(frozen=True)
class Series:
    """A curve: (epoch, value) pairs in order."""

    label: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say of each (cost, value) whether no other point is at least as good in both and better in one."""
    return [
        not any((c <= cost and v >= value) and (c < cost or v > value) for c, v in points) for cost, value in points
    ]


def scatter(
    key: str, title: str, description: str, points: Sequence[Point], units: tuple[str, str], shapes: Sequence[str]
) -> str:
    """Draw points over a logarithmic x axis with the front that the best of them form.

    Args:
        key: unique on the page.
        title: the accessible name.
        description: the facts in words.
        points: at least one.
        units: of x and y.
        shapes: what each shape means; named below the axis.
    """
    top, bottom = 20.0, 20 + _PLOT
    low_x, high_x = min(p.x for p in points), max(p.x for p in points)
    low_y, high_y = min(p.low for p in points), max(p.high for p in points)
    pad = max(0.04 * (high_y - low_y), 0.2)
    x = Scale(low_x / 1.6, high_x * 1.6, _LEFT, WIDTH - 6, log=True)
    y = Scale(low_y - pad, high_y + pad, bottom, top)
    parts = [text(units[1], 0, 10, "m")]
    for tick in y.ticks():
        parts += [line(_LEFT, y(tick), x.stop, y(tick), "grid"), text(number(tick), _LEFT - 6, y(tick) + 4, "m", "end")]
    parts += [_front([p for p in points if p.front], x, y)]
    taken = [(x(p.x) - 6, y(p.y) - 6, x(p.x) + 6, y(p.y) + 6) for p in points]
    for one in sorted(points, key=lambda p: p.x):
        tip = f"{one.label}: {number(one.x)} {units[0]}, {one.y:.2f} % ({one.low:.2f} to {one.high:.2f})"
        whisker = line(x(one.x), y(one.low), x(one.x), y(one.high), f"whisker {one.color}")
        mark = _mark(one.shape, x(one.x), y(one.y), f"{one.color} {'full' if one.front else 'hollow'}")
        parts.append(tipped(tip, whisker, mark, _label(one.label, x(one.x), y(one.y), taken, (top, bottom))))
    parts.append(axis(x, bottom, units[0]))
    height = bottom + 34
    if len(shapes) > 1:
        at = 6.0
        for index, name in enumerate(shapes):
            parts += [_mark(index, at, height + 6, "m-mark full"), text(name, at + 9, height + 10, "m")]
            at += text_width(name) + 30
        height += 18
    return drawing(key, title, description, height, *parts)


def curves(
    key: str, title: str, description: str, panels: Sequence[tuple[str, Sequence[Series]]], plot: float = 92.0
) -> str:
    """Draw curves over epochs, one panel under the other.

    Args:
        key: unique on the page.
        title: the accessible name.
        description: the facts in words.
        panels: a unit and the curves, each with at least one point.
        plot: height of a panel without its legend.
    """
    top, parts = 0.0, list[str]()
    epochs = [x for _, group in panels for series in group for x, _ in series.points]
    first, last = min(epochs), max(epochs)
    x = Scale(first, last if last > first else first + 1, _LEFT, WIDTH - 8, whole=True)
    for unit, group in panels:
        legend, top = _curve_legend(unit, group, top)
        parts.append(legend)
        bottom = top + plot
        values = [value for series in group for _, value in series.points]
        pad = 0.06 * (max(values) - min(values)) or max(0.05 * abs(values[0]), 1e-3)
        y = Scale(min(values) - pad, max(values) + pad, bottom, top)
        for tick in y.ticks(4):
            parts += [line(_LEFT, y(tick), x.stop, y(tick), "grid")]
            parts += [text(number(tick), _LEFT - 6, y(tick) + 4, "m", "end")]
        for series in group:
            places = [(x(epoch), y(value)) for epoch, value in series.points]
            style = f"curve {series.color}{' dashed' if series.dashed else ''}"
            way = element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_=style)
            end = element("circle", cx=places[-1][0], cy=places[-1][1], r=2.6, class_=f"{series.color} full")
            parts.append(tipped(f"{series.label}: {number(series.points[-1][1])} {unit} at the end", way, end))
        top = bottom + 14
    return drawing(key, title, description, top + 22, *parts, axis(x, top - 10, "epoch"))


def heat_map(
    key: str, title: str, description: str, names: Sequence[str], cells: Mapping[tuple[int, int], int], axes: str
) -> str:
    """Draw signed counts as a square of cells, coloured by whether they are for the worse.

    Args:
        key: unique on the page.
        title: the accessible name.
        description: the facts in words.
        names: of rows and columns alike, at least 1.
        cells: (row, column) -> change; more is good on the diagonal and bad beside it.
        axes: what rows and columns are.
    """
    margin = min(86.0, max(text_width(name) for name in names) + 8)
    size = (WIDTH - margin - 2) / len(names)
    head = min(86.0, margin if margin > size + 4 else 18.0)
    upright = margin <= size + 4
    top, largest = head + 18, max((abs(value) for value in cells.values()), default=1)
    parts = [text(axes, 0, 11, "m")]
    for index, name in enumerate(names):
        middle = margin + (index + 0.5) * size
        short = shortened(name, margin - 4)
        parts.append(text(short, margin - 6, top + (index + 0.5) * size + 4, "m", "end"))
        if upright:
            parts.append(text(short, middle, top - 6, "m", "middle"))
        else:
            turned = f"rotate(-90 {middle + 4:.1f} {top - 6:.1f})"
            parts.append(text(short, middle + 4, top - 6, "m", "start", transform=turned))
    parts += [_cell(row, column, (margin, top, size), 0, largest, names) for row in range(len(names))
              for column in range(len(names)) if not cells.get((row, column))]  # fmt: skip
    parts += [_cell(*place, (margin, top, size), value, largest, names) for place, value in cells.items() if value]
    return drawing(key, title, description, top + size * len(names) + 3, *parts)


def _cell(
    row: int, column: int, frame: tuple[float, float, float], value: int, largest: int, names: Sequence[str]
) -> str:
    left, top, size = frame
    x, y = left + column * size, top + row * size
    style = "cell diagonal" if row == column else "cell"
    parts = [rect(x + 0.5, y + 0.5, size - 1, size - 1, style)]
    if value:
        worse = (value > 0) != (row == column)
        shade = 0.12 + 0.43 * abs(value) / largest
        parts.append(rect(x + 0.5, y + 0.5, size - 1, size - 1, "worse" if worse else "better", fill_opacity=shade))
        label = f"{value:+d}".replace("-", "−")
        if text_width(label) <= size + 2:
            parts.append(text(label, x + size / 2, y + size / 2 + 4, "t", "middle"))
        return tipped(f"{names[row]} taken for {names[column]}: {value:+d}", *parts)
    return "".join(parts)


def _front(points: Sequence[Point], x: Scale, y: Scale) -> str:
    path = ""
    for one in sorted(points, key=lambda p: (p.x, p.y)):
        path += f"H{x(one.x):.1f}V{y(one.y):.1f}" if path else f"M{x(one.x):.1f} {y.start:.1f}V{y(one.y):.1f}"
    return element("path", d=f"{path}H{x.stop:.1f}", class_="front") if path else ""


def _mark(shape: int, x: float, y: float, style: str) -> str:
    form = _SHAPES[shape % len(_SHAPES)]
    if form == "circle":
        return element("circle", cx=x, cy=y, r=4.5, class_=f"mark {style}")
    turn = f"rotate(45 {x:.1f} {y:.1f})" if form == "diamond" else None
    return element("rect", x=x - 4, y=y - 4, width=8.0, height=8.0, class_=f"mark {style}", transform=turn)


def _label(
    name: str, x: float, y: float, taken: list[tuple[float, float, float, float]], limits: tuple[float, float]
) -> str:
    """Put a point's name where it covers nothing; `taken` gets the place."""
    name = shortened(name, 130)
    wide = text_width(name)
    # First above at the right, where neither the interval nor the front, which comes from the left below, runs.
    steps = (-7, 15, -21, 29, -35, 43)
    choices = [place for step in steps for place in ((x + 7, y + step, "start"), (x - 7, y + step, "end"))]
    best = choices[0]
    for at, base, anchor in choices:
        left = at if anchor == "start" else at - wide
        box = (left, base - TEXT + 2, left + wide, base + 2)
        inside = box[0] > _LEFT and box[2] < WIDTH and limits[0] - 4 < box[1] and box[3] < limits[1]
        if inside and not any(_overlap(box, other) for other in taken):
            best = (at, base, anchor)
            break
    left = best[0] if best[2] == "start" else best[0] - wide
    taken.append((left, best[1] - TEXT + 2, left + wide, best[1] + 2))
    return text(name, best[0], best[1], "t halo", best[2])


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _curve_legend(unit: str, group: Sequence[Series], top: float) -> tuple[str, float]:
    """The unit and the names of the curves, in as many lines as they need; and where the plot below begins."""
    first = text_width(unit) + 14
    parts, at = [text(unit, 0, top + 11, "m")], first
    for series in group:
        label = shortened(series.label, WIDTH - first - 20)
        if at > first and at + 20 + text_width(label) > WIDTH:
            at, top = first, top + 15
        style = f"curve {series.color}{' dashed' if series.dashed else ''}"
        parts += [line(at, top + 7, at + 16, top + 7, style), text(label, at + 20, top + 11, "t")]
        at += text_width(label) + 34
    return "".join(parts), top + 26
