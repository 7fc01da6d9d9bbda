"""What cannot go together is said when the recipe is read, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.pipeline.recipe import load_recipe, recipe_problems
from compress.stages import CATALOGUE, STAGES
from compress.stages.tagged import MAKERS

HEAD = """
name: r
data: {dataset: digits}
steps:
  teacher: {stage: train, model: {name: mlp}, epochs: 1}
  other: {stage: train, model: {name: mlp}, epochs: 1}
  file: {stage: export, model: teacher}
  answers: {stage: answers, teacher: teacher}
"""
DISTILL = "stage: distill, model: {name: mlp}, epochs: 1"
HINTS = "losses: [{loss: hints, taps: {'1': '1'}}]"

REFUSED = [
    (
        f"{DISTILL}, teacher: teacher, answers: answers, {HINTS}",
        "those of a teacher that runs, and `answers` are",
    ),
    (
        f"{DISTILL}, teacher: [teacher, other], {HINTS}",
        "layers with those of one teacher, but 2 are named",
    ),
    (f"{DISTILL}, teacher: file, {HINTS}", "its teacher, an ONNX file, which has none to tap: name a checkpoint, or"),
    (
        f"{DISTILL}, teacher: teacher, combine: confidence",
        "which weighs several teachers, but one is named",
    ),
    (
        f"{DISTILL}, teacher: teacher, init: {{from: student, layers: '1'}}",
        "init takes layers from the student, but no step is named as `student:`",
    ),
    (
        f"{DISTILL}, teacher: teacher, student: other, init: {{from: teacher, layers: '1'}}",
        "`student:` gives all weights already: leave one of the two out",
    ),
    (
        f"{DISTILL}, teacher: [teacher, other], init: {{from: teacher, layers: '1'}}",
        "init takes layers from one teacher, but 2 are named: name the step",
    ),
    (
        f"{DISTILL}, teacher: file, init: {{from: teacher, layers: '1'}}",
        "from the teacher, which is an ONNX file without any: name the step",
    ),
    (
        "stage: qat, student: other, answers: answers",
        "are those of a teacher, and none is named",
    ),
    (
        "stage: qat, student: other, labels: none, kd_weight: 1",
        "labels is none and no teacher is named",
    ),
]


def written(folder: Path, entry: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(f"{HEAD}  step: {{{entry}}}\n")
    return path


@pytest.mark.parametrize(("entry", "told"), REFUSED)
def test_refused(tmp_path: Path, entry: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, entry), [], CATALOGUE)
    assert told in str(caught.value)
    assert "r.yaml:9: steps.step: " in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "entry",
    [
        f"{DISTILL}, teacher: teacher, {HINTS}, init: {{from: teacher, layers: '1'}}",
        f"{DISTILL}, teacher: [teacher, file], combine: confidence, student: other",
        f"{DISTILL}, teacher: [teacher, other], student: other, init: {{from: student, layers: '1'}}",
        "stage: qat, student: other, teacher: file, answers: answers, labels: none, kd_weight: 1",
        "stage: answers, teacher: [file, other]",
    ],
)
def test_taken(tmp_path: Path, entry: str) -> None:
    assert recipe_problems(written(tmp_path, entry), [], CATALOGUE) == []


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, f"{DISTILL}, teacher: [teacher, other], answers: answers, {HINTS}")
    assert len(recipe_problems(path, [], CATALOGUE)) == 2


def test_tagged_knows_who_makes_checkpoints() -> None:
    assert set(MAKERS) == {name for name, stage in STAGES.items() if stage.output.__name__ == "Checkpoint"}
