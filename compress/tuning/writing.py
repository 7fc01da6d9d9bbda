"""Writes a recipe with other values, as a person would: comments, order and quotes stay."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from compress.artifacts.files import write_durably
from compress.artifacts.store import Store
from compress.errors import CompressError, RecipeError, UsageError
from compress.log import get_logger
from compress.pipeline.overrides import apply_overrides
from compress.pipeline.plan import plan as plan_run
from compress.pipeline.recipe import TOP_LEVEL, load_recipe
from compress.pipeline.stage import Catalogue
from compress.pipeline.yaml_tree import Tree
from compress.tuning.results import Trial
from compress.tuning.space import override
from compress.tuning.studies import Plan

_NEVER_FOLDED = 4096

log = get_logger(__name__)


def changed_text(text: str, overrides: Sequence[str], remark: str) -> str:
    """A recipe's text with some values changed.

    Args:
        text: YAML, a recipe that loads.
        overrides: `PATH=VALUE`, as after `--set`.
        remark: a comment for the last line.

    Raises:
        RecipeError: an override leads nowhere.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _NEVER_FOLDED
    yaml.default_flow_style = None  # a new list or mapping of plain values stays on its line
    tree = Tree(yaml.load(text))
    apply_overrides(tree, overrides, TOP_LEVEL)
    if tree.problems:
        raise RecipeError("; ".join(tree.problems))
    stream = io.StringIO()
    yaml.dump(tree.value, stream)
    return f"{stream.getvalue().rstrip()}\n# {remark}\n"


def write_best(plan: Plan, trial: Trial, remark: str, path: Path, store: Store, catalogue: Catalogue) -> None:
    """Write the recipe with a trial's values, then ask what a run of it would do.

    Args:
        plan: what was tuned.
        trial: whose values.
        remark: a comment for the last line.
        path: the file; replaced if it is there.
        store: where the trial's artifacts are, if they are on this machine.
        catalogue: the stages.

    Raises:
        UsageError: the file is the recipe itself, or cannot be written.
    """
    if path.exists() and path.samefile(plan.recipe.path):
        raise UsageError(f"--best {path}: this is the recipe itself", hint="name another file")
    settings = [*plan.overrides, *(override(key, value) for key, value in trial.values.items())]
    text = changed_text(plan.recipe.path.read_text(encoding="utf-8"), settings, remark)
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise UsageError(f"--best {path}: cannot be written: {error.strerror}", hint="name a file elsewhere") from error
    _check(plan, trial, path, store, catalogue)


def _check(plan: Plan, trial: Trial, path: Path, store: Store, catalogue: Catalogue) -> None:
    """Warn where a run of the written recipe would not give what the study recorded."""
    try:
        written = plan.cut(load_recipe(path, [], catalogue))
        would = {one.step: one for one in plan_run(written, store, catalogue)}
    except CompressError as error:
        log.warning("%s does not run where it lies (relative paths start at its folder): %s", path, error)
        return
    for step, artifact in trial.artifacts.items():
        if would[step].status != "hit":
            log.warning("%s: %s is not in this store and would be made anew: %s", path, step, would[step].reason)
        elif would[step].key != artifact["key"]:
            log.warning("%s: %s is not the artifact of trial %d: %s", path, step, trial.number, would[step].key)
