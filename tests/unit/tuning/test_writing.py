"""The best recipe as YAML: the text stays what it was, and a run of it gives what the study recorded."""

from __future__ import annotations

import logging
import re

import pytest

from compress.errors import RecipeError, UsageError
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run
from compress.tuning.results import best_of
from compress.tuning.writing import changed_text, write_best

TEXT = """\
# yaml-language-server: $schema=recipe.schema.json
name: toy  # a name
seed: 0

# the steps
steps:
  teacher: {stage: train,     model: {widths: [32, 64]}, epochs: 3}  # large
  student:
    stage: "distill"   # from the teacher
    # how soft
    temperature: 4.0   # no unit
    model: {widths: [8]}
"""


def test_comments_order_and_quotes_stay():
    text = changed_text(TEXT, ["student.temperature=2.5", "steps.teacher.model.widths=[16, 16]"], "by hand")
    expected = TEXT.replace("temperature: 4.0 ", "temperature: 2.5 ").replace("[32, 64]", "[16, 16]") + "# by hand\n"
    assert text.replace(" ", "") == expected.replace(" ", "")
    assert "    # how soft\n    temperature: 2.5   # no unit\n" in text
    assert 'stage: "distill"' in text


def test_new_keys_are_written_on_their_line():
    text = changed_text(TEXT, ["student.milestones=[3, 5]", "teacher.milestones=[1]", "student.sgd.rate=1e-5"], "")
    assert "    milestones: [3, 5]\n    sgd: {rate: 1e-05}\n" in text
    assert re.search(r"epochs: 3, milestones: \[1\]} +# large", text)


ALIASES = """\
name: toy
steps:
  student: {stage: train, model: &small {widths: [8], name: mlp}}
  control: {stage: train, model: *small}
  other: {stage: train, model: *small}
"""


@pytest.mark.parametrize("step", ["student", "control"])
def test_a_value_changes_where_it_is_named_and_not_where_it_is_referred_to(step):
    from ruamel.yaml import YAML

    written = YAML(typ="safe").load(changed_text(ALIASES, [f"{step}.model.widths=[4]"], ""))["steps"]
    assert {name: one["model"] for name, one in written.items()} == {
        name: {"widths": [4] if name == step else [8], "name": "mlp"} for name in ("student", "control", "other")
    }


def test_an_override_that_leads_nowhere():
    with pytest.raises(RecipeError, match="the recipe has no step 'nobody'"):
        changed_text(TEXT, ["steps.nobody.x=1"], "")


def test_a_run_of_the_written_recipe_gives_what_the_study_recorded(studio, toy, tmp_path, caplog):
    trials = studio.work("teacher.epochs=1")
    plan, *_ = studio.open("teacher.epochs=1")
    best = best_of(trials).trial
    path = tmp_path / "best.yaml"
    with caplog.at_level(logging.WARNING, "compress"):
        write_best(plan, best, "the best", path, studio.store, toy.CATALOGUE)
    assert not caplog.records
    text = path.read_text()
    assert "# softening" in text
    assert text.endswith("# the best\n")
    recipe = plan.cut(load_recipe(path, [], toy.CATALOGUE))
    record = run(recipe, studio.store, toy.CATALOGUE)
    assert [step.status for step in record.steps] == ["hit", "hit"]
    made = record.step("student")
    assert made is not None
    assert (made.key, made.digest) == (best.artifacts["student"]["key"], best.artifacts["student"]["digest"])
    assert studio.store.artifact_of(made).manifest.metrics[0].value == best.objectives["accuracy"]


def test_another_store_is_warned_of(studio, toy, tmp_path, caplog):
    plan, *_ = studio.open()
    best = best_of(studio.work()).trial
    with caplog.at_level(logging.WARNING, "compress"):
        write_best(plan, best, "", tmp_path / "best.yaml", type(studio.store)(tmp_path / "other"), toy.CATALOGUE)
    assert "student is not in this store and would be made anew: depends on teacher" in caplog.text


def test_a_recipe_that_was_changed_meanwhile_is_not_written(studio, toy, tmp_path):
    plan, *_ = studio.open()
    best = best_of(studio.work()).trial
    studio.write(("epochs: 2", "epochs: 1"))
    with pytest.raises(UsageError, match="the recipe was changed while it is tuned"):
        write_best(plan, best, "", tmp_path / "best.yaml", studio.store, toy.CATALOGUE)
    assert not (tmp_path / "best.yaml").exists()


def test_what_cannot_be_written(studio, toy, tmp_path):
    plan, *_ = studio.open()
    best = best_of(studio.work()).trial
    before = studio.path.read_bytes()
    with pytest.raises(UsageError, match="this is the recipe itself"):
        write_best(plan, best, "", studio.path, studio.store, toy.CATALOGUE)
    assert studio.path.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written"):
        write_best(plan, best, "", tmp_path / "nowhere" / "best.yaml", studio.store, toy.CATALOGUE)
