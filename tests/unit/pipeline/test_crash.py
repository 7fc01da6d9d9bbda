"""Runs that die, wait for each other, or find what a dead one left."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.artifacts.manifest import Artifact
from compress.artifacts.store import Store
from compress.errors import TryAgainError
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run

PROGRAM = Path(__file__).with_name("toy.py")
STEPS = ["teacher", "student", "onnx", "report"]


def start(recipe: Path, store: Path, *what: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(PROGRAM), str(recipe), str(store), *what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


def whole(store: Path) -> list[str]:
    """Digests of all artifacts, each verified; fails if one is partial."""
    found = Store(store).list()
    assert all(isinstance(one, Artifact) for one in found), found
    for one in found:
        assert isinstance(one, Artifact)
        Store(store).verify(one)
    return [one.manifest.digest for one in found if isinstance(one, Artifact) and one.manifest.stage != "benchmark"]


def test_a_killed_stage_leaves_no_artifact_and_the_next_run_clears_its_draft(toy, tmp_path):
    recipe, store = toy.project(tmp_path / "p"), tmp_path / "store"
    code, _ = finish(start(recipe, store, "student", "kill"))
    assert code == -9
    assert len(whole(store)) == 1
    assert [path.name[:8] for path in (store / ".drafts").iterdir()] == ["distill-"]
    record = Store(store).latest_run("toy")
    assert record is not None
    assert (record.status, record.exit_code) == ("running", None)  # nobody was left to say more
    assert [step.status for step in record.steps] == ["done", "running", "pending", "pending"]
    code, output = finish(start(recipe, store))
    assert json.loads(output) == dict(zip(STEPS, ["hit", "done", "done", "done"], strict=True))
    assert list((store / ".drafts").iterdir()) == []


@pytest.mark.slow
def test_death_at_any_write_leaves_only_whole_artifacts(toy, tmp_path):
    recipe = toy.project(tmp_path / "p")
    finish(start(recipe, tmp_path / "undisturbed"))
    expected = whole(tmp_path / "undisturbed")
    moments = [("rename", number) for number in range(1, 5)] + [("fsync", number) for number in range(1, 45, 7)]
    for function, number in moments:
        store = tmp_path / f"{function}{number}"
        code, output = finish(start(recipe, store, function, str(number)))
        assert code == -9, (function, number, output)
        assert set(whole(store)) <= set(expected)
        code, output = finish(start(recipe, store))
        assert code == 0, output
        assert whole(store) == expected


def test_two_runs_of_one_recipe_make_each_artifact_once(toy, tmp_path):
    recipe, store = toy.project(tmp_path / "p"), tmp_path / "store"
    outputs = [finish(process) for process in [start(recipe, store, "teacher", "slow") for _ in range(2)]]
    assert [code for code, _ in outputs] == [0, 0], outputs
    statuses = sorted(json.loads(output)["teacher"] for _, output in outputs)
    assert statuses == ["done", "hit"]
    assert len(whole(store)) == 3
    assert sorted(run.id for run in Store(store).list_runs()) == ["toy-0001", "toy-0002"]


def test_a_lock_that_stays_taken_ends_with_75(toy, tmp_path):
    recipe, store = toy.project(tmp_path / "p"), tmp_path / "store"
    process = start(recipe, store, "teacher", "slow")
    try:
        while not list(store.glob(".drafts/train-*/begun.txt")):
            time.sleep(0.01)
        events = []
        loaded = load_recipe(recipe, [], toy.CATALOGUE)
        with pytest.raises(TryAgainError, match=r"for more than 0\.2 s") as caught:
            run(loaded, Store(store), toy.CATALOGUE, lock_timeout_s=0.2, on_event=events.append)
        assert caught.value.exit_code == 75
        assert [event.kind for event in events] == ["waiting", "failed"]
        assert list(store.glob(".drafts/train-*/begun.txt"))  # the other run is undisturbed
    finally:
        assert finish(process)[0] == 0


def test_a_lock_dies_with_its_holder(toy, tmp_path):
    recipe, store = toy.project(tmp_path / "p"), tmp_path / "store"
    finish(start(recipe, store, "teacher", "kill"))
    started = time.monotonic()
    assert finish(start(recipe, store))[0] == 0
    assert time.monotonic() - started < 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the same is tested with a file as the store")
def test_a_read_only_store_ends_with_75(toy, tmp_path):
    recipe, store = toy.project(tmp_path / "p"), tmp_path / "store"
    finish(start(recipe, store))
    for folder in (store / "runs", store / ".drafts", store / ".locks", store):
        folder.chmod(0o555)
    try:
        with pytest.raises(TryAgainError, match="cannot be written"):
            run(load_recipe(recipe, [], toy.CATALOGUE), Store(store), toy.CATALOGUE)
    finally:
        for folder in (store, store / "runs", store / ".drafts", store / ".locks"):
            folder.chmod(0o755)
