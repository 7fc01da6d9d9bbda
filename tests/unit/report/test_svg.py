from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from compress.report.svg import Line, Row, Scale, element, number, rows_chart, shortened, text, tipped


def test_a_scale_puts_its_ends_at_its_ends() -> None:
    scale = Scale(10, 20, 0, 100)
    assert [scale(value) for value in (10, 15, 20)] == [0, 50, 100]
    assert [scale(value) for value in (-5, 25)] == [0, 100], "outside it is the nearer end"
    log = Scale(1, 100, 0, 100, log=True)
    assert log(10) == pytest.approx(50)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Scale(0, 100), [0, 20, 40, 60, 80, 100]),
        (Scale(-2.9, 0.9), [-2, -1, 0]),
        (Scale(97.1, 99.2), [97.5, 98, 98.5, 99]),
        (Scale(1, 3, whole=True), [1, 2, 3]),
        (Scale(0.05, 2, log=True), [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (Scale(0.001, 1000, log=True), [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round(scale: Scale, expected: list[float]) -> None:
    found = scale.ticks(7 if scale.log and scale.high > 100 else 5)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("scale", [Scale(0.9, 1.1, log=True), Scale(1e-9, 2e-9), Scale(99.99, 100), Scale(0, 1e12)])
def test_ticks_lie_on_the_scale(scale: Scale) -> None:
    found = scale.ticks()
    assert 2 <= len(found) <= 9
    assert all(scale.low <= tick * (1 + 1e-9) and tick <= scale.high * (1 + 1e-9) for tick in found)
    assert found == sorted(found)


def test_elements_escape_what_they_are_given() -> None:
    assert element("g", class_='a"b', fill_opacity=0.5, x=None) == '<g class="a&quot;b" fill-opacity="0.5"></g>'
    assert text("<&>", 1, 2) == '<text x="1" y="2" class="t" text-anchor="start">&lt;&amp;&gt;</text>'
    assert "<title>&lt;</title>" in tipped("<")
    assert tipped("") == "<g></g>"


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, -0.5, 1234567.0, 0.25)] == ["0", "−0.5", "1,234,567", "0.25"]


def test_long_words_are_cut() -> None:
    assert shortened("teacher", 100) == "teacher"
    cut = shortened("teacher" * 10, 100)
    assert cut.endswith("…")
    assert len(cut) < 16


def test_rows_over_one_axis() -> None:
    scale = Scale(0, 10)
    rows = [Row("a" * 80, "1.0", tip="all of it"), Row("b", "2.0")]
    svg = rows_chart("key", "Title", "a 1.0; b 2.0", rows, scale, "ms", lines=[Line(5, "limit 5"), Line(0, "", "zero")])
    root = ElementTree.fromstring(svg)
    height = float(root.attrib["viewBox"].split()[3])
    words = [node.text or "" for node in root.iter() if node.tag.endswith("text")]
    assert {"1.0", "b", "2.0", "ms", "limit 5"} <= set(words)
    assert words[0].endswith("…")
    places = [float(node.attrib[key]) for node in root.iter() for key in ("y1", "y2", "y") if key in node.attrib]
    assert max(places) <= height
    assert math.isfinite(height)
