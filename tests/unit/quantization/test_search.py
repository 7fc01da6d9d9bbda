from __future__ import annotations

import pytest

from compress.errors import UsageError
from compress.quantization.search import Goal, search_float_layers
from compress.quantization.sensitivity import LayerSensitivity, Score, Work

# name -> (SQNR alone in dB, multiply-accumulates)
LAYERS = {"a": (40.0, 1000), "b": (10.0, 10), "c": (25.0, 500), "d": (12.0, 4000), "e": (60.0, 0)}
MEASURED = [
    LayerSensitivity(name, "Conv", macs, Score(alone, None), Score(0.0, None)) for name, (alone, macs) in LAYERS.items()
]
WORK = {name: Work("Conv", macs, 7) for name, (_, macs) in LAYERS.items()}


def float_work(choice):
    return float(sum(WORK[name].amount for name in choice))


@pytest.mark.parametrize("needed", ["a", "b", "c", "d", "e", "ab", "ce", "abcde"])
def test_what_is_needed_and_nothing_else_stays_in_float(needed):
    found = search_float_layers(MEASURED, WORK, lambda choice: choice >= set(needed), float_work)
    assert found == set(needed)


def test_nothing_is_left_in_float_where_int8_meets_the_goal():
    def price(choice):
        raise AssertionError("nothing to price")

    assert search_float_layers(MEASURED, WORK, lambda choice: True, price) == frozenset()


def test_of_two_ways_the_cheaper_one_is_taken():
    # either the noisy, dear layer or the two cheap ones would do
    met = lambda choice: "d" in choice or {"b", "c"} <= choice  # noqa: E731
    assert search_float_layers(MEASURED, WORK, met, float_work) == {"b", "c"}


def test_layers_that_would_make_it_dearer_stay_in_float():
    # int8 beside float costs more than float throughout
    found = search_float_layers(MEASURED, WORK, lambda choice: "b" in choice, lambda choice: -float(len(choice)))
    assert found == {"b", "e"}, "giving e back would cost more"


def test_of_equal_choices_the_first_by_name_is_taken():
    twins = [LayerSensitivity(name, "Conv", 10, Score(20.0, None), Score(0.0, None)) for name in "zyx"]
    work = {name: Work("Conv", 10, 1) for name in "zyx"}
    found = search_float_layers(twins, work, lambda choice: len(choice) >= 2, lambda choice: float(len(choice)))
    assert found == {"x", "y"}


def test_goals():
    budget, signal = Goal(budget_pp=0.5), Goal(sqnr_db=25)
    assert (budget.mode, signal.mode) == ("adaptive", "mixed")
    assert budget.met(Score(3.0, 0.5)) and not budget.met(Score(90.0, 0.51)) and not budget.met(Score(90.0, None))  # noqa: PT018
    assert signal.met(Score(25.0, None)) and not signal.met(Score(24.9, -1.0))  # noqa: PT018
    assert (str(budget), str(signal)) == ("at most 0.5 pp of top-1 lost", "logits of at least 25 dB")
    assert budget.measured(Score(3.0, 1.25)) == "1.25 pp of top-1 are lost"
    assert signal.measured(Score(3.04, 1.25)) == "the logits have 3.0 dB"


@pytest.mark.parametrize("figures", [{}, {"sqnr_db": 20, "budget_pp": 1}])
def test_a_goal_is_one_figure(figures):
    with pytest.raises(UsageError, match="one of sqnr_db and budget_pp") as caught:
        Goal(**figures)
    assert caught.value.exit_code == 2
