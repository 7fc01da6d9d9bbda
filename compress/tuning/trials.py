"""One trial: the recipe with values that the study chose, run through the store, and the figures of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compress.artifacts.manifest import Artifact
from compress.artifacts.store import Store
from compress.errors import DataError, InputError, ModelError, NotComparableError, RecipeError, UsageError
from compress.log import get_logger
from compress.pipeline import runner
from compress.pipeline.recipe import Recipe, load_recipe
from compress.pipeline.runner import StepEvent
from compress.pipeline.stage import Catalogue
from compress.tuning import figures
from compress.tuning.figures import Figure
from compress.tuning.space import changed_steps, overrides_from_values
from compress.tuning.studies import AS_WRITTEN, Plan

if TYPE_CHECKING:
    import optuna

    from compress.data.split import Split

LOCK_TIMEOUT_S = 7 * 24 * 3600.0  # another worker may be training the teacher that all of them need
RUN, FIGURES, ARTIFACTS = "run", "figures", "artifacts"

log = get_logger(__name__)


class Pruned(BaseException):
    """The study gave the trial up; a BaseException, so that nothing but clean-up handles it on the way out."""


class Unfit(Exception):
    """A trial failed because of its values, and would fail again; its cause is the error that says how."""


def trial_recipe(plan: Plan, values: Mapping[str, Any], catalogue: Catalogue) -> Recipe:
    """The recipe with some values, cut down to the steps that the objectives need: no benchmark, so no test image.

    Raises:
        RecipeError: the values do not go together.
        UsageError: the recipe's file is another one by now.
    """
    settings = overrides_from_values(plan.knobs, values)
    try:
        return plan.cut(load_recipe(plan.recipe.path, [*plan.overrides, *settings], catalogue))
    finally:
        plan.check_file()


class Evaluator:
    """Runs trials of one study, one after the other, in this process.

    Args:
        plan: what is tuned.
        study: whose trials.
        store: where artifacts are and go.
        catalogue: the stages.
    """

    def __init__(self, plan: Plan, study: optuna.Study, store: Store, catalogue: Catalogue) -> None:
        self._plan = plan
        self._study = study
        self._store = store
        self._catalogue = catalogue
        self._written: Artifact | None = None

    @cached_property
    def _validation(self) -> Split:
        from compress.data.datasets import load_dataset

        return load_dataset(self._plan.recipe.data, self._plan.recipe.base).validation

    def prepare(self) -> None:
        """Make what latencies are held against: the same step of the recipe as it is written, where one is wanted.

        Raises:
            CompressError: as `compress.pipeline.runner.run`.
        """
        step = self._plan.objectives.get("latency")
        if step is not None and self._written is None:
            recipe = trial_recipe(self._plan, self._study.user_attrs[AS_WRITTEN], self._catalogue)
            needed = {step, *recipe.upstream(step)}
            made = self._make(replace(recipe, steps=tuple(one for one in recipe.steps if one.name in needed)), None)
            self._written = made[step]

    def run(self, trial: optuna.Trial, values: Mapping[str, Any]) -> list[float]:
        """Run a trial; run, artifacts and figures are noted in it.

        Args:
            trial: whose values they are.
            values: by key of the recipe.

        Returns:
            The objectives, in the order of the study.

        Raises:
            Pruned: the study gives the trial up after an epoch.
            Unfit: the values do not go together, or a step that depends on them cannot take them, e.g. because the
                loss is not finite, or the figures cannot be had from what came out.
            CompressError: what has nothing to do with the values.
        """
        try:
            recipe = trial_recipe(self._plan, values, self._catalogue)
        except RecipeError as error:
            raise Unfit(str(error)) from error
        made = self._make(recipe, trial)
        try:
            found = {figure: self._figure(figure, made[step]) for figure, step in self._plan.objectives.items()}
        except (ModelError, NotComparableError) as error:
            raise Unfit(str(error)) from error
        named = {step: made[step].manifest for step in dict.fromkeys(self._plan.objectives.values())}
        artifacts = {step: {"stage": one.stage, "key": one.key, "digest": one.digest} for step, one in named.items()}
        trial.set_user_attr(ARTIFACTS, artifacts)
        trial.set_user_attr(FIGURES, {figure: one.document() for figure, one in found.items()})
        return [one.value for one in found.values()]

    def _figure(self, figure: str, artifact: Artifact) -> Figure:
        tune, base = self._plan.tune, self._plan.recipe.base
        self._store.verify(artifact)
        if figure == "size":
            return figures.size(artifact)
        if figure == "accuracy":
            return figures.accuracy(artifact, lambda: self._validation, base, threads=tune.threads)
        assert self._written is not None, "prepare comes first"
        self._store.verify(self._written)
        options = {"batch": tune.batch, "threads": tune.threads}
        return figures.latency(artifact, self._written, self._validation, base, **options)

    def _make(self, recipe: Recipe, trial: optuna.Trial | None) -> dict[str, Artifact]:
        """Run a recipe, of a trial or as it is written; returns its artifacts by step."""
        made: dict[str, Artifact] = {}
        last: dict[str, str] = {}

        def on_event(event: StepEvent) -> None:
            last[event.kind] = event.step
            if event.kind == "waiting":
                log.info("%s: another worker is making it; waiting for its result", event.step)
            if trial is not None and event.index == 1 and event.step not in made:
                trial.set_user_attr(RUN, event.run)
            if event.artifact is not None:
                made[event.step] = event.artifact

        def on_epoch(step: str, record: Mapping[str, Any]) -> None:
            if trial is not None and self._plan.tune.pruner != "none":
                self._report(trial, step, record)

        options = {"lock_timeout_s": LOCK_TIMEOUT_S, "on_event": on_event, "on_epoch": on_epoch}
        # Under another name, so that `compress plan` holds a step against the last run of the recipe itself.
        recorded = replace(recipe, name=f"{recipe.name}-tune")
        try:
            runner.run(recorded, self._store, self._catalogue, **options)
        except (UsageError, InputError) as error:
            varies = last.get("failed") in changed_steps(self._plan.recipe, self._plan.knobs, self._plan.needed)
            # Data that cannot be read stop a step before it starts; no knob turns them.
            unread = isinstance(error, DataError) and last.get("start") != last.get("failed")
            if trial is None or not varies or unread:
                raise
            raise Unfit(str(error)) from error
        return made

    def _report(self, trial: optuna.Trial, step: str, record: Mapping[str, Any]) -> None:
        """Tell the study how a trial does, and end it where the study has seen enough."""
        epochs = self._plan.epochs
        if step not in epochs:
            return
        names: Sequence[str] = list(epochs)
        # Epochs count on from step to step, so that the same number means the same in all trials.
        at = sum(epochs[name] for name in names[: names.index(step)]) + record["epoch"]
        trial.report(record["validation_top1"], at)
        if trial.should_prune():
            raise Pruned(
                f"after epoch {record['epoch']} of {step}: top-1 {record['validation_top1']:.4f} on validation"
            )
