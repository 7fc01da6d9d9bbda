"""What came of a study: its trials as plain values, the Pareto front, and which trial is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError, UsageError
from compress.tuning.claims import ERROR, REASON, REPEATS, Outcome, deaths_of, outcome_of
from compress.tuning.space import Knob
from compress.tuning.studies import DIRECTIONS
from compress.tuning.trials import ARTIFACTS, FIGURES, RUN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Attributes:
        number: of Optuna.
        outcome: what became of it.
        values: key of the recipe -> value.
        objectives: figure -> number, of those that are done.
        figures: the same with unit, split, sample count and interval.
        run: id of the run that made its artifacts.
        artifacts: step -> stage, key and digest.
        repeats: number of the trial that this one repeats.
        reason: why it failed or was pruned.
        seconds: how long it took.
    """

    number: int
    outcome: Outcome
    values: Mapping[str, Any]
    objectives: Mapping[str, float]
    figures: Mapping[str, Any]
    run: str | None
    artifacts: Mapping[str, Any]
    repeats: int | None
    reason: str
    seconds: float | None

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "number": self.number,
            "outcome": self.outcome.value,
            "values": dict(self.values),
            "objectives": dict(self.objectives),
            "figures": dict(self.figures),
            "run": self.run,
            "artifacts": dict(self.artifacts),
            "repeats": self.repeats,
            "reason": self.reason or None,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Best:
    """The trial that is recommended, and a sentence that says why."""

    trial: Trial
    why: str


def read_trials(trials: Iterable[FrozenTrial], knobs: Sequence[Knob], figures: Sequence[str]) -> list[Trial]:
    """The trials of a study in the order of their numbers, without those that were no more than a place taken twice."""
    return [_read(one, knobs, figures) for one in trials if outcome_of(one) is not Outcome.SURPLUS]


def _read(one: FrozenTrial, knobs: Sequence[Knob], figures: Sequence[str]) -> Trial:
    outcome, attrs = outcome_of(one), one.user_attrs
    reason = attrs.get(ERROR) or attrs.get(REASON) or ""
    if outcome is Outcome.FAILED and not reason:
        reason = f"its worker died {deaths_of(one)} times"
    ended = one.duration
    return Trial(
        number=one.number,
        outcome=outcome,
        values={knob.key: knob.value(one.params[knob.key]) for knob in knobs if knob.key in one.params},
        objectives=dict(zip(figures, one.values, strict=True)) if outcome is Outcome.DONE else {},
        figures=attrs.get(FIGURES, {}),
        run=attrs.get(RUN),
        artifacts=attrs.get(ARTIFACTS, {}),
        repeats=attrs.get(REPEATS),
        reason=reason,
        seconds=None if ended is None else round(ended.total_seconds(), 3),
    )


def _costs(trial: Trial) -> list[float]:
    """Objectives, smaller is better in all."""
    return [-value if DIRECTIONS[name] == "maximize" else value for name, value in trial.objectives.items()]


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those of the finished trials that no other one beats: at least as good in every objective, better in one."""
    done = [(trial, _costs(trial)) for trial in trials if trial.outcome is Outcome.DONE]

    def beaten(costs: list[float]) -> bool:
        return any(
            other != costs and all(theirs <= ours for theirs, ours in zip(other, costs, strict=True))
            for _, other in done
        )

    return [trial for trial, costs in done if not beaten(costs)]


def check_wanted(trials: Sequence[Trial], wanted: int) -> None:
    """Refuse a trial that will never have a result, before a study goes on for its sake; one may still be to come.

    Raises:
        UsageError: it has ended without a result.
    """
    found = next((trial for trial in trials if trial.number == wanted), None)
    if found is not None and found.outcome not in (Outcome.WAITING, Outcome.RUNNING, Outcome.DONE):
        raise _without_result(trials, wanted, f"is {found.outcome}")


def _without_result(trials: Sequence[Trial], wanted: int, state: str) -> UsageError:
    done = ", ".join(str(trial.number) for trial in trials if trial.outcome is Outcome.DONE)
    return UsageError(f"--trial {wanted}: this trial {state}", hint=f"finished: {done or 'none'}")


def best_of(trials: Sequence[Trial], wanted: int | None = None) -> Best:
    """Choose a trial.

    With one objective the best one is chosen, the earliest of equals. With several it is the knee of the Pareto front:
    every objective is scaled so that the best value on the front is 0 and the worst 1, and the trial nearest to 0 in
    all is taken (Euclidean distance).

    Args:
        trials: of the study.
        wanted: number of the trial that a person wants instead.

    Raises:
        UsageError: there is no such trial, or it is not done.
        ModelError: no trial is done.
    """
    if wanted is not None:
        found = next((trial for trial in trials if trial.number == wanted), None)
        if found is None or found.outcome is not Outcome.DONE:
            raise _without_result(trials, wanted, f"is {found.outcome}" if found else "does not exist")
        return Best(found, "chosen by --trial")
    front = pareto(trials)
    if not front:
        last = next((trial.reason for trial in reversed(trials) if trial.reason), "")
        raise ModelError(
            f"none of {len(trials)} trials came to a result" + (f"; the last one: {last}" if last else ""),
            hint="narrow tune.space, or look at a single run: compress run RECIPE --set ...",
        )
    names = list(front[0].objectives)
    if len(names) == 1:
        return Best(front[0], f"{'highest' if DIRECTIONS[names[0]] == 'maximize' else 'lowest'} {names[0]}")
    costs = [_costs(trial) for trial in front]
    low, high = (
        [min(column) for column in zip(*costs, strict=True)],
        [max(column) for column in zip(*costs, strict=True)],
    )
    scaled = [
        [(cost - least) / (most - least or 1.0) for cost, least, most in zip(row, low, high, strict=True)]
        for row in costs
    ]
    distances = [math.hypot(*row) for row in scaled]
    knee = front[distances.index(min(distances))]
    why = (
        f"of {len(front)} on the Pareto front nearest to the best {', '.join(names)}, each scaled to the front's range"
    )
    return Best(knee, why)
