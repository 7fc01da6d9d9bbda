from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.report.document import RatioRow, ReportDocument, Verdict
from compress.report.summary import cards, caveats, ladder_sentence, outcome, speed_text

Report = Callable[..., ReportDocument]


def verdict(name: str, gate: str = "top1_drop_pp") -> Verdict:
    return Verdict.model_validate(
        {"gate": gate, "variant": "int8", "verdict": name, "limit": 1.0, "value": 0.5, "unit": "pp", "detail": "d"}
    )


@pytest.mark.parametrize(
    ("found", "tone", "word"),
    [
        ([], "none", "No gates"),
        (["pass", "pass"], "good", "Passed"),
        (["pass", "not run"], "good", "Passed"),
        (["not run"], "none", "Not run"),
        (["pass", "inconclusive"], "open", "Inconclusive"),
        (["pass", "inconclusive", "fail", "not run"], "bad", "Failed"),
    ],
)
def test_the_gravest_verdict_is_the_outcome(found: list[str], tone: str, word: str) -> None:
    assert (outcome([verdict(name) for name in found]).tone, outcome([verdict(name) for name in found]).word) == (
        tone,
        word,
    )


def test_a_required_variant_that_was_not_run_outweighs_an_inconclusive_gate() -> None:
    found = outcome([verdict("inconclusive"), verdict("not run", "require")])
    assert (found.tone, found.word) == ("bad", "Not run")
    assert found.sentence.endswith("Required, but not run here: int8.")


def test_what_passed_says_what_was_not_judged() -> None:
    assert outcome([verdict("pass"), verdict("not run")]).sentence == (
        "Of 2 verdicts: 1 passed, 1 not run. Not judged: top1_drop_pp of int8."
    )


def test_a_speed_claims_nothing_where_its_interval_holds_one() -> None:
    row = RatioRow(batch=1, ratio=0.8, low=0.5, high=1.25, blocks=20, mean_log=-0.22, sd_log=0.9)
    fact = speed_text(row, "float")
    assert (fact.label, fact.value) == ("Speed, batch 1", "1.25×")
    assert fact.note == "as fast as float; 95 %: 0.80 to 2.00; no difference shown"
    assert "no difference" not in speed_text(row.model_copy(update={"high": 0.9}), "float").note


def test_cards_are_of_what_is_deployed(report: Report) -> None:
    int8, engine = cards(report())
    assert (int8.name, engine.name, engine.absent) == ("int8", "engine", "Not run: no NVIDIA driver.")
    assert [fact.label for fact in int8.facts] == ["Top-1", "Change", "File", "Speed, batch 32", "Agreement"]
    assert {fact.label: fact.note for fact in engine.facts}["File"] == "21.7× that of teacher"
    document = report()
    floats = document.model_copy(update={"variants": document.variants[:2]})
    assert [card.name for card in cards(floats)] == ["teacher", "float"]


def test_what_is_not_shown_is_said(report: Report, full_report: Report) -> None:
    document = report()
    rows = [row.model_copy(update={"unstable": True, "p99_ms": None}) for row in document.variants[2].latency[:1]]
    int8 = document.variants[2].model_copy(update={"latency": rows})
    told = caveats(document.model_copy(update={"variants": [*document.variants[:2], int8]}), [verdict("not run")])
    assert "Latency drifted by more than 5 % in both measurements: int8 at batch 1." in told
    assert "1 of 5 latencies have no p99: it needs 1,000 calls or more." in told
    assert told[-1] == "Gates without a measurement: top1_drop_pp of int8."
    assert not [words for words in caveats(full_report(), []) if words.startswith("Not stored")]


def test_the_hop_that_lost_most_has_a_name(full_report: Report) -> None:
    document = full_report()
    assert ladder_sentence(document) == "Largest loss: teacher → student, −0.67 pp. One sample is 0.222 pp."
    assert ladder_sentence(document.model_copy(update={"ladder": document.ladder[:1]})).startswith(
        "No hop was measured"
    )
    upward = document.model_copy(
        update={"ladder": [document.ladder[1].model_copy(update={"hop": "a"}), document.ladder[3]]}
    )
    assert ladder_sentence(upward).startswith("No hop")
