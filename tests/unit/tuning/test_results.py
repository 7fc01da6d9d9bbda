"""The Pareto front and the best trial, from values that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compress.errors import ModelError, UsageError
from compress.tuning.claims import Outcome
from compress.tuning.results import Trial, best_of, check_wanted, pareto


def trial(number: int, outcome: Outcome = Outcome.DONE, reason: str = "", **objectives: float) -> Trial:
    return Trial(number, outcome, {}, objectives, {}, None, {}, None, reason, 1.0)


def test_the_front_holds_what_nothing_beats():
    trials = [
        trial(0, accuracy=0.90, size=100),
        trial(1, accuracy=0.95, size=200),
        trial(2, accuracy=0.90, size=150),  # beaten by 0
        trial(3, accuracy=0.97, size=200),  # beats 1
        trial(4, accuracy=0.80, size=100),  # beaten by 0
        trial(5, accuracy=0.90, size=100),  # equals 0
        trial(6, Outcome.FAILED),
        trial(7, Outcome.PRUNED),
    ]
    assert [one.number for one in pareto(trials)] == [0, 3, 5]


def test_the_knee_is_nearest_to_the_best_of_each_objective():
    trials = [
        trial(0, accuracy=0.90, size=100),  # (1, 0): distance 1
        trial(1, accuracy=1.00, size=300),  # (0, 1): distance 1
        trial(2, accuracy=0.98, size=150),  # (0.2, 0.25): distance 0.32
        trial(3, accuracy=0.99, size=250),  # (0.1, 0.75): distance 0.76
    ]
    best = best_of(trials)
    assert best.trial.number == 2
    assert best.why.startswith("of 4 on the Pareto front nearest to the best accuracy, size")


def test_an_objective_that_is_the_same_everywhere_decides_nothing():
    trials = [trial(0, accuracy=0.9, latency=1.0, size=10), trial(1, accuracy=0.9, latency=0.9, size=10)]
    assert best_of(trials).trial.number == 1


@pytest.mark.parametrize(
    ("figure", "best", "why"), [("accuracy", 1, "highest accuracy"), ("latency", 0, "lowest latency")]
)
def test_of_one_objective_the_best_and_of_equals_the_earliest(figure, best, why):
    trials = [replace(trial(i), objectives={figure: value}) for i, value in enumerate((0.5, 0.7, 0.7, 0.5))]
    assert (best_of(trials).trial.number, best_of(trials).why) == (best, why)


def test_a_person_may_choose():
    trials = [trial(0, accuracy=0.5), trial(1, accuracy=0.7), trial(2, Outcome.FAILED)]
    assert best_of(trials, 0).trial.number == 0
    with pytest.raises(UsageError, match="--trial 2: this trial is failed") as caught:
        best_of(trials, 2)
    assert caught.value.hint == "finished: 0, 1"
    with pytest.raises(UsageError, match="--trial 9: this trial does not exist"):
        best_of(trials, 9)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_trial_that_will_have_no_result_is_refused_before_the_study_goes_on(outcome):
    trials = [trial(0, accuracy=0.5), trial(1, outcome)]
    check_wanted(trials, 9)  # it may be to come
    if outcome in (Outcome.WAITING, Outcome.RUNNING, Outcome.DONE):
        check_wanted(trials, 1)
    else:
        with pytest.raises(UsageError, match=f"--trial 1: this trial is {outcome}"):
            check_wanted(trials, 1)


def test_a_study_without_a_result():
    with pytest.raises(ModelError, match="none of 2 trials came to a result; the last one: the loss is nan") as caught:
        best_of([trial(0, Outcome.FAILED, "the loss is nan"), trial(1, Outcome.PRUNED)])
    assert caught.value.exit_code == 5
