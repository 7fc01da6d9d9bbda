"""From a YAML file to validated steps; every problem is reported at once, with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compress.errors import RecipeError
from compress.pipeline.overrides import apply_overrides
from compress.pipeline.stage import Catalogue
from compress.pipeline.steps import NAME, Step, fully_wired, read_steps
from compress.pipeline.tuning import TuneConfig, unmeasurable
from compress.pipeline.validation import dotted, validate
from compress.pipeline.yaml_tree import Tree, nearest, parse

TOP_LEVEL = ("name", "seed", "data", "steps", "gates", "tune")
MAX_SEED = 2**32 - 1  # numpy takes no larger one


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    seed: int
    data: Any  # an instance of the catalogue's data schema; None where no step reads data
    steps: tuple[Step, ...]  # each after its inputs
    gates: BaseModel
    tune: TuneConfig | None
    document: Mapping[str, Any]  # the same as it is written, overrides applied
    path: Path  # as it was given
    base: Path  # absolute folder of the recipe: relative paths and `module:callable` start here

    def step(self, name: str) -> Step:
        """The step called `name`.

        Raises:
            KeyError: there is none.
        """
        return {step.name: step for step in self.steps}[name]

    def upstream(self, *names: str) -> tuple[str, ...]:
        """Names of every step that the named ones need, directly or not, in the recipe's order; not they themselves.

        A named step that another named step needs is in the answer.
        """
        needed: set[str] = set()
        for step in reversed(self.steps):
            if step.name in needed or step.name in names:
                needed.update(step.inputs)
        return tuple(step.name for step in self.steps if step.name in needed)


def load_recipe(path: Path, overrides: Sequence[str], catalogue: Catalogue) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `PATH=VALUE`, as after `--set`; see `compress.pipeline.overrides`.
        catalogue: the stages, and the schemas of `data:` and `gates:`.

    Raises:
        RecipeError: the file cannot be read, or the recipe has problems; the message lists them all.
    """
    recipe, tree = _read_recipe(path, overrides, catalogue)
    if recipe is None:
        raise _error(path, tree)
    return recipe


def recipe_problems(path: Path, overrides: Sequence[str], catalogue: Catalogue) -> list[str]:
    """Sentences about what `load_recipe` would refuse; none where it would not.

    Raises:
        RecipeError: the file cannot be read, or is empty.
    """
    return _read_recipe(path, overrides, catalogue)[1].problems


def _read_recipe(path: Path, overrides: Sequence[str], catalogue: Catalogue) -> tuple[Recipe | None, Tree]:
    tree = parse(_read(path), str(path))
    if tree.value is None and not tree.problems:
        raise RecipeError("the recipe is empty", where=str(path), hint=f"a recipe has the keys {', '.join(TOP_LEVEL)}")
    if not isinstance(tree.value, dict):
        if not tree.problems:
            tree.problems.append(f"{path}:1: a recipe is a mapping, got a {_type_name(tree.value)}")
        return None, tree
    apply_overrides(tree, overrides, TOP_LEVEL)
    for key in tree.mapping:
        if key not in TOP_LEVEL:
            tree.problems.append(f"{tree.origin((key,))}: unknown key {key!r}{nearest(key, TOP_LEVEL)}")
    name, seed = _name(tree), _seed(tree)
    steps = read_steps(tree, catalogue.stages, TOP_LEVEL)
    data = _data(tree, catalogue, steps)
    gates = validate(catalogue.gates, tree.mapping.get("gates") or {}, ("gates",), tree)
    wired = fully_wired(tree, steps)
    if wired:
        _check_steps(tree, steps)
    if gates is not None and wired:
        for key, wrong in catalogue.check_gates(gates, steps):
            place = ("gates", key) if key else ("gates",)
            tree.problems.append(f"{tree.origin(place)}: {dotted(place)}: {wrong}")
    tune = _tune(tree, steps, wired)
    if tree.problems or gates is None:
        return None, tree
    return Recipe(name, seed, data, tuple(steps), gates, tune, tree.mapping, path, path.parent.resolve()), tree


def recipe_schema(catalogue: Catalogue) -> dict[str, Any]:
    """JSON schema of recipes, for editors; roles, which depend on each other, are strings or lists of strings."""
    from compress.pipeline.schema import schema_from_catalogue

    return schema_from_catalogue(catalogue, MAX_SEED)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the recipe is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)
        ) from error
    except FileNotFoundError as error:
        raise RecipeError(
            "there is no such recipe", where=str(path), hint="compress run pipelines/digits.yaml"
        ) from error
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from error


def _name(tree: Tree) -> str:
    name = tree.mapping.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        got = "it is missing" if name is None else f"got {name!r}"
        tree.problems.append(f"{tree.origin(('name',))}: name: expected a letter, then letters, digits, - or _; {got}")
        return ""
    return name


def _seed(tree: Tree) -> int:
    seed = tree.mapping.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        tree.problems.append(f"{tree.origin(('seed',))}: seed: expected an integer from 0 to {MAX_SEED}, got {seed!r}")
        return 0
    return seed


def _data(tree: Tree, catalogue: Catalogue, steps: Sequence[Step]) -> Any:
    if tree.mapping.get("data") is not None:
        return validate(catalogue.data, tree.mapping["data"], ("data",), tree)
    readers = [step.name for step in steps if step.stage.splits]
    if readers:
        tree.problems.append(f"{tree.origin(())}: missing key 'data', which step {readers[0]!r} reads")
    return None


def _check_steps(tree: Tree, steps: Sequence[Step]) -> None:
    """Add what stages have against the settings of their steps, given what fills their roles."""
    output = {step.name: step.stage.output for step in steps}
    for step in steps:
        kinds = {role: [output[name] for name in names] for role, names in step.roles.items()}
        for wrong in step.stage.check(step.config, kinds):
            place = ("steps", step.name)
            tree.problems.append(f"{tree.origin(place)}: {dotted(place)}: {wrong}")


def _tune(tree: Tree, steps: Sequence[Step], wired: bool) -> TuneConfig | None:
    if tree.mapping.get("tune") is None:
        return None
    tune = validate(TuneConfig, tree.mapping["tune"], ("tune",), tree)
    if tune is not None and wired:
        for place, wrong in unmeasurable(tune, steps):
            tree.problems.append(f"{tree.origin(place)}: {dotted(place)}: {wrong}")
    return tune


def _error(path: Path, tree: Tree) -> RecipeError:
    def by_line(problem: str) -> tuple[bool, int]:
        match = re.match(re.escape(str(path)) + r":(\d+)", problem)
        return match is None, int(match[1]) if match else 0

    problems = sorted(tree.problems, key=by_line)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(f"{path} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))


def _type_name(value: Any) -> str:
    return {"list": "list", "str": "string", "int": "number", "float": "number"}.get(type(value).__name__, "value")
