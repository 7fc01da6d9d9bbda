"""Opens a study: a new one, or one of the same recipe that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifacts.fingerprint import FileHashes, canonical_json
from compress.artifacts.store import Store
from compress.errors import RecipeError, UsageError
from compress.pipeline.keys import changes, name_sources, portable
from compress.pipeline.recipe import Recipe, load_recipe
from compress.pipeline.stage import Catalogue
from compress.pipeline.tuning import TuneConfig
from compress.tuning.claims import FIRST
from compress.tuning.space import (
    Knob,
    changed_steps,
    needed_steps,
    overrides_from_values,
    read_knobs,
    values_as_written,
    without_knobs,
)
from compress.tuning.storage import Place, explained, quiet

if TYPE_CHECKING:
    import optuna

IDENTITY, AS_WRITTEN = "identity", "as_written"
DIRECTIONS = {"accuracy": "maximize", "latency": "minimize", "size": "minimize"}
_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """A recipe that is tuned.

    Attributes:
        recipe: as it is written, with the `--set` of the command line.
        tune: its `tune:`.
        knobs: of its space.
        overrides: what each `--set` said.
        digest: SHA-256 of the recipe's file.
    """

    recipe: Recipe
    tune: TuneConfig
    knobs: tuple[Knob, ...]
    overrides: tuple[str, ...]
    digest: str | None

    @property
    def objectives(self) -> dict[str, str]:
        """Figure -> step, in the order of the study's values."""
        return self.tune.objectives.steps()

    @property
    def needed(self) -> tuple[str, ...]:
        """The steps that a trial runs."""
        return needed_steps(self.recipe, self.tune)

    def cut(self, recipe: Recipe) -> Recipe:
        """A variant of the recipe without the steps that no objective needs, every benchmark among them."""
        return replace(recipe, steps=tuple(step for step in recipe.steps if step.name in self.needed))

    def check_file(self) -> None:
        """Refuse to go on with another recipe than the one that the study was opened for.

        Raises:
            UsageError: the file has changed since it was read, or is gone.
        """
        if _digest(self.recipe.path, FileHashes()) != self.digest:
            raise UsageError(
                "the recipe was changed while it is tuned",
                where=str(self.recipe.path),
                hint="run the command again: the study goes on if its steps and space are still the same",
            )

    @property
    def epochs(self) -> dict[str, int]:
        """Of each step that trains and that a knob may change, in the order in which they run."""
        steps = (self.recipe.step(name) for name in changed_steps(self.recipe, self.knobs, self.needed))
        counts = {step.name: getattr(step.config, "epochs", 0) for step in steps}
        return {name: count for name, count in counts.items() if count}


def read_plan(path: Path, overrides: Sequence[str], catalogue: Catalogue) -> Plan:
    """Read a recipe that is to be tuned.

    Args:
        path: the recipe.
        overrides: what each `--set` said.
        catalogue: the stages.

    Raises:
        RecipeError: the recipe is wrong, or has no `tune:`.
        UsageError: it is being changed at this moment.
    """
    digest = _digest(path, FileHashes())
    recipe = load_recipe(path, overrides, catalogue)
    if recipe.tune is None:
        raise RecipeError(
            "the recipe says nothing of tuning: it has no key `tune`",
            where=str(path),
            hint="tune: {objectives: {accuracy: STEP}, space: {steps.STEP.learning_rate: {low: 0.01, high: 0.3}}}",
        )
    knobs = read_knobs(recipe, recipe.tune, overrides, catalogue)
    plan = Plan(recipe, recipe.tune, knobs, tuple(overrides), digest)
    plan.check_file()
    return plan


def identity(plan: Plan, store: Store, catalogue: Catalogue) -> dict[str, Any]:
    """All that must stay the same for the trials of a study to be comparable, as one JSON document.

    Raises:
        DataError: the data cannot be read.
        UsageError: a step stands for an artifact of an earlier run that is not there.
        ArtifactError: that artifact is damaged.
    """
    recipe, tune = plan.recipe, plan.tune
    hashes = store.hashes()
    digests = catalogue.data_digests(recipe.data, recipe.base, hashes.sha256) if recipe.data is not None else {}
    read = {split for name in plan.needed for split in recipe.step(name).stage.splits}
    read |= {"validation"} if {"accuracy", "latency"} & set(plan.objectives) else set()
    document = {
        "seed": recipe.seed,
        "data": {split: digest for split, digest in digests.items() if split in read},
        "steps": without_knobs(recipe, plan.knobs, plan.needed),
        "sources": {name: _digest(path, hashes) for name, path in _sources(plan).items()},
        "earlier": _earlier(plan, store, catalogue),
        "tune": tune.model_dump(mode="json", include={"objectives", "space", "batch", "threads"}),
    }
    return json.loads(canonical_json(portable(document, recipe.base, {})))


def _sources(plan: Plan) -> dict[str, Path]:
    """The user's code and weights behind the steps that a trial runs, by a name that is the same everywhere."""
    recipe = plan.recipe
    steps = [recipe.step(name) for name in plan.needed]
    return name_sources([path for step in steps for path in step.stage.sources(step.config, recipe.base)], recipe.base)


def _earlier(plan: Plan, store: Store, catalogue: Catalogue) -> dict[str, Any]:
    """What steps that stand for artifacts of earlier runs stand for now: digests, by choice where a knob turns one."""
    found: dict[str, Any] = {}
    for name in plan.needed:
        step = plan.recipe.step(name)
        knobs = [knob for knob in plan.knobs if any(path[1] == name for path in knob.paths)]
        if step.stage.earlier is not None and not knobs:
            found[name] = step.stage.earlier(step.config, store).manifest.digest
        elif step.stage.earlier is not None:
            choices = [[(knob.key, value) for value in knob.choices()] for knob in knobs]
            settings = [overrides_from_values(knobs, dict(chosen)) for chosen in product(*choices)]
            found[name] = {" ".join(one): _stands_for(plan, name, one, store, catalogue) for one in settings}
    return found


def _stands_for(plan: Plan, name: str, settings: Sequence[str], store: Store, catalogue: Catalogue) -> str | None:
    try:
        step = load_recipe(plan.recipe.path, [*plan.overrides, *settings], catalogue).step(name)
        return step.stage.earlier(step.config, store).manifest.digest if step.stage.earlier is not None else None
    except UsageError:  # a trial will explain it
        return None


def _digest(path: Path, hashes: FileHashes) -> str | None:
    try:
        return hashes.sha256(path)
    except OSError:  # the step that reads the file will explain it
        return None


def open_study(plan: Plan, place: Place, name: str, document: Mapping[str, Any]) -> optuna.Study:
    """Open or create a study; a new one begins with the recipe as it is written, where its space has that.

    Args:
        plan: what is tuned.
        place: where studies are kept.
        name: of the study.
        document: from `identity`.

    Raises:
        UsageError: the study is of another recipe, or of another program.
    """
    import optuna

    wanted = [DIRECTIONS[figure] for figure in plan.objectives]
    with explained(place), place.lock, quiet():
        study = optuna.create_study(
            study_name=name,
            storage=place.storage,
            directions=wanted,  # type: ignore[arg-type]
            pruner=_pruner(plan),
            load_if_exists=True,
        )
        there = study.user_attrs.get(IDENTITY)
        fits = [direction.name.lower() for direction in study.directions] == wanted
        if there is None and fits and not study.get_trials(deepcopy=False):
            _begin(study, plan, document)
        elif there != document:
            raise _another(name, place, there, document)
    return study


def _begin(study: optuna.Study, plan: Plan, document: Mapping[str, Any]) -> None:
    values = values_as_written(plan.recipe, plan.knobs)
    study.set_user_attr(AS_WRITTEN, values)
    study.set_user_attr(IDENTITY, dict(document))
    parameters = {knob.key: knob.parameter(values[knob.key]) for knob in plan.knobs if knob.key in values}
    if len(parameters) == len(plan.knobs) and None not in parameters.values():
        study.enqueue_trial(parameters, user_attrs={FIRST: True})


def _another(name: str, place: Place, there: Any, here: Mapping[str, Any]) -> UsageError:
    hint = "--study NAME begins another beside it; nothing was changed"
    if not isinstance(there, dict):
        return UsageError(f"the study {name!r} was not made by `compress tune`", where=place.label, hint=hint)
    found = [f"{key} {before} -> {after}" for key, before, after in changes(there, here)]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return UsageError(
        f"the study {name!r} is of another recipe: {'; '.join(found[:_SHOWN])}{more}", where=place.label, hint=hint
    )


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    from optuna import pruners

    match plan.tune.pruner:
        case "median":
            return pruners.MedianPruner()
        case "hyperband":
            return pruners.HyperbandPruner(max_resource=max(2, sum(plan.epochs.values())))
        case "halving":
            return pruners.SuccessiveHalvingPruner()
        case "none":
            return pruners.NopPruner()


def choose(study: optuna.Study, trial: optuna.Trial, knobs: Sequence[Knob], seed: int, place: int) -> dict[str, Any]:
    """Let a trial choose its values: by the tree-structured Parzen estimator (Bergstra et al., 2011).

    The same history gives the same choice, whichever worker it is that makes it.

    Args:
        study: of the trial.
        trial: just begun; one that repeats another gets the other's values.
        knobs: of the study.
        seed: of the study.
        place: of the trial in the study.

    Returns:
        Key -> value for the recipe.
    """
    import numpy as np
    import optuna

    state = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    with quiet():
        study.sampler = optuna.samplers.TPESampler(seed=state)
        return {knob.key: knob.value(knob.suggest(trial)) for knob in knobs}
