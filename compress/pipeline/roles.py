"""Roles: what a stage's inputs dataclass says about the artifacts that it takes."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any

from compress.artifacts.manifest import ARTIFACTS, Artifact
from compress.pipeline.stage import Stage

ANCESTORS = "ancestors"


@dataclass(frozen=True)
class Role:
    """One input of a stage."""

    name: str
    kinds: tuple[type[Artifact], ...]
    required: bool
    many: bool  # a tuple of artifacts instead of one

    def takes(self, output: type[Artifact]) -> bool:
        """Whether a stage with this output can fill the role."""
        return issubclass(output, self.kinds)

    def describe(self) -> str:
        """The kinds for people, e.g. `OnnxModel or QuantizedOnnx`."""
        return " or ".join(kind.__name__ for kind in self.kinds)


@functools.cache
def roles_of(stage: Stage[Any, Any]) -> dict[str, Role]:
    """Roles of `stage` by name, in the order of its inputs dataclass; `ancestors` is none.

    Raises:
        TypeError: the inputs are no dataclass, an annotation is no artifact, or a role has a config field's name.
    """
    if not dataclasses.is_dataclass(stage.inputs):
        raise TypeError(f"{stage.name}: inputs must be a dataclass, got {stage.inputs!r}")
    hints = typing.get_type_hints(stage.inputs)
    roles: dict[str, Role] = {}
    for field in dataclasses.fields(stage.inputs):
        if field.name == ANCESTORS:
            continue
        if field.name in stage.config.model_fields or field.name == "stage":
            raise TypeError(f"{stage.name}: role {field.name!r} has the name of a config field")
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        many, kinds = _kinds(hints[field.name])
        if not kinds:
            raise TypeError(f"{stage.name}: role {field.name!r} is annotated with {hints[field.name]!r}")
        roles[field.name] = Role(field.name, kinds, required, many)
    return roles


def wants_ancestors(stage: Stage[Any, Any]) -> bool:
    """Whether the stage is given every artifact upstream of its inputs."""
    return ANCESTORS in {field.name for field in dataclasses.fields(stage.inputs)}


def _kinds(annotation: Any) -> tuple[bool, tuple[type[Artifact], ...]]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in arguments if part is not type(None)]
        if not all(kinds for _, kinds in parts):
            return False, ()
        return any(many for many, _ in parts), tuple(kind for _, kinds in parts for kind in kinds)
    if origin is tuple:
        return True, _kinds(arguments[0])[1]
    if annotation is Artifact:
        return False, tuple(ARTIFACTS.values())
    return False, (annotation,) if isinstance(annotation, type) and issubclass(annotation, Artifact) else ()
