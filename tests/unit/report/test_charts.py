from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from compress.report.charts import Point, Series, curves, heat_map, pareto_front, scatter
from compress.report.svg import text_width


def words(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


def test_the_front_keeps_what_nothing_beats() -> None:
    #          cost, value: the third is slower and worse than the first, the fourth equals the second
    assert pareto_front([(1, 90), (2, 95), (3, 90), (2, 95)]) == [True, True, False, True]
    assert pareto_front([(1, 90), (1, 91)]) == [False, True]
    assert pareto_front([]) == []


def test_points_are_named_and_those_off_the_front_are_hollow() -> None:
    points = [
        Point("int8", 0.1, 97, 95, 98, "v1", 0, True),
        Point("student", 0.1, 97, 95, 98, "v2", 1, True),
        Point("slow", 5, 90, 89, 91, "v3", 0, False),
    ]
    svg = scatter("k", "t", "d", points, ("ms", "%"), ["ort", "torch"])
    assert {"int8", "student", "slow", "ort", "torch"} <= set(words(svg))
    assert svg.count("hollow") == 1


def test_one_point_alone_is_drawn() -> None:
    assert "only" in words(scatter("k", "t", "d", [Point("only", 1, 50, 50, 50, "v1", 0, True)], ("ms", "%"), ["ort"]))


def test_curves_of_one_epoch_and_of_one_value() -> None:
    flat = Series("validation", [(1, 0.5), (2, 0.5)], "v1")
    single = Series("training", [(1, 0.0)], "v0", dashed=True)
    svg = curves("k", "t", "d", [("loss", [flat, single]), ("top-1 %", [single])])
    assert {"loss", "top-1 %", "validation", "training", "epoch"} <= set(words(svg))
    assert "nan" not in svg


def test_the_legend_of_many_curves_takes_as_many_lines_as_it_needs() -> None:
    group = [Series(f"arm number {k}", [(1, k), (2, k + 1)], "v1") for k in range(9)]
    root = ElementTree.fromstring(curves("k", "t", "d", [("top-1 %", group)]))
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    labels = [node for node in root.iter() if node.tag.endswith("text") and (node.text or "").startswith("arm")]
    places = [(float(one.attrib["x"]), float(one.attrib["y"])) for one in labels]
    assert len(places) == len(set(places)) == 9
    assert max(x for x, _ in places) + text_width("arm number 8") <= width
    lowest_name = max(y for _, y in places)
    ways = [node.attrib["points"] for node in root.iter() if node.tag.endswith("polyline")]
    drawn = [float(place.partition(",")[2]) for way in ways for place in way.split()]
    assert min(drawn) > lowest_name
    assert max(drawn) < height


def test_a_heat_map_colours_what_is_worse_and_what_is_better() -> None:
    #     right more often: better; wrong more often: worse; and the reverse of each
    cells = {(0, 0): 2, (0, 1): 3, (1, 1): -1, (1, 0): -2}
    svg = heat_map("k", "t", "d", ["a", "b"], cells, "rows")
    assert svg.count('class="worse"') == 2
    assert svg.count('class="better"') == 2
    assert {"+2", "+3", "−1", "−2"} <= set(words(svg))
    assert "a taken for b: +3" in svg


def test_a_heat_map_of_twenty_long_names_stays_inside_its_frame() -> None:
    names = [f"a rather long name {k}" for k in range(20)]
    root = ElementTree.fromstring(heat_map("k", "t", "d", names, {(0, 1): 1234}, "rows"))
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    boxes = [{k: float(v) for k, v in n.attrib.items() if k in ("x", "y", "width", "height")} for n in root.iter()
             if n.tag.endswith("rect")]  # fmt: skip
    assert max(box["x"] + box["width"] for box in boxes) <= width
    assert max(box["y"] + box["height"] for box in boxes) <= height
