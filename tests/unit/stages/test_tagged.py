"""A checkpoint of an earlier run, by tag, through the command line's own way: recipe, plan, run."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.artifacts.tags import write
from compress.errors import UsageError
from compress.pipeline.plan import plan
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run
from compress.stages import CATALOGUE

FIRST = """
name: first
data: {dataset: digits, train_samples: 200, test_samples: 60}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  float: {stage: export, model: teacher}
"""
SECOND = """
name: second
data: {dataset: digits, train_samples: 200, test_samples: 60}
steps:
  teacher: {stage: tagged, tag: main}
  student: {stage: distill, teacher: teacher, model: {name: mlp, widths: [4]}, epochs: 1}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def go(tmp_path: Path, store: Store, text: str, *overrides: str) -> RunRecord:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return run(load_recipe(path, overrides, CATALOGUE), store, CATALOGUE)


def planned(tmp_path: Path, store: Store, *overrides: str) -> list[str]:
    path = tmp_path / "second.yaml"
    path.write_text(SECOND)
    recipe = load_recipe(path, overrides, CATALOGUE)
    return [step.reason or step.status for step in plan(recipe, store, CATALOGUE)]


@pytest.mark.slow
def test_a_tagged_checkpoint_teaches_and_a_moved_tag_teaches_again(tmp_path: Path, store: Store) -> None:
    first = go(tmp_path, store, FIRST)
    write(store.root, "main", first.id)
    taught = go(tmp_path, store, SECOND)
    teacher, original = taught.step("teacher"), first.step("teacher")
    assert teacher is not None
    assert original is not None
    assert teacher.digest == original.digest
    artifact = store.artifact_of(teacher)
    assert artifact.manifest.metrics == store.artifact_of(original).manifest.metrics
    assert artifact.manifest.notes[0].startswith("step 'teacher' of the run tagged 'main': train/")
    assert planned(tmp_path, store) == ["hit", "hit"]

    same = go(tmp_path, store, FIRST.replace("first", "again"))
    write(store.root, "main", same.id)
    assert planned(tmp_path, store) == ["hit", "hit"], "the content decides, not the run"

    other = go(tmp_path, store, FIRST, "seed=1")
    write(store.root, "main", other.id)
    assert planned(tmp_path, store) == ["input changed: earlier", "depends on teacher"]
    assert planned(tmp_path, store, f"steps.teacher.tag={first.id}")[0].startswith("config changed: tag main")


@pytest.mark.slow
def test_what_a_tag_does_not_stand_for(tmp_path: Path, store: Store) -> None:
    first = go(tmp_path, store, FIRST)
    write(store.root, "main", first.id)

    def refused(*overrides: str) -> UsageError:
        with pytest.raises(UsageError) as caught:
            planned(tmp_path, store, *overrides)
        assert caught.value.exit_code == 2
        assert caught.value.where.startswith("step teacher")
        return caught.value

    unknown = refused("steps.teacher.tag=mian")
    assert unknown.message == "there is no tag 'mian'; nearest: main"
    assert unknown.hint == "compress ls lists the runs; compress tag mian RUN names one of them so"
    assert refused("steps.teacher.step=teachr").message == (
        f"run {first.id} has no step 'teachr'; nearest: teacher; checkpoints: teacher"
    )
    assert refused("steps.teacher.step=float").message == (
        f"step 'float' of run {first.id} made OnnxModel, expected Checkpoint; checkpoints: teacher"
    )
    more = go(tmp_path, store, FIRST + "  other: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1}\n")
    write(store.root, "main", more.id)
    several = refused()
    assert several.message == f"more than one step of run {more.id} made a checkpoint; checkpoints: teacher, other"
    assert several.hint == "step: NAME chooses one"
    assert planned(tmp_path, store, "steps.teacher.step=other") == ["first run", "depends on teacher"]


def test_without_any_store(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="there is no tag 'main'"):
        planned(tmp_path, store)


@pytest.mark.slow
def test_what_other_stages_made_may_be_damaged(tmp_path: Path, store: Store) -> None:
    first = go(tmp_path, store, FIRST)
    write(store.root, "main", first.id)
    exported = first.step("float")
    assert exported is not None
    assert exported.path is not None
    (store.root / exported.path / "manifest.json").write_text("{")
    assert go(tmp_path, store, SECOND).step("student") is not None
