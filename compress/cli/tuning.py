"""`compress tune`: which values of a recipe's knobs are best, found by many runs that several workers share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifacts.store import Store
from compress.cli.places import shown, store_root
from compress.cli.render import ABSENT, duration_text, print_document, print_tables
from compress.errors import EXIT_OK, EXIT_SIGTERM
from compress.report.tables import Table
from compress.tuning.claims import Outcome
from compress.tuning.plot import draw
from compress.tuning.results import Best, Trial, best_of, check_wanted, pareto, read_trials
from compress.tuning.storage import Place, open_place
from compress.tuning.studies import Plan, identity, open_study, read_plan
from compress.tuning.trials import Evaluator
from compress.tuning.workers import end_with_parent, helpers, work
from compress.tuning.writing import check_target, write_best

if TYPE_CHECKING:
    import optuna

_ROWS = 10
_ENDED = (Outcome.DONE, Outcome.PRUNED, Outcome.FAILED)
_HEADERS = {"accuracy": "top-1 %", "latency": "latency ratio", "size": "KiB"}


@dataclass(frozen=True)
class TuneOptions:
    """What the command line said about a study.

    `overrides` is each `--set`; `workers` how many processes work here; `storage` a database's URL or a journal's path;
    `study` its name, by default the recipe's; `best` where the best recipe is written, and `trial` which one is taken
    for it; `helper` marks a worker that another process has started.
    """

    overrides: Sequence[str]
    workers: int
    storage: str | None
    study: str | None
    best: Path | None
    trial: int | None
    as_json: bool
    quiet: bool
    helper: bool


def tune_recipe(path: Path, store_option: Path | None, options: TuneOptions) -> int:
    """Go on with a recipe's study until all its trials are done, and print what came of it.

    Args:
        path: the recipe.
        store_option: what `--store` said.
        options: the rest.

    Returns:
        The exit code.

    Raises:
        RecipeError: the recipe has no `tune:`, or it is wrong.
        UsageError: the study is of another recipe; `--study`, `--best` or `--trial` name what cannot be.
        UnavailableError: Optuna is not installed.
        ModelError: no trial came to a result.
        CompressError: as `compress.tuning.workers.work`.
    """
    from compress.stages import CATALOGUE

    plan = read_plan(path, options.overrides, CATALOGUE)
    if options.best is not None:
        check_target(options.best, path)
    store = Store(store_root(store_option, path))
    name = plan.recipe.name if options.study is None else options.study
    place = open_place(options.storage, store, name)
    study = open_study(plan, place, name, identity(plan, store, CATALOGUE))
    evaluator = Evaluator(plan, study, store, CATALOGUE)
    if options.helper:
        return _help(plan, study, place, evaluator)
    printer = _Printer(plan, study, silent=options.as_json or options.quiet)
    if options.trial is not None:
        check_wanted(printer.trials(), options.trial)
    printer.begin(place)
    with helpers(options.workers - 1, _helper_arguments(path, store, name, options)):
        work(plan, study, place, evaluator, printer.print_ended)
    trials = printer.trials()
    best = best_of(trials, options.trial)
    figure = place.folder / f"{name}.svg"
    draw(trials, best.trial, f"{name}: {len(plan.needed)} steps, {plan.tune.trials} trials", figure)
    if options.best is not None:
        remark = f"compress tune: trial {best.trial.number} of study {name}: {_figures_text(best.trial)}"
        write_best(plan, best.trial, remark, options.best, store, CATALOGUE)
    if options.as_json:
        print_document(_document(study, plan, place, trials, best, figure, options.best))
    else:
        if not options.quiet:
            _print_table(plan, trials, best)
        _print_end(trials, best, figure, options.best)
    return EXIT_OK


def _helper_arguments(path: Path, store: Store, name: str, options: TuneOptions) -> list[str]:
    settings = [part for setting in options.overrides for part in ("--set", setting)]
    storage = ["--storage", options.storage] if options.storage else []
    return ["tune", str(path), *settings, *storage, "--study", name, "--store", str(store.root), "--helper", "--quiet"]


def _help(plan: Plan, study: optuna.Study, place: Place, evaluator: Evaluator) -> int:
    end_with_parent()
    try:
        work(plan, study, place, evaluator)
    except Exception:
        raise
    except BaseException:  # a signal: the process that started this one tells of it
        return EXIT_SIGTERM
    return EXIT_OK


class _Printer:
    """One line a trial, as it ends, whichever worker ran it."""

    def __init__(self, plan: Plan, study: optuna.Study, *, silent: bool) -> None:
        self._plan = plan
        self._study = study
        self._silent = silent
        self._told: set[int] = set()

    def trials(self) -> list[Trial]:
        """The study's trials at this moment."""
        return read_trials(self._study.get_trials(deepcopy=False), self._plan.knobs, list(self._plan.objectives))

    def begin(self, place: Place) -> None:
        """Say what is tuned, and what is there already."""
        ended = [trial.number for trial in self.trials() if trial.outcome in _ENDED]
        self._told.update(ended)
        if self._silent:
            return
        wanted = ", ".join(f"{figure} of {step}" for figure, step in self._plan.objectives.items())
        where = place.label if place.database else shown(place.label)
        print(f"{self._study.study_name}: {self._plan.tune.trials} trials for {wanted}; study {where}", flush=True)
        if ended:
            print(f"{len(ended)} trials have ended before", flush=True)

    def print_ended(self) -> None:
        """Print the trials that ended since the last time."""
        if self._silent:
            return
        for trial in self.trials():
            if trial.outcome in _ENDED and trial.number not in self._told:
                self._told.add(trial.number)
                what = _figures_text(trial) if trial.outcome is Outcome.DONE else reason_line(trial.reason)
                values = ", ".join(f"{key} {_short(value)}" for key, value in trial.values.items())
                seconds = duration_text(trial.seconds)
                print(f"trial {trial.number:<3}  {trial.outcome:<6}  {seconds:>8}  {what}  ({values})", flush=True)


def reason_line(reason: str) -> str:
    """Why a trial failed, in one line: of a list of problems the problems, without place and hint."""
    first, *others = reason.splitlines()
    problems = [line.strip() for line in others if not line.startswith(("  where: ", "  next:  "))]
    return "; ".join(problems) if first.endswith(":") and problems else first


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _figure_text(figure: str, value: float) -> str:
    if figure == "accuracy":
        return f"{100 * value:.2f}"
    return f"{value:.3f}" if figure == "latency" else f"{value / 1024:.1f}"


def _figures_text(trial: Trial) -> str:
    """For example: accuracy 97.22 % (validation, n 180), latency ratio 0.831 (0.82 to 0.84), size 54.3 KiB."""
    parts: list[str] = []
    for figure, value in trial.objectives.items():
        said, text = trial.figures[figure], _figure_text(figure, value)
        if figure == "accuracy":
            parts.append(f"accuracy {text} % ({said['split']}, n {said['n']})")
        elif figure == "latency":
            parts.append(f"latency ratio {text} ({said['low']:.3f} to {said['high']:.3f})")
        else:
            parts.append(f"size {text} KiB")
    return ", ".join(parts)


def _print_table(plan: Plan, trials: Sequence[Trial], best: Best) -> None:
    front = {trial.number for trial in pareto(trials)}
    done = [trial for trial in trials if trial.outcome is Outcome.DONE]
    names = list(plan.objectives)
    if len(names) > 1:
        rows = sorted((trial for trial in done if trial.number in front), key=lambda one: -one.objectives[names[0]])
        title = "Pareto front: no trial is better in one objective and as good in the others"
    else:
        descending = -1 if names[0] == "accuracy" else 1
        rows = sorted(done, key=lambda one: descending * one.objectives[names[0]])[:_ROWS]
        title = f"The best {len(rows)} of {len(done)} trials"
    if best.trial not in rows:
        rows.append(best.trial)
    header = ("", "trial", *(_HEADERS[name] for name in names), *(knob.key for knob in plan.knobs), "run")
    lines = tuple(
        (
            "*" if trial is best.trial else "",
            str(trial.number),
            *(_figure_text(name, trial.objectives[name]) for name in names),
            *(_short(trial.values[knob.key]) for knob in plan.knobs),
            trial.run or ABSENT,
        )
        for trial in rows
    )
    print()
    print_tables([Table(title, header, lines, frozenset(range(1, 2 + len(names))))])


def _print_end(trials: Sequence[Trial], best: Best, figure: Path, written: Path | None) -> None:
    counts = {outcome: sum(trial.outcome is outcome for trial in trials) for outcome in Outcome}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    print(f"\ntrials: {told}")
    print(f"figure: {shown(figure)}")
    if written is not None:
        print(f"recipe: {shown(written)}; compress run {shown(written)}")
    print(f"best: trial {best.trial.number}, {best.why}: {_figures_text(best.trial)}")


def _document(
    study: optuna.Study,
    plan: Plan,
    place: Place,
    trials: Sequence[Trial],
    best: Best,
    figure: Path,
    written: Path | None,
) -> Mapping[str, Any]:
    return {
        "study": study.study_name,
        "storage": place.label,
        "recipe": str(plan.recipe.path),
        "objectives": plan.objectives,
        "directions": [direction.name.lower() for direction in study.directions],
        "trials": [trial.document() for trial in trials],
        "pareto": [trial.number for trial in pareto(trials)],
        "best": {"number": best.trial.number, "why": best.why},
        "figure": str(figure),
        "written": str(written) if written is not None else None,
    }
