"""The figure of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.artifacts.files import store_writes
from compress.tuning.claims import Outcome
from compress.tuning.results import Trial, pareto

LABELS = {
    "accuracy": "top-1, validation, %",
    "latency": "latency, ratio to the recipe as written",
    "size": "size, KiB",
}
_FACTORS = {"accuracy": 100.0, "latency": 1.0, "size": 1 / 1024}


def draw(trials: Sequence[Trial], best: Trial, title: str, path: Path) -> None:
    """Draw the finished trials as an SVG file.

    With several objectives the first is drawn over each of the others, the Pareto front marked; with one, it is drawn
    over the trials, with the best so far.

    Args:
        trials: of the study, at least one finished.
        best: the trial that is marked.
        title: above the figure.
        path: the file; its folder exists.

    Raises:
        TryAgainError: it cannot be written.
    """
    from matplotlib.figure import Figure

    done = [trial for trial in trials if trial.outcome is Outcome.DONE]
    first, *others = best.objectives
    figure = Figure(figsize=(4.8 * max(1, len(others)), 4.2), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels: list[Any] = list(figure.subplots(1, max(1, len(others)), squeeze=False)[0])
    for axes, other in zip(panels, others or [None], strict=True):
        if other is None:
            _over_trials(axes, done, first)
        else:
            _over_cost(axes, done, other, first)
        where = _at(best, first), best.number if other is None else _at(best, other)
        axes.plot([where[1]], [where[0]], "o", mfc="none", mec="#c0392b", ms=11, mew=1.6, label=f"trial {best.number}")
        axes.set_ylabel(LABELS[first])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with store_writes(path.parent):
        figure.savefig(path, format="svg")


def _at(trial: Trial, figure: str) -> float:
    return trial.objectives[figure] * _FACTORS[figure]


def _over_trials(axes: Any, done: Sequence[Trial], figure: str) -> None:
    numbers = [trial.number for trial in done]
    best_so_far = [_at(pareto(done[: index + 1])[0], figure) for index in range(len(done))]
    axes.plot(numbers, [_at(trial, figure) for trial in done], ".", color="#2c6fbb", label="trials")
    axes.step(numbers, best_so_far, where="post", color="#777777", label="best so far")
    axes.set_xlabel("trial")


def _over_cost(axes: Any, done: Sequence[Trial], cost: str, figure: str) -> None:
    def points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [_at(trial, cost) for trial in trials], [_at(trial, figure) for trial in trials]

    front = pareto(done)
    axes.plot(*points(done), ".", color="#9db8d6", label="trials")
    axes.plot(*points(front), "o", color="#2c6fbb", ms=4, label="Pareto front")
    for trial, *place in zip(front, *points(front), strict=True):
        axes.annotate(str(trial.number), place, fontsize="x-small", textcoords="offset points", xytext=(4, 3))
    axes.set_xlabel(LABELS[cost])
