"""Knobs against the recipe that they vary."""

from __future__ import annotations

import pytest

from compress.errors import RecipeError
from compress.pipeline.tuning import Choices, Range
from compress.tuning.space import (
    Knob,
    changed_steps,
    needed_steps,
    overrides_from_values,
    values_as_written,
    without_knobs,
)

TEMPERATURE = "    steps.student.temperature: {low: 1, high: 16, log: true}"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            "steps.student.temprature: {low: 1, high: 2}",
            "steps.student.temprature=1: steps.student.temprature: unknown key 'temprature'; nearest: 'temperature'",
        ),
        ("studnet.temperature: {low: 1, high: 2}", "unknown key or step 'studnet'; nearest: 'student'"),
        ("steps.studnet.temperature: {low: 1, high: 2}", "the recipe has no step 'studnet'; nearest: 'student'"),
        (
            "student.model.depth: {low: 1, high: 2}",
            "student.model.depth=1: steps.student.model: unknown key 'depth'",
        ),
        ("steps: {choices: [1]}", "replaces all steps"),
        ("seed: {low: 1, high: 3}", "a knob belongs to a step, e.g. steps.student.KEY, and this one to 'seed'"),
        ("report.x: {low: 1, high: 3}", "no objective depends on step 'report'; those that count: teacher, student"),
        (
            "student.temperature: {low: 50, high: 200}",
            "student.temperature=200: steps.student.temperature: Input should be less than or equal to 100, got 200",
        ),
        (
            "student.samples: {low: 1.5, high: 3}",
            "student.samples=1.5: steps.student.samples: Input should be a valid integer",
        ),
        ("student.model: {choices: [{}, wide]}", 'steps.student.model="wide": steps.student.model: Input should'),
        ("student.samples: {choices: [1, '1']}", "student.samples: two of its choices read '1'"),
    ],
)
def test_knobs_that_the_recipe_does_not_take_are_refused(studio, entry, told):
    studio.write((TEMPERATURE, f"    {entry}"), ("    student.model.widths: {choices: [[2], [4], [8, 8]]}\n", ""))
    with pytest.raises(RecipeError) as caught:
        studio.open()
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{studio.path}: tune.space has ")
    assert told in caught.value.message


def test_all_wrong_knobs_are_told_at_once(studio):
    studio.write((TEMPERATURE, "    student.temprature: {low: 1, high: 2}\n    seed: {low: 1, high: 2}"))
    with pytest.raises(RecipeError, match=r"tune\.space has 2 problems") as caught:
        studio.open()
    assert caught.value.message.count("\n  tune.space: ") == 2


@pytest.mark.parametrize(
    "other", ["student.temperature", "steps.student", "steps.student.samples, student.temperature"]
)
def test_two_knobs_for_one_key_are_refused(studio, other):
    studio.write((TEMPERATURE, TEMPERATURE + f"\n    {other}: {{choices: [3]}}"))
    with pytest.raises(RecipeError, match=f"{other}: 'steps.student.temperature' names the same or a part of it"):
        studio.open()


@pytest.mark.parametrize(
    ("entry", "whole"),
    [
        ("samples: {low: 1, high: 9}", True),
        ("samples: {low: 1.0, high: 9.0}", True),
        ("samples: {low: 1, high: 9.0}", True),
        ("temperature: {low: 1, high: 9}", False),
        ("temperature: {low: 1.5, high: 9}", False),
        ("temperature: {low: 1.0, high: 9}", False),
        ("samples: {choices: [1, 2]}", False),
    ],
)
def test_a_range_is_of_whole_numbers_where_the_recipe_takes_no_others(studio, entry, whole):
    studio.write((TEMPERATURE, f"    student.{entry}"))
    assert studio.open()[0].knobs[0].whole == whole


@pytest.mark.parametrize(
    ("knob", "value", "parameter"),
    [
        (Knob("k", (), Range(low=1, high=16)), 4, 4.0),
        (Knob("k", (), Range(low=1, high=16)), 16, 16.0),
        (Knob("k", (), Range(low=1, high=16)), 17, None),
        (Knob("k", (), Range(low=1, high=16)), "4", None),
        (Knob("k", (), Range(low=0, high=16)), True, None),
        (Knob("k", (), Range(low=1, high=16), whole=True), 4.0, 4),
        (Knob("k", (), Range(low=1, high=16), whole=True), 4.5, None),
        (Knob("k", (), Choices(choices=("mse", "entropy"))), "mse", "mse"),
        (Knob("k", (), Choices(choices=([8, 16], [4]))), [8, 16], "[8, 16]"),
        (Knob("k", (), Choices(choices=(None, 4))), None, "null"),
        (Knob("k", (), Choices(choices=([8, 16], [4]))), [8], None),
    ],
)
def test_values_and_parameters_of_the_study(knob, value, parameter):
    assert knob.parameter(value) == parameter
    assert type(knob.parameter(value)) is type(parameter)
    if parameter is not None:
        assert knob.value(parameter) == value


def test_an_override_keeps_every_digit(studio):
    value = 1.0000000000000002e-05
    knob = Knob("t", (("steps", "student", "temperature"),), Range(low=0, high=1))
    plan, *_ = studio.open(*overrides_from_values([knob], {"t": value}))
    assert plan.recipe.step("student").config.temperature == value


def test_one_value_may_go_to_several_keys(studio):
    both = "student.temperature, steps.teacher.temperature"
    studio.write((TEMPERATURE, f"    {both}: {{low: 1, high: 16}}"))
    plan, *_ = studio.open("teacher.temperature=2.0")
    assert plan.knobs[0].paths == (("steps", "student", "temperature"), ("steps", "teacher", "temperature"))
    assert overrides_from_values(plan.knobs, {both: 3.5}) == [
        "steps.student.temperature=3.5",
        "steps.teacher.temperature=3.5",
    ]
    assert values_as_written(plan.recipe, plan.knobs)[both] == 2.0
    apart, *_ = studio.open("teacher.temperature=5.0", name="apart")
    assert both not in values_as_written(apart.recipe, apart.knobs), "the recipe has no one value for it"
    assert without_knobs(plan.recipe, plan.knobs, plan.needed) == without_knobs(apart.recipe, apart.knobs, apart.needed)


def test_what_the_recipe_says_for_its_knobs(studio):
    plan, *_ = studio.open("student.model={}")
    assert values_as_written(plan.recipe, plan.knobs) == {
        "steps.student.temperature": 2.0,
        "student.model.widths": [4],  # by default
    }


def test_steps_that_count_and_steps_that_change(studio):
    plan, *_ = studio.open()
    assert needed_steps(plan.recipe, plan.tune) == ("teacher", "student")
    assert changed_steps(plan.recipe, plan.knobs, plan.needed) == ("student",)
    assert plan.epochs == {"student": 3}
    studio.write(("steps.student.temperature", "steps.teacher.temperature"))
    plan, *_ = studio.open(name="other")
    assert plan.epochs == {"teacher": 2, "student": 3}


def test_a_recipe_without_its_knobs(studio):
    studio.write((TEMPERATURE, TEMPERATURE + "\n    student.teacher: {choices: [teacher]}"))
    plan, *_ = studio.open("student.model.widths=[2]")
    assert without_knobs(plan.recipe, plan.knobs, plan.needed) == {
        "teacher": {"version": 1, "config": {"stage": "train", "epochs": 2}, "inputs": {}},
        "student": {"version": 1, "config": {"stage": "distill", "model": {}}, "inputs": {}},
    }
    assert plan.recipe.document["steps"]["student"]["temperature"] == 2.0, "the recipe itself stays whole"
