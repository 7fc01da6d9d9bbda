"""The knobs of a study: what `tune.space` lets vary, held against the recipe that it varies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import RecipeError
from compress.pipeline.overrides import full_path
from compress.pipeline.recipe import TOP_LEVEL, Recipe, recipe_problems
from compress.pipeline.stage import Catalogue
from compress.pipeline.tuning import Choices, Range, TuneConfig

if TYPE_CHECKING:
    import optuna

_ABSENT = object()


@dataclass(frozen=True)
class Knob:
    """One value that a study varies, and where it goes.

    Attributes:
        key: as `tune.space` has it, and as the study calls the parameter.
        paths: the keys that get the value, from the top of the recipe: (steps, student, temperature).
        entry: its values.
        whole: only whole numbers; of a `Range`.
    """

    key: str
    paths: tuple[tuple[str, ...], ...]
    entry: Range | Choices
    whole: bool = False

    def choices(self) -> tuple[Any, ...]:
        """Its values, of a `Range` the ends."""
        return self.entry.choices if isinstance(self.entry, Choices) else (self.entry.low, self.entry.high)

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let a trial choose a value.

        Returns:
            The parameter as the study keeps it: a number, or the name of a choice.
        """
        if isinstance(self.entry, Choices):
            return trial.suggest_categorical(self.key, [_name(value) for value in self.entry.choices])
        low, high, log = self.entry.low, self.entry.high, self.entry.log
        if self.whole:
            return trial.suggest_int(self.key, int(low), int(high), log=log)
        return trial.suggest_float(self.key, low, high, log=log)

    def value(self, parameter: Any) -> Any:
        """What the recipe is given for a parameter of the study."""
        if isinstance(self.entry, Range):
            return parameter
        return next(value for value in self.entry.choices if _name(value) == parameter)

    def parameter(self, value: Any) -> Any:
        """The reverse of `value`; None where the knob does not offer it."""
        if isinstance(self.entry, Choices):
            return next((_name(one) for one in self.entry.choices if one == value), None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.entry.low <= value <= self.entry.high or (self.whole and value != int(value)):
            return None
        return int(value) if self.whole else float(value)

    def overrides(self, value: Any) -> list[str]:
        """The same as `--set` takes it; JSON is YAML, and keeps every digit."""
        return [f"{'.'.join(path)}={json.dumps(value)}" for path in self.paths]


def _name(choice: Any) -> str:
    """How a study calls a choice: databases keep words and numbers, and a choice may be a list or a mapping."""
    return choice if isinstance(choice, str) else json.dumps(choice)


def overrides_from_values(knobs: Sequence[Knob], values: Mapping[str, Any]) -> list[str]:
    """What `--set` would be given for the values of some knobs, by key."""
    return [setting for knob in knobs if knob.key in values for setting in knob.overrides(values[knob.key])]


def needed_steps(recipe: Recipe, tune: TuneConfig) -> tuple[str, ...]:
    """The steps that a trial runs: those that give the objectives, and what they are made from."""
    wanted = tune.objectives.steps().values()
    needed = {*wanted, *recipe.upstream(*wanted)}
    return tuple(step.name for step in recipe.steps if step.name in needed)


def changed_steps(recipe: Recipe, knobs: Sequence[Knob], needed: Sequence[str]) -> tuple[str, ...]:
    """Those of the needed steps whose artifacts a knob may change; the others are the same in every trial."""
    turned = {path[1] for knob in knobs for path in knob.paths}
    return tuple(name for name in needed if turned & {name, *recipe.upstream(name)})


def read_knobs(recipe: Recipe, tune: TuneConfig, overrides: Sequence[str], catalogue: Catalogue) -> tuple[Knob, ...]:
    """Hold every knob against the recipe: each end of a range, and each choice, must be a value that it takes.

    Args:
        recipe: as it is read with `overrides`.
        tune: its `tune:`.
        overrides: what each `--set` said.
        catalogue: with which it was read.

    Raises:
        RecipeError: keys that the recipe has not, or that no objective depends on, and values that it refuses.
    """
    problems: list[str] = []
    knobs: list[Knob] = []
    needed = needed_steps(recipe, tune)
    for key, entry in tune.space.items():
        places = [full_path(recipe.document, tuple(one.strip().split(".")), TOP_LEVEL) for one in key.split(",")]
        knob = Knob(key, tuple(tuple(str(part) for part in path) for path, _ in places), entry)
        wrong = next((wrong for _, wrong in places if wrong), "") or _misplaced(knob, needed, knobs)
        if wrong:
            problems.append(f"tune.space: {key}: {wrong}")
            continue
        found = _refused(knob, recipe.path, overrides, catalogue)
        problems += [f"tune.space: {problem}" for problem in found]
        knobs.append(replace(knob, whole=not found and _takes_whole(knob, recipe.path, overrides, catalogue)))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{recipe.path}: tune.space has {count}:\n" + "\n".join(f"  {one}" for one in problems))
    return tuple(knobs)


def _misplaced(knob: Knob, needed: Sequence[str], before: Sequence[Knob]) -> str:
    outside = next((path[0] for path in knob.paths if path[0] != "steps"), None)
    if outside is not None:
        return f"a knob belongs to a step, e.g. steps.{needed[-1]}.KEY, and this one to {outside!r}"
    steps = [path[1] for path in knob.paths]
    if not set(steps) & set(needed):
        return f"no objective depends on step {steps[0]!r}; those that count: {', '.join(needed)}"
    taken = [(other.key, path) for other in before for path in other.paths]
    for index, path in enumerate(knob.paths):
        for key, other in [*taken, *((knob.key, one) for one in knob.paths[:index])]:
            if other[: len(path)] == path[: len(other)]:
                return f"{key!r} names the same or a part of it"
    if isinstance(knob.entry, Choices):
        names = [_name(value) for value in knob.entry.choices]
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            return f"two of its choices read {twice!r}"
    return ""


def _refused(knob: Knob, path: Path, overrides: Sequence[str], catalogue: Catalogue) -> list[str]:
    """What the recipe says against the knob's values, each tried alone; the same about two values is said once."""
    found: dict[str, str] = {}
    for value in knob.choices():
        settings = knob.overrides(value)
        for problem in recipe_problems(path, [*overrides, *settings], catalogue):
            complaint = problem
            for setting in settings:
                complaint = complaint.removeprefix(f"--set {setting}: ")
            found.setdefault(complaint, problem.removeprefix("--set "))
    return list(found.values())


def _takes_whole(knob: Knob, path: Path, overrides: Sequence[str], catalogue: Catalogue) -> bool:
    """Whether the recipe refuses a fraction between the ends, which it takes themselves."""
    if isinstance(knob.entry, Choices) or any(value != int(value) for value in knob.choices()):
        return False
    return bool(recipe_problems(path, [*overrides, *knob.overrides(knob.entry.low + 0.5)], catalogue))


def values_as_written(recipe: Recipe, knobs: Sequence[Knob]) -> dict[str, Any]:
    """What the recipe itself says for each knob, defaults included, where it says one thing for all its keys."""
    found: dict[str, Any] = {}
    for knob in knobs:
        first, *others = (_written(recipe, path) for path in knob.paths)
        if first is not _ABSENT and all(other == first for other in others):
            found[knob.key] = first
    return found


def _written(recipe: Recipe, path: Sequence[str]) -> Any:
    value = _at(recipe.document, path)
    if value is _ABSENT:
        value = _at(recipe.step(path[1]).config.model_dump(mode="json"), path[2:])
    return value


def _at(document: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(document, Mapping) or part not in document:
            return _ABSENT
        document = document[part]
    return document


def without_knobs(recipe: Recipe, knobs: Sequence[Knob], needed: Sequence[str]) -> dict[str, Any]:
    """The steps that a trial runs, as they are written, without the values that vary."""
    steps: dict[str, Any] = {}
    for name in needed:
        step = recipe.step(name)
        turned = [path[2:] for knob in knobs for path in knob.paths if path[1] == name]
        roles = {role: list(names) for role, names in step.roles.items() if (role,) not in turned and () not in turned}
        entry = {key: value for key, value in recipe.document["steps"][name].items() if key not in step.roles}
        entry = {} if () in turned else json.loads(json.dumps(entry))
        for path in turned:
            inner = _at(entry, path[:-1])
            if isinstance(inner, dict) and path:
                inner.pop(path[-1], None)
        steps[name] = {"version": step.stage.version, "config": entry, "inputs": roles}
    return steps
