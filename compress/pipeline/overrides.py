"""`--set a.b=c`: changes to a recipe from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from compress.pipeline.validation import dotted
from compress.pipeline.yaml_tree import Path, Tree, nearest, parse


def apply_overrides(tree: Tree, overrides: Sequence[str], top_level: Sequence[str]) -> None:
    """Change `tree` in place; problems are added to it.

    Args:
        tree: the recipe, a mapping.
        overrides: each `PATH=VALUE`. PATH is dotted and starts at a top-level key or at a step's name
            (`teacher.epochs` is `steps.teacher.epochs`); VALUE is YAML. Missing mappings on the way are
            made, except steps: whether the last name is a known field is seen when the recipe is validated.
        top_level: keys that a recipe may have.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        source = f"--set {override}"
        if not equals or not all(name.strip().split(".")):
            tree.problems.append(f"{source}: expected PATH=VALUE, e.g. --set teacher.epochs=2")
            continue
        value = parse(text, source, lines=False)
        if value.problems:
            tree.problems += value.problems
            continue
        path, problem = full_path(tree.value, tuple(name.strip().split(".")), top_level)
        problem = problem or _assign(tree.value, path, value.value)
        if problem:
            tree.problems.append(f"{source}: {problem}")
            continue
        for old in [known for known in tree.origins if known[: len(path)] == path]:
            del tree.origins[old]
        for length in range(1, len(path)):
            tree.origins.setdefault(path[:length], source)  # mappings that were made on the way
        tree.origins.update({(*path, *inner): origin for inner, origin in value.origins.items()})


def full_path(recipe: Mapping[str, Any], path: tuple[str, ...], top_level: Sequence[str]) -> tuple[Path, str]:
    """Where a dotted key of `--set` leads, e.g. (steps, teacher, epochs); and what is wrong with it, or nothing.

    Args:
        recipe: as it is written.
        path: the parts of the key.
        top_level: keys that a recipe may have.
    """
    found = recipe.get("steps")
    steps = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if path[0] not in top_level and path[0] in steps:
        path = ("steps", *path)
    if path[0] not in top_level:
        return path, f"unknown key or step {path[0]!r}{nearest(path[0], [*top_level, *steps])}"
    if path[0] == "steps":
        if len(path) == 1:
            return path, "replaces all steps; name one, e.g. --set steps.teacher.epochs=2"
        if path[1] not in steps:
            return path, f"the recipe has no step {path[1]!r}{nearest(path[1], steps)}"
    return path, ""


def _assign(recipe: dict[str, Any], path: Path, value: Any) -> str:
    current = recipe
    for depth, part in enumerate(path[:-1], start=1):
        inner = current.get(str(part))
        if inner is None:
            inner = current[str(part)] = {}
        if not isinstance(inner, dict):
            return f"{dotted(path[:depth])} is {inner!r}, which has no {path[depth]!r}"
        current = cast("dict[str, Any]", inner)
    current[str(path[-1])] = value
    return ""
