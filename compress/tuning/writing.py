"""Writes a recipe with other values, as a person would: comments, order and quotes stay."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from compress.artifacts.files import write_durably
from compress.artifacts.store import Store
from compress.errors import CompressError, RecipeError, UsageError
from compress.log import get_logger
from compress.pipeline.overrides import apply_overrides, full_path
from compress.pipeline.plan import plan as plan_run
from compress.pipeline.recipe import TOP_LEVEL, load_recipe
from compress.pipeline.stage import Catalogue
from compress.pipeline.yaml_tree import Tree
from compress.tuning.results import Trial
from compress.tuning.space import overrides_from_values
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
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _NEVER_FOLDED
    yaml.default_flow_style = None  # a new list or mapping of plain values stays on its line
    tree = Tree(yaml.load(text))
    for override in overrides:
        path, _ = full_path(tree.value, tuple(override.partition("=")[0].split(".")), TOP_LEVEL)
        _unshare(tree.value, path[:-1])
    apply_overrides(tree, overrides, TOP_LEVEL)
    if tree.problems:
        raise RecipeError("; ".join(tree.problems))
    stream = io.StringIO()
    yaml.dump(tree.value, stream)
    return f"{stream.getvalue().rstrip()}\n# {remark}\n"


def _unshare(recipe: Any, path: Sequence[Any]) -> None:
    """Give the mappings on a path values of their own, where the text only refers to those of another place."""
    for part in path:
        inner = recipe.get(part)
        if not isinstance(inner, CommentedMap):
            return
        if inner.anchor.value is not None:
            inner = recipe[part] = inner.copy()
            inner.anchor.value = None
        recipe = inner


def check_target(path: Path, recipe: Path) -> None:
    """Refuse a file that the best recipe cannot be written to, before a study begins for its sake.

    Raises:
        UsageError: its folder does not exist, it is a folder, or the recipe itself.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"--best {path}: cannot be written: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}"
        )
    if path.is_dir():
        raise UsageError(f"--best {path}: cannot be written: this is a folder", hint="name a file in it")
    if path.exists() and path.samefile(recipe):
        raise UsageError(f"--best {path}: this is the recipe itself", hint="name another file")


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
        UsageError: the file is the recipe itself, or cannot be written; the recipe has changed since it was read.
    """
    check_target(path, plan.recipe.path)
    settings = [*plan.overrides, *overrides_from_values(plan.knobs, trial.values)]
    written = plan.recipe.path.read_text(encoding="utf-8")
    plan.check_file()
    text = changed_text(written, settings, remark)
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
