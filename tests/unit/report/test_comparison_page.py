from __future__ import annotations

from typing import Any

import pytest

from compress.report.comparison import Claim, Comparison
from compress.report.comparison_page import change_figures, comparison_outcome, comparison_view
from compress.report.html import comparison_html


def claim(**fields: Any) -> Claim:
    defaults: dict[str, Any] = {
        "variant": "int8", "metric": "latency", "batch": 1, "base": 1.0, "new": 1.2, "unit": "ms", "change": 1.2,
        "change_unit": "ratio", "low": 1.1, "high": 1.3, "tolerance": 0.05, "p": 0.001, "p_holm": 0.002,
        "verdict": "slower", "detail": "5 and 5 medians",
    }  # fmt: skip
    return Claim.model_validate({**defaults, **fields})


def comparison(*claims: Claim, **fields: Any) -> Comparison:
    side = {
        "name": "main",
        "reference": "teacher",
        "split": "test",
        "n": 450,
        "environment": {"cpu": "A", "threads": 2},
    }
    new = {**side, "name": "digits-0002", "environment": {"cpu": "B", "threads": 2}}
    return Comparison.model_validate({"base": side, "new": new, "claims": claims, "exit_code": 3, **fields})


def test_the_outcome_names_what_is_worse() -> None:
    found = comparison_outcome(comparison(claim(), claim(batch=32, verdict="faster", change=0.8)))
    assert (found.tone, found.word) == ("bad", "Something is worse")
    assert found.sentence == "int8 latency, batch 1 1.200×. Of 2 changes: 1 faster, 1 slower."


def test_what_decides_nothing_is_told_and_not_marked_as_bad() -> None:
    found = comparison(claim(variant="teacher", harmless=True), claim(verdict="no difference"), exit_code=0)
    assert comparison_outcome(found).sentence == "Of 2 changes: 1 no difference, 1 slower; 1 of them decides nothing."
    row, _ = comparison_view(found)["claims"]
    assert (row["verdict"], row["tone"]) == ("slower (decides nothing)", "open")


def test_the_title_names_the_run_or_else_the_file() -> None:
    side = {"reference": "teacher", "split": "test", "n": 450}
    found = comparison(
        claim(), base={"name": "/a/b/report.json", **side}, new={"name": "x/r.json", "run": "digits-0002", **side}
    )
    assert comparison_view(found)["title"] == "digits-0002 against report.json"


@pytest.mark.parametrize(
    ("fields", "tone", "word"),
    [
        ({"exit_code": 0}, "good", "Nothing is worse"),
        ({"exit_code": 4}, "open", "Inconclusive"),
        ({"exit_code": 0, "informational": True}, "none", "Figures only"),
    ],
)
def test_other_ends(fields: dict[str, Any], tone: str, word: str) -> None:
    found = comparison_outcome(comparison(claim(verdict=None), **fields))
    assert (found.tone, found.word) == (tone, word)


def test_figures_are_drawn_by_kind_of_change() -> None:
    accuracy = claim(metric="top1", batch=None, unit="fraction", change_unit="pp", change=-2.0, low=-3, high=-1)
    size = claim(metric="size", batch=None, unit="bytes", low=None, high=None, change=0.5, tolerance=0.01)
    nothing = claim(metric="memory", batch=None, unit="bytes", new=None, change=None, low=None, high=None, verdict=None)
    found = change_figures(comparison(claim(), accuracy, size, nothing))
    assert [(one.title, one.note) for one in found] == [
        ("Latency", "95 % intervals."),
        ("Accuracy", "95 % intervals."),
        ("File size", "Exact figures: no interval."),
    ]
    assert "accepted: −0.05 pp" in found[1].svg


def test_what_differs_stands_first_in_the_environment() -> None:
    table = comparison_view(comparison(claim()))["environment"]
    assert table.title == "Environment; 1 of 2 entries differ"
    assert table.rows[0] == ("cpu", "A", "B")


def test_the_page_says_what_was_not_compared() -> None:
    content = comparison_html(
        comparison(
            informational=True, exit_code=0, notes=["<b>engine</b> was not run"],
            mismatches=[{"entry": "libraries.numpy", "base": "2.3", "new": None}],
        )
    )  # fmt: skip
    assert "The two reports share no metric of any variant." in content
    assert "&lt;b&gt;engine&lt;/b&gt; was not run" in content
    assert "libraries.numpy" in content
    assert "<script" not in content
