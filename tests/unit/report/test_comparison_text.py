"""A comparison as tables, Markdown and JUnit."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from compress.report.comparison import Claim, Comparison, Mismatch
from compress.report.comparison_text import comparison_junit, comparison_markdown, comparison_tables, headline
from compress.report.document import Verdict

SIDE = {"reference": "teacher", "split": "test", "n": 450}


def claim(variant: str, verdict: str | None, **fields: Any) -> Claim:
    defaults = {
        "metric": "latency", "batch": 1, "base": 1.0, "new": 1.12, "unit": "ms", "change": 1.12, "change_unit": "ratio",
        "low": 1.1, "high": 1.14, "tolerance": 0.05, "detail": "geometric means",
    }  # fmt: skip
    return Claim.model_validate({"variant": variant, "verdict": verdict, **defaults, **fields})


TOP1 = {
    "metric": "top1", "batch": None, "base": 0.9, "new": 0.885, "unit": "fraction", "change": -1.5,
    "change_unit": "pp", "low": -3.0, "high": 0.1, "tolerance": 1.0,
}  # fmt: skip
SIZE = {"metric": "size", "batch": None, "base": 1000, "new": None, "unit": "bytes", "change": None, "low": None}


def comparison(claims: list[Claim], code: int, **fields: Any) -> Comparison:
    return Comparison.model_validate(
        {"base": {"name": "main", **SIDE}, "new": {"name": "branch|<b>", **SIDE}, "claims": claims, "exit_code": code}
        | fields
    )


WORSE = comparison(
    [
        claim("int8", "slower"),
        claim("int8", "inconclusive", **TOP1),
        claim("float", "inconclusive", harmless=True, **{**TOP1, "metric": "agreement"}),
        claim("float", "no difference", **SIZE),
    ],
    3,
    notes=["engine is in the base only"],
)


def gate(verdict: str, name: str = "latency_ratio") -> Verdict:
    return Verdict.model_validate(
        {"gate": name, "variant": "int8", "verdict": verdict, "limit": 1.05, "value": 1.1, "unit": "ratio",
         "detail": "batch 1: latency 1.1"}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (WORSE, "something is worse: int8 latency, batch 1 1.120 x"),
        (comparison([claim("int8", "no difference")], 0), "nothing is worse"),
        (comparison(WORSE.claims[1:], 4), "inconclusive: int8 top-1 -1.50 pp"),
        (comparison([claim("int8", None)], 0, informational=True), "informational: figures without verdicts"),
        (comparison(WORSE.claims, 0, gates=[gate("pass")]), "the gates passed"),
        (comparison(WORSE.claims, 3, gates=[gate("fail")]), "a gate failed: latency_ratio of int8"),
        (comparison([], 7, gates=[gate("not run", "require")]), "a required variant was not run: require of int8"),
    ],
)
def test_headline(found: Comparison, line: str) -> None:
    assert headline(found) == line


def test_titles_name_the_run_or_else_the_file() -> None:
    sides = {
        "base": {"name": "/somewhere/artifacts/benchmark/ab12/report.json", **SIDE},
        "new": {"name": "../elsewhere/report.json", "run": "digits-0002", **SIDE},
    }
    found = comparison([claim("int8", "slower")], 3, **sides)
    assert comparison_markdown(found).startswith("# digits-0002 against report.json\n")
    assert cases(found)[0][0].attrib["name"] == "digits-0002 against report.json"


def test_what_decides_nothing_is_no_failure() -> None:
    root, found = cases(comparison([claim("teacher", "slower", harmless=True)], 0))
    assert root.attrib["failures"] == "0"
    assert [child.tag for child in found["teacher", "latency, batch 1"]] == ["system-out"]


def test_tables() -> None:
    (changes,) = comparison_tables(WORSE)
    assert changes.header[:7] == ("variant", "metric", "base", "new", "change", "95 % interval", "verdict")
    assert [row[1:7] for row in changes.rows] == [
        ("latency, batch 1", "1.000 ms", "1.120 ms", "1.120 x", "1.100 to 1.140", "slower"),
        ("top-1", "90.00 %", "88.50 %", "-1.50 pp", "-3.00 to +0.10", "inconclusive"),
        ("agreement", "90.00 %", "88.50 %", "-1.50 pp", "-3.00 to +0.10", "inconclusive"),
        ("file size", "1.0 kB", "-", "-", "-", "no difference"),
    ]
    shown = comparison(
        [claim("int8", None)],
        0,
        informational=True,
        mismatches=[Mismatch(entry="threads", base=2, new=None)],
        gates=[gate("pass")],
    )
    tables = comparison_tables(shown)
    assert [table.title for table in tables] == ["Changes", "Gates", "Conditions that differ"]
    assert tables[2].rows == (("threads", "2", "-"),)


def test_markdown_fits_a_comment() -> None:
    text = comparison_markdown(WORSE)
    lines = text.splitlines()
    assert lines[0] == "# branch\\|&lt;b> against main"
    assert lines[2] == "**something is worse: int8 latency, batch 1 1.120 x**"
    assert "| int8 | latency, batch 1 | 1.000 ms | 1.120 ms | 1.120 x | 1.100 to 1.140 | slower |" in text
    assert lines[-1] == "- engine is in the base only"
    assert text.endswith("\n")
    assert "not evaluated: latency_ratio of int8" in comparison_markdown(comparison([], 0, gates=[gate("not run")]))


def cases(found: Comparison) -> tuple[ElementTree.Element, dict[tuple[str, str], ElementTree.Element]]:
    text = comparison_junit(found)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
    root = ElementTree.fromstring(text.encode())
    found_cases = {(one.attrib["classname"], one.attrib["name"]): one for one in root.iter("testcase")}
    return root, found_cases


def test_junit_has_a_case_a_variant_and_metric() -> None:
    root, found = cases(WORSE)
    (suite,) = root
    assert (suite.tag, suite.attrib["name"]) == ("testsuite", "branch|<b> against main")
    for element in (root, suite):
        counts = {name: element.attrib[name] for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "0"}
    failure = found["int8", "latency, batch 1"].find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "slower"
    assert (
        failure.text == "1.000 ms -> 1.120 ms, change 1.120 x (95 % interval 1.100 to 1.140), slower; geometric means"
    )
    assert failure.attrib["message"] == f"slower: {failure.text}"
    error = found["int8", "top-1"].find("error")
    assert error is not None
    assert error.attrib["type"] == "inconclusive"
    for passed in (("float", "agreement"), ("float", "file size")):
        assert [child.tag for child in found[passed]] == ["system-out"]


def test_junit_without_verdicts_is_skipped() -> None:
    root, found = cases(comparison([claim("int8", None)], 0, informational=True))
    assert root.attrib["skipped"] == "1"
    skipped = found["int8", "latency, batch 1"].find("skipped")
    assert skipped is not None
    assert "no verdict" in skipped.attrib["message"]


def test_junit_where_gates_decide() -> None:
    gates = [
        gate("fail"),
        gate("inconclusive", "p99_ms_max"),
        gate("not run", "top1_drop_pp"),
        gate("not run", "require"),
    ]
    root, found = cases(comparison(WORSE.claims, 3, gates=gates))
    assert {name: [child.tag for child in case] for (_, name), case in found.items() if name.startswith("gate")} == {
        "gate latency_ratio, batch 1": ["failure"],
        "gate p99_ms_max, batch 1": ["error"],
        "gate top1_drop_pp, batch 1": ["skipped"],
        "gate require, batch 1": ["error"],
    }
    assert root.attrib["failures"] == "1", "the claims are only told"


def test_junit_keeps_no_character_that_xml_refuses() -> None:
    root, found = cases(comparison([claim("in\x00t8\ud800", "slower", detail="\x1b[1m & <tag>")], 3))
    ((name, _),) = found
    assert name == "in\ufffdt8\ufffd"
    failure = next(root.iter("failure"))
    assert failure.text is not None
    assert failure.text.endswith("\ufffd[1m & <tag>")
