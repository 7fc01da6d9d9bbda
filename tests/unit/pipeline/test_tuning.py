"""`tune:` of a recipe: read with everything else, and every problem told with its line."""

from __future__ import annotations

import re

import pytest

from compress.errors import RecipeError
from compress.pipeline.recipe import load_recipe, recipe_problems
from compress.pipeline.tuning import Choices, Objectives, Range, TuneConfig

STEPS = """\
name: toy
data: {path: data}
steps:
  teacher: {stage: train, text: abc}
  student: {stage: distill, teacher: teacher}
  onnx: {stage: export, model: student}
  report: {stage: benchmark, reference: teacher, variants: [onnx]}
"""
SPACE = "  space: {teacher.temperature: {low: 1, high: 2}}\n"


def test_a_recipe_is_read_with_its_tune(toy, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(STEPS + "tune:\n  objectives: {accuracy: onnx, size: student}\n" + SPACE + "  trials: 5\n")
    recipe = load_recipe(path, ["tune.seed=3"], toy.CATALOGUE)
    assert recipe.tune == TuneConfig(
        objectives=Objectives(accuracy="onnx", size="student"),
        space={"teacher.temperature": Range(low=1, high=2)},
        trials=5,
        seed=3,
    )
    assert recipe.tune is not None
    assert recipe.tune.objectives.steps() == {"accuracy": "onnx", "size": "student"}
    assert load_recipe(path, ["tune=null"], toy.CATALOGUE).tune is None


@pytest.mark.parametrize(
    ("tune", "line", "told"),
    [
        ("  objectives: {accuracy: onxx}\n" + SPACE, 9, "accuracy: unknown step 'onxx'; nearest: 'onnx'"),
        (
            "  objectives: {latency: report}\n" + SPACE,
            9,
            "latency: step 'report' makes Report, which has no latency; candidates: teacher, student, onnx",
        ),
        ("  objectives: {speed: onnx}\n" + SPACE, 9, "tune.objectives: unknown key 'speed'"),
        ("  objectives: {}\n" + SPACE, 9, "expected at least one of accuracy, latency, size"),
        ("  objectives: {accuracy: onnx}\n", 8, "tune: missing key 'space'"),
        ("  objectives: {accuracy: onnx}\n  space: {}\n", 10, "should have at least 1 item"),
        (
            "  objectives: {accuracy: onnx}\n  space:\n    a.b: {low: 2, high: 2}\n",
            11,
            "low is 2, expected less than high, 2",
        ),
        (
            "  objectives: {accuracy: onnx}\n  space:\n    a.b: {low: 0, high: 2, log: true}\n",
            11,
            "low is 0, expected more than 0 on a logarithmic scale",
        ),
        ("  objectives: {accuracy: onnx}\n  space:\n    a.b: {low: yes, high: 2}\n", 11, "valid number"),
        ("  objectives: {accuracy: onnx}\n  space:\n    a.b: 3\n", 11, "expected {low: 1, high: 16, log: true} or"),
        ("  objectives: {accuracy: onnx}\n  space:\n    a.b: {choices: []}\n", 11, "should have at least 1 item"),
        ("  objectives: {accuracy: onnx}\n  space:\n    a.b: {choices: [1, 2, 1]}\n", 11, "1 is named twice"),
        ("  objectives: {accuracy: onnx}\n" + SPACE + "  trials: 0\n", 11, "greater than or equal to 1"),
        ("  objectives: {accuracy: onnx}\n" + SPACE + "  pruner: median2\n", 11, "Input should be 'none', 'median'"),
        (
            "  objectives: {accuracy: onnx, size: onnx}\n" + SPACE + "  pruner: median\n",
            8,
            "the pruner median judges trials by accuracy alone, and there are the objectives accuracy, size",
        ),
        ("  objectives: {latency: onnx}\n" + SPACE + "  pruner: halving\n", 8, "and there are the objectives latency"),
    ],
)
def test_what_is_wrong_with_a_tune(toy, tmp_path, tune, line, told):
    path = tmp_path / "toy.yaml"
    path.write_text(STEPS + "tune:\n" + tune)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [], toy.CATALOGUE)
    assert caught.value.exit_code == 2
    assert re.search(rf"toy\.yaml:{line}: .*{re.escape(told)}", caught.value.message), caught.value.message
    assert recipe_problems(path, [], toy.CATALOGUE) == [
        problem.strip() for problem in caught.value.message.splitlines()[1:]
    ]


def test_a_recipe_without_problems_has_none(toy, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(STEPS)
    assert recipe_problems(path, [], toy.CATALOGUE) == []
    assert load_recipe(path, [], toy.CATALOGUE).tune is None


def test_no_step_is_called_tune(toy, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(STEPS.replace("  teacher:", "  tune:").replace("teacher: teacher", "teacher: tune"))
    assert any("the step's name is a key of the recipe" in one for one in recipe_problems(path, [], toy.CATALOGUE))


def test_a_tune_is_part_of_no_key(bench):
    first = bench.run()
    with bench.path.open("a") as file:
        file.write("tune:\n  objectives: {accuracy: student}\n" + SPACE)
    assert bench.statuses(bench.run())[:3] == ["hit"] * 3
    assert first.exit_code == 0


def test_choices_may_be_anything():
    values = ([8, 16], {"a": 1}, "x", 3, None)
    assert Choices.model_validate({"choices": list(values)}).choices == values
