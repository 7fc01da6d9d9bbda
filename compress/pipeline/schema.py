"""The JSON schema of recipes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from compress.pipeline.roles import roles_of
from compress.pipeline.stage import Catalogue, Stage
from compress.pipeline.tuning import TuneConfig


def schema_from_catalogue(catalogue: Catalogue, max_seed: int) -> dict[str, Any]:
    """JSON schema (2020-12) of the recipes that `catalogue` allows."""
    stages = [catalogue.stages[name] for name in sorted(catalogue.stages)]
    models = [catalogue.data, catalogue.gates, TuneConfig, *dict.fromkeys(stage.config for stage in stages)]
    refs, definitions = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    shared = definitions.get("$defs", {})
    configs = {model: shared[refs[model, "validation"]["$ref"].rpartition("/")[2]] for model in models}
    name = {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]*$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of compress",
        "type": "object",
        "properties": {
            "name": name,
            "seed": {"type": "integer", "minimum": 0, "maximum": max_seed, "default": 0},
            "data": refs[catalogue.data, "validation"],
            "gates": refs[catalogue.gates, "validation"],
            "tune": refs[TuneConfig, "validation"],
            "steps": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": name,
                "additionalProperties": {
                    "type": "object",
                    "properties": {"stage": {"enum": [stage.name for stage in stages]}},
                    "required": ["stage"],
                    "allOf": [
                        {
                            "if": {"properties": {"stage": {"const": stage.name}}},
                            "then": _step_schema(stage, configs[stage.config]),
                        }
                        for stage in stages
                    ],
                },
            },
        },
        "required": ["name", "steps"],
        "additionalProperties": False,
        "$defs": shared,
    }


def _step_schema(stage: Stage[Any, Any], config: dict[str, Any]) -> dict[str, Any]:
    roles = {
        role.name: {
            "description": f"{role.describe()} of an earlier step",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        }
        for role in roles_of(stage).values()
    }
    return {
        "properties": {"stage": {"const": stage.name}, **roles, **config.get("properties", {})},
        "required": ["stage", *config.get("required", [])],
        "additionalProperties": False,
        "description": config.get("description", ""),
    }
