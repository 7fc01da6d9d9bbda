"""Inline SVG: elements, scales, ticks, and the frame that every figure of a page has.

Figures are drawn 360 units wide, which is what a telephone shows at full size; wider pages put them side by side.
Colours are classes of the page's style sheet, so that one drawing serves the light and the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360.0
TEXT = 11.5  # height of text
_CHARACTER = 0.585 * TEXT  # a wide font's average; a narrower one leaves air
_MARGIN = 6.0
_ROW = 35.0
_TRACK = 23.0  # from a row's top to the middle of its marks


@dataclass(frozen=True)
class Scale:
    """From values to places: `low` is drawn at `start`, `high` at `stop`; `whole`: only whole numbers are marked."""

    low: float
    high: float
    start: float = _MARGIN
    stop: float = WIDTH - _MARGIN
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value; outside the scale, the nearer end."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the scale, ascending, about `count` of them."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**k for k in powers for m in steps if self.low <= m * 10.0**k <= self.high]
                if 3 <= len(found) <= count + 1:
                    return found
        step = _round_step((self.high - self.low) / max(1, count - 1))
        step = max(1.0, math.ceil(step)) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 10) for k in range(first, last + 1)]


@dataclass(frozen=True)
class Figure:
    """A drawing with the words that stand above it."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Row:
    """One line of a row chart: words above, marks below, drawn around y = 0; the value stands at the right."""

    label: str
    value: str
    marks: Sequence[str] = ()
    tone: str = ""  # class of the value
    tip: str = ""


@dataclass(frozen=True)
class Line:
    """A vertical line through all rows, e.g. the limit of a gate."""

    at: float
    label: str
    kind: str = "limit"


def element(name: str, *children: str, **attributes: str | float | None) -> str:
    """Build an element; `children` are markup already, attribute values are escaped, None leaves one out."""
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    return f"<{name}{''.join(words)}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, style: str = "t", anchor: str = "start", **attributes: str | float) -> str:
    """Words at a place; `y` is the base line."""
    return element("text", escape(content), x=x, y=y, class_=style, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def rect(x: float, y: float, width: float, height: float, style: str, **attributes: str | float) -> str:
    """A rectangle."""
    return element("rect", x=x, y=y, width=max(0.0, width), height=height, class_=style, **attributes)


def tipped(tip: str, *children: str, **attributes: str | float) -> str:
    """A group with words that a pointer calls up; the figure's description and tables hold the same facts."""
    return element("g", element("title", escape(tip)) if tip else "", *children, **attributes)


def drawing(key: str, title: str, description: str, height: float, *children: str) -> str:
    """The outermost element of a figure.

    Args:
        key: unique on the page.
        title: the accessible name.
        description: what a reader who cannot see it should know.
        height: in the units of `WIDTH`.
        children: markup.
    """
    return element(
        "svg",
        element("title", escape(title), id=f"{key}-title"),
        element("desc", escape(description), id=f"{key}-text"),
        *children,
        viewBox=f"0 0 {_plain(WIDTH)} {_plain(height)}",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-text",
        xmlns="http://www.w3.org/2000/svg",
    )


def text_width(content: str) -> float:
    """About how wide words are drawn."""
    return _CHARACTER * len(content)


def shortened(content: str, width: float) -> str:
    """The words, cut with an ellipsis where they would be wider than `width`."""
    room = max(2, int(width / _CHARACTER))
    return content if len(content) <= room else content[: room - 1].rstrip() + "…"


def number(value: float) -> str:
    """A tick's label: as short as it can be."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def rows_chart(
    key: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    scale: Scale,
    unit: str,
    *,
    lines: Sequence[Line] = (),
    behind: Sequence[str] = (),
) -> str:
    """Draw rows over one common axis.

    Args:
        key: unique on the page.
        title: the accessible name.
        description: the facts in words.
        rows: from the top.
        scale: where values are, as the rows' marks were drawn.
        unit: of the axis.
        lines: vertical, through all rows, each labelled on the axis's second line.
        behind: markup under the rows, in the chart's coordinates; see `row_middle`.
    """
    bottom = _ROW * len(rows) + 4
    upright = [*((tick, "grid") for tick in scale.ticks()), *((one.at, one.kind) for one in lines)]
    # Each line pauses where a row has words, so that nothing is crossed out.
    starts = [index * _ROW + _TRACK for index in range(len(rows))]
    parts = [line(scale(at), y - 8, scale(at), y + 11, kind) for at, kind in upright for y in starts]
    parts += behind
    for index, row in enumerate(rows):
        label = shortened(row.label, WIDTH - 2 * _MARGIN - text_width(row.value) - 10)
        words = (
            text(label, _MARGIN, 12, "t halo"),
            text(row.value, WIDTH - _MARGIN, 12, f"t halo {row.tone}".rstrip(), "end"),
            element("g", *row.marks, transform=f"translate(0 {_plain(_TRACK)})"),
        )
        tip = row.tip or f"{row.label}: {row.value}"
        parts.append(tipped(tip, *words, transform=f"translate(0 {_plain(index * _ROW)})"))
    parts.append(axis(scale, bottom, unit))
    height = bottom + 32
    if labels := [one for one in lines if one.label]:
        words = "; ".join(one.label for one in labels)
        height += 15
        parts += [line(_MARGIN, height - 8, _MARGIN + 16, height - 8, labels[0].kind)]
        parts += [text(shortened(words, WIDTH - 40), _MARGIN + 22, height - 4, "m")]
    return drawing(key, title, description, height, *parts)


def row_middle(index: int) -> float:
    """Height of the middle of a row's marks in the chart's coordinates."""
    return index * _ROW + _TRACK


def axis(scale: Scale, y: float, unit: str) -> str:
    """A horizontal axis below a plot: labelled ticks, and the unit under them at the right; 32 high."""
    parts = [line(scale.start, y, scale.stop, y, "axis")]
    ticks = scale.ticks()
    room = max((text_width(number(tick)) for tick in ticks), default=0) + 4
    last = -math.inf
    for tick in ticks:
        at = min(max(scale(tick), scale.start + text_width(number(tick)) / 2), WIDTH - text_width(number(tick)) / 2)
        if at - last >= room:
            parts.append(text(number(tick), at, y + 14, "m", "middle"))
            last = at
    parts.append(text(unit, scale.stop, y + 28, "m", "end"))
    return "".join(parts)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.7)


def _plain(value: str | float | None) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
