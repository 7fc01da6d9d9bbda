"""A student that starts from layers of its teacher, or of another student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from compress.artifacts.manifest import Artifact
from compress.errors import UsageError
from compress.stages import STAGES
from compress.stages.distill import DistillConfig, DistillInputs

WIDE = {"name": "mlp", "widths": [8, 6]}  # modules 0 (Flatten), 1, 3, 5
OTHER = {"name": "mlp", "widths": [8, 4]}
STILL = {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0}
Execute = Callable[..., Artifact]


@pytest.fixture
def teacher(execute: Execute) -> Artifact:
    return execute(STAGES["train"], "teacher", model=WIDE, epochs=1)


def weight(artifact: Artifact, name: str) -> Any:
    return load_file(artifact.path / "weights.safetensors")[f"net.{name}.weight"]


@pytest.mark.parametrize("layers", ["1", ["1"], {"1": "1"}])
def test_the_student_starts_from_the_teachers_layer(execute: Execute, teacher: Artifact, layers: Any) -> None:
    inputs = DistillInputs(teacher=(teacher,))  # type: ignore[arg-type]
    init = {"from": "teacher", "layers": layers}
    student = execute(STAGES["distill"], "student", inputs, model=OTHER, init=init, **STILL)
    assert (weight(student, "1") - weight(teacher, "1")).abs().max() < 1e-6
    assert "520 of 606 parameters were taken from the teacher: 1" in student.manifest.notes


def test_the_student_starts_from_layers_of_another_student(execute: Execute, teacher: Artifact) -> None:
    other = execute(STAGES["train"], "other", model=OTHER, epochs=1)
    inputs = DistillInputs(teacher=(teacher, teacher), student=other)  # type: ignore[arg-type]
    init = {"from": "student", "layers": "1"}
    student = execute(STAGES["distill"], "student", inputs, model=WIDE, init=init, **STILL)
    assert (weight(student, "1") - weight(other, "1")).abs().max() < 1e-6
    assert weight(student, "3").shape == weight(teacher, "3").shape


@pytest.mark.parametrize(
    ("source", "layers", "message"),
    [
        ("teacher", "3", r"have other shapes: weight is \(4, 8\) and \(6, 8\)"),
        ("teacher", "11", "The student has no module '11'; nearest: "),
    ],
)
def test_what_cannot_be_taken(execute: Execute, teacher: Artifact, source: str, layers: str, message: str) -> None:
    inputs, init = DistillInputs(teacher=(teacher,)), {"from": source, "layers": layers}  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message) as caught:
        execute(STAGES["distill"], "student", inputs, model=OTHER, epochs=1, init=init)
    assert caught.value.exit_code == 2


def test_the_config_is_written_as_it_is_read() -> None:
    given = {"model": WIDE, "epochs": 1, "init": {"from": "teacher", "layers": ["1"]}}
    config = DistillConfig.model_validate(given)
    written = config.model_dump(mode="json")
    assert written["init"] == {"from": "teacher", "layers": ["1"]}
    assert DistillConfig.model_validate(written) == config
    with pytest.raises(ValidationError, match="teacher"):
        DistillConfig.model_validate({**given, "init": {"from": "tutor", "layers": "1"}})
    for nothing in ("", [], {}):
        with pytest.raises(ValidationError, match="at least 1"):
            DistillConfig.model_validate({**given, "init": {"from": "teacher", "layers": nothing}})
