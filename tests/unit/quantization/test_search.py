from __future__ import annotations

import pytest

from compress.errors import UsageError
from compress.quantization.search import Goal, cheapest_choice, search_float_layers
from compress.quantization.sensitivity import LayerSensitivity, Score, Work

# name -> (SQNR alone in dB, multiply-accumulates)
LAYERS = {"a": (40.0, 1000), "b": (10.0, 10), "c": (25.0, 500), "d": (12.0, 4000), "e": (60.0, 0)}
MEASURED = [
    LayerSensitivity(name, "Conv", macs, Score(alone, None), Score(0.0, None)) for name, (alone, macs) in LAYERS.items()
]
WORK = {name: Work("Conv", macs, 7) for name, (_, macs) in LAYERS.items()}


BESIDE = {"a": {"b"}, "b": {"a", "c"}, "c": {"b", "d"}, "d": {"c", "e"}, "e": {"d"}}  # a chain


@pytest.mark.parametrize("needed", ["a", "b", "c", "d", "e", "ab", "ce", "abcde"])
def test_what_is_needed_and_nothing_else_stays_in_float(needed):
    found = search_float_layers(MEASURED, WORK, lambda choice: choice >= set(needed))
    assert found == [set(needed)]


def test_nothing_is_left_in_float_where_int8_meets_the_goal():
    assert search_float_layers(MEASURED, WORK, lambda choice: True) == [frozenset()]


def test_of_two_ways_the_one_with_less_work_comes_first():
    # either the noisy, dear layer or the two cheap ones would do
    met = lambda choice: "d" in choice or {"b", "c"} <= choice  # noqa: E731
    assert search_float_layers(MEASURED, WORK, met) == [{"b", "c"}, {"d"}]


def test_of_equal_choices_the_first_by_name_is_taken():
    twins = [LayerSensitivity(name, "Conv", 10, Score(20.0, None), Score(0.0, None)) for name in "zyx"]
    work = {name: Work("Conv", 10, 1) for name in "zyx"}
    assert search_float_layers(twins, work, lambda choice: len(choice) >= 2)[0] == {"x", "y"}


def cheapest(found, price, met=lambda choice: True):
    asked = []

    def cheaper(one, other):
        asked.append((one, other))
        return price(one) < price(other)

    return cheapest_choice([frozenset(one) for one in found], cheaper, WORK, BESIDE, met), asked


def test_a_choice_that_is_clearly_cheaper_is_taken():
    prices = {frozenset("bc"): 3.0, frozenset("d"): 2.0}
    chosen, asked = cheapest(["bc", "d"], lambda choice: prices.get(choice, 9.0))
    assert chosen == {"d"}
    assert asked[0] == ({"d"}, {"b", "c"})


def test_where_nothing_is_clearly_cheaper_the_least_work_stays():
    chosen, asked = cheapest(["bc", "d"], lambda choice: 1.0, lambda choice: "d" in choice or {"b", "c"} <= choice)
    assert chosen == {"b", "c"}
    assert asked == [({"d"}, {"b", "c"}), ({"a", "b", "c"}, {"b", "c"}), ({"b", "c", "d"}, {"b", "c"})], "neighbours"


def test_a_layer_beside_float_ones_joins_them_where_that_is_cheaper():
    # every pair of neighbours that computes in different types costs one
    def borders(choice):
        return sum((one in choice) != (other in choice) for one, others in BESIDE.items() for other in others)

    chosen, _ = cheapest(["d"], borders, lambda choice: "d" in choice)
    assert chosen == {"d", "e"}, "d alone has two borders"
    chosen, _ = cheapest(["ad"], borders, lambda choice: {"a", "d"} <= choice)
    assert chosen == {"a", "d", "e"}, "one more layer in between would only move a border"
    chosen, _ = cheapest(["d"], borders, lambda choice: choice == {"d"} or {"c", "d"} <= choice)
    assert chosen == {"d"}, "d and e together do not meet the goal"


def test_a_layer_that_its_neighbour_made_needless_goes_back_to_int8():
    prices = {frozenset("b"): 4.0, frozenset("bc"): 3.0, frozenset("c"): 2.0}
    price = lambda choice: prices.get(choice, 9.0)  # noqa: E731
    chosen, asked = cheapest(["b"], price, lambda choice: not choice.isdisjoint("bc"))
    assert chosen == {"c"}
    assert ({"c"}, {"b", "c"}) in asked, "on measured cost alone"
    chosen, asked = cheapest(["b"], price, lambda choice: "b" in choice)
    assert chosen == {"b", "c"}
    assert ({"c"}, {"b", "c"}) not in asked, "c alone does not meet the goal"


def test_noise_leads_in_no_circle():
    chosen = cheapest_choice([frozenset("b")], lambda one, other: True, WORK, BESIDE, lambda choice: bool(choice))
    assert chosen, "whatever is new is called cheaper, and it ends"


def test_some_work_stays_in_int8():
    chosen, _ = cheapest(["b"], lambda choice: -len(choice), lambda choice: "b" in choice)
    assert chosen == {"a", "b", "c"}, "d has the last multiply-accumulates"


def test_all_int8_that_meets_the_goal_is_compared_with_nothing():
    assert cheapest([""], lambda choice: -len(choice)) == (frozenset(), [])


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
