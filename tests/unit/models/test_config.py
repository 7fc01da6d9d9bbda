from __future__ import annotations

import sys
from subprocess import run
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from compress.models.config import ModelConfig


class Holder(BaseModel):
    model: ModelConfig
    epochs: int = 1


def problems(model: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"model": model})
    return [error["msg"] for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("given", "dumped"),
    [
        (
            {"name": "resnet", "widths": [8, 16]},
            {"widths": [8, 16], "depths": [1, 1], "stem_stride": 1, "stem_width": None, "preactivation": False},
        ),
        ({"name": "mobilenet", "widths": [8], "depths": [2]}, {"depths": [2], "expansion": 4, "head_width": None}),
        ({"name": "mlp"}, {"widths": [128, 64]}),
        ({"name": "vit", "depth": 2}, {"width": 64, "depth": 2, "heads": 4, "patch": 4, "expansion": 2}),
        ({"name": "net:make", "kwargs": {"width": 4}}, {"folder": ".", "kwargs": {"width": 4}}),
        ({"name": "pkg.net:make"}, {"name": "pkg.net:make"}),
    ],
    ids=lambda value: value.get("name", ""),
)
def test_defaults_are_written_out(given: dict[str, Any], dumped: dict[str, Any]) -> None:
    holder = Holder.model_validate({"model": given})
    plain = holder.model_dump(mode="json")["model"]
    assert {**plain, **dumped, "name": given["name"]} == plain
    assert Holder.model_validate({"model": plain}) == holder
    assert holder.model.name == given["name"]
    assert ModelConfig.model_validate(holder.model) == holder.model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet", "widht": [8]}, "unknown key 'widht'; nearest: 'widths'"),
        ({"name": "mlp", "zzz": 1}, "unknown key 'zzz'; known: name, widths"),
        ({"name": "net:make", "width": 3}, "unknown key 'width'; known: name, folder, kwargs"),
        ({"name": "resnett"}, "Value error, unknown model 'resnett'; nearest: 'resnet'"),
        (
            {"name": "transformer"},
            "Value error, unknown model 'transformer'; known: resnet, mobilenet, mlp, vit, or module:callable",
        ),
        ({}, "Value error, a model needs a `name`: resnet, mobilenet, mlp, vit, or module:callable"),
        ("resnet", "Value error, a model is a mapping: got 'resnet', expected {name: resnet}"),
        ({"name": "resnet", "widths": []}, "Value error, it is empty, expected at least one width"),
        ({"name": "mlp", "widths": [0]}, "Input should be greater than or equal to 1"),
        ({"name": "resnet", "stem_width": 0}, "Input should be greater than or equal to 1"),
        ({"name": "vit", "width": 20, "heads": 3}, "Value error, width is 20, expected a multiple of heads, 3"),
        ({"name": "vit", "activation": "silu"}, "Input should be 'relu' or 'gelu'"),
        ({"name": "mlp", "widths": [9999]}, "Input should be less than or equal to 4096"),
        (
            {"name": "resnet", "widths": [8, 8], "depths": [1]},
            "Value error, depths has 1 entries, expected one for each of 2 widths",
        ),
        (
            {"name": "resnet", "widths": [8, 8], "depths": [1, 0]},
            "Value error, depths is [1, 0]: only the first stage may be 0, and one must have blocks",
        ),
        (
            {"name": "mobilenet", "widths": [8], "depths": [0]},
            "Value error, depths is [0]: only the first stage may be 0, and one must have blocks",
        ),
        ({"name": "net:make", "kwargs": {"a b": 1}}, "Value error, kwargs must be named like arguments, got 'a b'"),
        ({"name": "net.py:make it"}, "String should match pattern"),
    ],
)
def test_wrong_entries_are_explained(given: object, message: str) -> None:
    (problem,) = problems(given)
    assert problem.startswith(message)


def test_every_problem_of_an_entry_is_listed_with_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"model": {"name": "resnet", "widths": [8, -1], "stride": {"{x}": 1}}, "epochs": "x"})
    assert [error["loc"] for error in caught.value.errors()] == [
        ("model", "resnet", "widths", 1),
        ("model", "resnet", "stride"),
        ("epochs",),
    ]


def test_configs_are_frozen_and_lean() -> None:
    config = ModelConfig.model_validate({"name": "mlp"})
    with pytest.raises(ValidationError, match="frozen"):
        config.root.name = "resnet"  # type: ignore[assignment]
    code = "import sys, compress.models.catalogue; print({'torch', 'numpy'} & set(sys.modules))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_schema_describes_every_network() -> None:
    text = str(Holder.model_json_schema())
    assert all(name in text for name in ("ResNetConfig", "MobileNetConfig", "MlpConfig", "VitConfig", "CustomConfig"))
