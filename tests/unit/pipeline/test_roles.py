from dataclasses import dataclass

import pytest

from compress.artifacts.manifest import Artifact, Checkpoint, Engine, OnnxModel, QuantizedOnnx, Report
from compress.pipeline.roles import roles_of, wants_ancestors
from compress.pipeline.stage import Stage, StageConfig


class Config(StageConfig):
    size: int = 1


@dataclass(frozen=True)
class Many:
    one: Checkpoint
    either: OnnxModel | QuantizedOnnx
    several: tuple[OnnxModel | Engine, ...]
    ancestors: dict[str, Artifact]
    anything: Artifact | None = None
    some: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class Clash:
    size: Checkpoint


@dataclass(frozen=True)
class NoArtifact:
    model: str


@dataclass(frozen=True)
class HalfArtifact:
    model: Checkpoint | str


def stage(inputs: type) -> Stage:
    return Stage("s", 1, Config, inputs, Report, (), lambda config, inputs, workspace: [])


def test_annotations_become_roles():
    roles = roles_of(stage(Many))
    assert list(roles) == ["one", "either", "several", "anything", "some"]
    assert [role.required for role in roles.values()] == [True, True, True, False, False]
    assert [role.many for role in roles.values()] == [False, False, True, False, True]
    assert roles["either"].describe() == "OnnxModel or QuantizedOnnx"
    assert roles["several"].takes(Engine)
    assert not roles["several"].takes(Checkpoint)
    assert all(roles["anything"].takes(kind) for kind in (Checkpoint, OnnxModel, QuantizedOnnx, Engine, Report))
    assert wants_ancestors(stage(Many))


def test_declarations_that_cannot_work_are_refused():
    with pytest.raises(TypeError, match="'size' has the name of a config field"):
        roles_of(stage(Clash))
    for inputs in (NoArtifact, HalfArtifact):
        with pytest.raises(TypeError, match="'model' is annotated with"):
            roles_of(stage(inputs))
    with pytest.raises(TypeError, match="must be a dataclass"):
        roles_of(stage(int))
