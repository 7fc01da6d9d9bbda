"""What is said of choices that were tried: on a chain of layers whose scores and prices are given."""

from __future__ import annotations

from typing import Any

import pytest

from compress.log import Bar
from compress.quantization.search import Goal
from compress.quantization.sensitivity import Score, Work
from compress.quantization.trials import Cost, Trials

NAMES = "abcd"
WORK = {name: Work("Conv", 10, 1) for name in NAMES}


class Chain:
    """In place of `MixedGraphs`: a choice is its own graph."""

    def __init__(self) -> None:
        self.names = tuple(NAMES)
        self.beside = {"a": {"b"}, "b": {"a", "c"}, "c": {"b", "d"}, "d": {"c"}}

    def ordered(self, choice: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(choice))

    def signed(self, choice: frozenset[str]) -> frozenset[str]:
        return choice

    unsigned = signed


class Scores:
    """In place of `Judge`: 30 dB for these choices and 10 dB for all others."""

    samples = 100

    def __init__(self, *good: str) -> None:
        self.good = {frozenset(one) for one in good}

    def score(self, choice: frozenset[str], *, optimized: bool = True) -> Score:
        return Score(30.0 if choice in self.good else 10.0, None)


def trials(*good: str) -> Trials:
    graphs: Any = Chain()
    scores: Any = Scores(*good)
    return Trials(graphs, scores, Goal(sqnr_db=20), Bar(None, None))


def cost(prices: dict[str, float], *, stays: bool = True) -> Cost:
    """Dearer than all others where no price is given."""
    of = {frozenset(one): price for one, price in prices.items()}

    def compare(one: Any, best: Any) -> tuple[float, bool]:
        return of.get(one, 9.0), of.get(one, 9.0) < of.get(best, 9.0)

    return Cost("price", compare, lambda chosen, least_work: stays)


def test_a_candidate_says_whether_it_meets_the_goal() -> None:
    tried = trials("b", "ab")
    _, chosen = tried.cheapest([frozenset("b")], cost({"b": 5, "ab": 4, "bc": 3, "abc": 3}), WORK)
    assert chosen == {"a", "b"}
    assert {(one.float_layers, one.cheaper, one.met) for one in tried.candidates} == {
        (("a", "b"), True, True),
        (("a", "b", "c"), True, False),  # cheaper, and still not taken
    }
    dear = trials("b")
    dear.cheapest([frozenset("b")], cost({"b": 5}), WORK)
    assert {(one.cheaper, one.met) for one in dear.candidates} == {(False, None)}, "not judged, since it is no cheaper"


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        ({"b": 5, "bc": 4}, "the goal would be met with it in int8, at a higher cost"),
        ({"c": 4, "bc": 4, "b": 5}, "the goal would be met with it in int8, at a cost that is not clearly lower"),
    ],
)
def test_costs_in_reasons_are_those_that_were_asked_for(prices: dict[str, float], why: str) -> None:
    tried = trials("b", "bc", "c")
    _, chosen = tried.cheapest([frozenset("b")], cost(prices), WORK)
    assert chosen == {"b", "c"}
    assert tried.reason(chosen, "c" if "c" not in prices else "b") == why


def test_no_cost_is_claimed_that_nobody_asked_for() -> None:
    tried = trials("b", "bc")
    assert tried.reason(frozenset("bc"), "c") == (
        "the goal would be met with it in int8; whether that costs less was not tried"
    )
    assert tried.reason(frozenset("bc"), "b") == "were it in int8: the logits have 10.0 dB"


@pytest.mark.parametrize("stays", [True, False])
def test_the_least_work_is_taken_where_it_turns_out_cheaper(stays: bool) -> None:
    tried = trials("b", "bc")
    found, taken = tried.cheapest([frozenset("b")], cost({"b": 5, "bc": 4}, stays=stays), WORK)
    assert found == {"b", "c"}
    assert taken == ({"b", "c"} if stays else {"b"})
