"""Every stage declares what the runner needs, and its code reads no split that it does not declare."""

from __future__ import annotations

import dataclasses
import re
import typing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from compress.artifacts.manifest import ARTIFACTS, Artifact
from compress.models.config import ModelConfig
from compress.pipeline.machine import FACTS
from compress.pipeline.stage import Stage, StageConfig
from compress.stages import CATALOGUE, STAGES

NAMES = ("train", "bring", "tagged", "answers", "distill", "qat", "export", "calibrate", "engine", "benchmark")
SPLITS = {"train", "validation", "test", "unlabelled"}
ABSENT_HERE = {"tensorrt", "pycuda"}  # of the gpu extra


def test_the_catalogue_holds_the_stages_of_the_design() -> None:
    assert tuple(STAGES) == NAMES
    assert CATALOGUE.stages is STAGES


@pytest.mark.parametrize("name", NAMES)
def test_declaration(name: str) -> None:
    stage = STAGES[name]
    assert stage.name == name
    assert stage.version >= 1
    assert stage.output in ARTIFACTS.values()
    assert set(stage.splits) <= SPLITS
    assert set(stage.facts) <= set(FACTS)
    assert stage.libraries, "whatever computes depends on a library's version"
    for distribution in set(stage.libraries) - ABSENT_HERE:
        try:
            version(distribution)
        except PackageNotFoundError:
            pytest.fail(f"{distribution} is no installed distribution")


def models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and the models in its fields."""
    found: set[type[BaseModel]] = {model}
    for field in model.model_fields.values():
        for part in [field.annotation, *typing.get_args(field.annotation)]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= models_in(part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_frozen_and_refuse_unknown_keys(name: str) -> None:
    assert issubclass(STAGES[name].config, StageConfig)
    for model in models_in(STAGES[name].config) - {ModelConfig}:
        assert model.model_config.get("frozen"), model
        assert model.model_config.get("extra") == "forbid", model


def test_model_options_refuse_unknown_keys() -> None:
    assert ModelConfig.model_config.get("frozen")
    with pytest.raises(ValidationError, match="width"):
        ModelConfig.model_validate({"name": "resnet", "width": [8]})


def roles(stage: Stage[Any, Any]) -> dict[str, Any]:
    """Role -> annotation."""
    hints = typing.get_type_hints(stage.inputs)
    return {field.name: hints[field.name] for field in dataclasses.fields(stage.inputs)}


@pytest.mark.parametrize("name", NAMES)
def test_roles_are_artifacts(name: str) -> None:
    for role, annotation in roles(STAGES[name]).items():
        if role == "ancestors":
            assert annotation == dict[str, Artifact]
            continue
        kinds = {
            part for part in re.findall(r"\w+", str(annotation)) if part in {c.__name__ for c in ARTIFACTS.values()}
        }
        assert kinds, f"{name}.{role}: {annotation}"
        assert role not in STAGES[name].config.model_fields, "a role and an option must not share a name"


def test_measurements_depend_on_the_machine() -> None:
    measured = [stage for stage in STAGES.values() if stage.measured]
    assert [stage.name for stage in measured] == ["benchmark"]
    assert {"cpu", "threads", "gpu", "driver"} <= set(measured[0].facts)


def test_facts_that_only_some_artifacts_need_are_asked_for_by_config() -> None:
    sometimes = [name for name, stage in STAGES.items() if stage.facts and not stage.measured]
    assert sometimes == ["calibrate"]
    assert not STAGES["calibrate"].needs_facts(STAGES["calibrate"].config())
    assert STAGES["benchmark"].needs_facts(STAGES["benchmark"].config())


def test_what_draws_random_numbers_is_seeded() -> None:
    assert {stage.name for stage in STAGES.values() if stage.seeded} >= {"train", "answers", "distill", "qat"}
