"""Pydantic's complaints as sentences with the place in the recipe."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from compress.errors import CompressError
from compress.pipeline.yaml_tree import Path, Tree, nearest

Model = TypeVar("Model", bound=BaseModel)
_SHOWN_CHARACTERS = 60


def validate(model: type[Model], value: Any, path: Path, tree: Tree) -> Model | None:
    """Validate a part of the recipe.

    Args:
        model: its schema.
        value: what the recipe says, or a part of it.
        path: where `value` is in the recipe.
        tree: knows the lines; problems are added to it.

    Returns:
        The validated model; None if there were problems.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [_problem(model, dict(item), value, path, tree) for item in error.errors(include_url=False)]
        tree.problems += dict.fromkeys(problems)  # the members of a union repeat each other
    except CompressError as error:
        tree.problems.append(f"{tree.origin(path)}: {dotted(path)}: {error.message}")
    return None


def dotted(path: Path) -> str:
    """`steps.teacher.epochs`."""
    return ".".join(str(part) for part in path)


def _problem(model: type[BaseModel], item: Mapping[str, Any], value: Any, path: Path, tree: Tree) -> str:
    loc = cast("tuple[str | int, ...]", item["loc"])
    inner = _written(value, loc)
    place = (*path, *inner)
    if item["type"] == "extra_forbidden":
        known = _known_keys([model], loc[:-1])
        return f"{tree.origin(place)}: {dotted(place[:-1])}: unknown key {str(loc[-1])!r}{nearest(str(loc[-1]), known)}"
    if item["type"].startswith("union_tag_") and (key := _discriminator(item)):
        return _wrong_member(key, item, place, tree)
    if item["type"] == "missing":
        return f"{tree.origin(place)}: {dotted(place)}: missing key {str(loc[-1])!r}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] not in ("value_error", "assertion_error"):
        shown = repr(item["input"])
        message += f", got {shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + '...'}"
    return f"{tree.origin(place)}: {dotted(place)}: {message}"


def _discriminator(item: Mapping[str, Any]) -> str | None:
    # 'loss' where pydantic chooses the member of a union by that key; a function that chooses has no quotes
    name = str(item["ctx"]["discriminator"])
    return name[1:-1] if name.startswith("'") else None


def _wrong_member(key: str, item: Mapping[str, Any], place: Path, tree: Tree) -> str:
    if item["type"] == "union_tag_not_found":
        return f"{tree.origin(place)}: {dotted(place)}: missing key {key!r}"
    got, known = str(item["ctx"]["tag"]), [tag.strip("'") for tag in item["ctx"]["expected_tags"].split(", ")]
    return f"{tree.origin((*place, key))}: {dotted((*place, key))}: unknown {key} {got!r}{nearest(got, known)}"


def _written(value: Any, loc: Sequence[str | int]) -> Path:
    # Pydantic's locations also name the members of unions, which nobody wrote into the recipe.
    path: list[str | int] = []
    for part in loc:
        if isinstance(value, dict) and part in value:
            value = cast("dict[str | int, Any]", value)[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(cast("list[Any]", value)):
            value = cast("list[Any]", value)[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _known_keys(models: Sequence[type[BaseModel]], loc: Sequence[str | int]) -> set[str]:
    for part in loc:
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)].annotation)
        ]
        models = inner or [model for model in models if _is_member(model, part)] or models
    return {name for model in models for name in model.model_fields}


def _is_member(model: type[BaseModel], part: str | int) -> bool:
    """Whether a location's part stands for this member of a union: its name, or the value that tells it apart."""
    tags = [typing.get_args(field.annotation) for field in model.model_fields.values() if field.is_required()]
    return model.__name__ == part or any(part in values for values in tags)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
