import json

import pytest

from compress.artifacts.store import Store
from compress.errors import UsageError
from compress.pipeline.keys import differences, name_sources, portable
from compress.pipeline.plan import plan
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run


@pytest.fixture
def planned(toy, tmp_path):
    """Plan the toy recipe with overrides: step -> (status, reason)."""
    path, store = toy.project(tmp_path / "p"), Store(tmp_path / "p" / "artifacts")

    def planned(*overrides: str, make: bool = False, **options):
        recipe = load_recipe(path, overrides, toy.CATALOGUE)
        if make:
            run(recipe, store, toy.CATALOGUE)
        return {one.step: (one.status, one.reason) for one in plan(recipe, store, toy.CATALOGUE, **options)}

    planned.folder = path.parent
    planned.store = store
    return planned


def test_a_fresh_plan_runs_the_first_step_and_writes_nothing(planned):
    assert planned() == {
        "teacher": ("run", "first run"),
        "student": ("depends", "depends on teacher"),
        "onnx": ("depends", "depends on student"),
        "report": ("depends", "depends on teacher, onnx"),
    }
    assert not planned.store.root.exists()


def test_after_a_run_all_are_hits(planned):
    assert set(planned(make=True).values()) == {("hit", "")}


@pytest.mark.parametrize(
    ("override", "step", "reason"),
    [
        ("teacher.temperature=4.0", "teacher", "config changed: temperature 2.0 -> 4.0"),
        ("teacher.model.widths=[8]", "teacher", "config changed: model.widths [4] -> [8]"),
        ("seed=4", "teacher", "seed changed: 3 -> 4"),
        ("onnx.keep=2", "onnx", "config changed: keep 1000 -> 2"),
        ("onnx={stage: export, model: teacher}", "onnx", "input changed: model"),
        ("student={stage: train, text: s}", "student", "stage changed: distill -> train"),
    ],
)
def test_the_reason_is_what_changed(planned, override, step, reason):
    planned(make=True)
    assert planned(override)[step] == ("run", reason)


def test_an_input_that_came_out_otherwise_is_the_reason(planned, toy, tmp_path):
    planned(make=True)
    recipe = load_recipe(planned.folder / "toy.yaml", ["teacher.text=x"], toy.CATALOGUE)
    run(recipe, planned.store, toy.CATALOGUE, until="teacher")
    assert planned("teacher.text=x")["student"] == ("run", "input changed: teacher")


def test_changed_data_are_the_reason(planned):
    planned(make=True)
    (planned.folder / "data" / "train.txt").write_text("new")
    assert planned()["teacher"] == ("run", "data changed: train")
    (planned.folder / "data" / "train.txt").write_text("train")
    (planned.folder / "data" / "test.txt").write_text("new")
    assert planned()["report"] == ("run", "data changed: test")
    assert planned()["teacher"] == ("hit", "")


def test_force_is_a_reason_and_names_are_checked(planned):
    planned(make=True)
    assert planned(force=["student"])["student"] == ("run", "forced")
    assert planned(force=["student"])["onnx"] == ("depends", "depends on student")
    with pytest.raises(UsageError, match=r"--force studen: .* nearest: 'student'"):
        planned(force=["studen"])


def test_damaged_and_missing_artifacts_are_reasons_and_stay_where_they_are(planned):
    planned(make=True)
    (manifest,) = planned.store.root.glob("train/*/manifest.json")
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-20])
    status, reason = planned()["teacher"]
    assert status == "run"
    assert reason.startswith("artifact damaged: manifest.json is malformed")
    assert manifest.exists()
    for path in sorted(manifest.parent.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    manifest.parent.rmdir()
    assert planned()["teacher"] == ("run", "artifact missing")


def test_a_run_that_failed_is_a_reason(planned, toy):
    toy.FAULTS["student"] = "nan"
    with pytest.raises(toy.ModelError):
        planned(make=True)
    assert planned()["student"] == ("run", "failed in toy-0001")


def test_reasons_come_from_the_same_recipe_name(planned):
    planned(make=True)
    assert planned("name=other", "seed=9")["teacher"] == ("run", "first run")


def test_a_hit_compares_the_whole_key_document(planned):
    planned(make=True)
    (manifest,) = planned.store.root.glob("train/*/manifest.json")
    stored = json.loads(manifest.read_text())
    stored["key_document"]["seed"] = 99
    manifest.write_text(json.dumps(stored))
    assert planned()["teacher"] == (
        "run",
        "artifact damaged: manifest.json has a key that its key document does not give",
    )


def test_differences_of_documents():
    old = {
        "stage": "train",
        "version": 1,
        "config": {"a": 1, "model": {"name": "mlp", "width": 3}},
        "libraries": {"torch": "2.12", "numpy": "2"},
        "facts": {"cpu": "A"},
        "data": {"train": "x"},
        "sources": {"net.py": "1"},
    }
    new = {
        "stage": "train",
        "version": 2,
        "config": {"a": 1, "model": {"name": "mlp", "depth": 3}},
        "libraries": {"torch": "2.13", "numpy": "2"},
        "facts": {"cpu": "B"},
        "data": {"train": "y", "test": "z"},
        "sources": {"net.py": "2"},
    }
    assert differences(old, new) == [
        "stage version changed: 1 -> 2",
        "config changed: model.width 3 -> (absent), model.depth (absent) -> 3",
        "library changed: torch 2.12 -> 2.13",
        "machine changed: cpu A -> B",
        "data changed: train, test",
        "source changed: net.py",
    ]


def test_sources_have_names_that_do_not_depend_on_the_place(tmp_path):
    base = tmp_path / "project" / "pipelines"
    base.mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    inside, outside, other = base.parent / "net.py", tmp_path / "w.pt", tmp_path / "x" / "w.pt"
    named = name_sources([inside, outside, other], base)
    assert named == {"../net.py": inside, "external/w.pt": outside, "external/w.pt#2": other}
    config = {"weights": str(other), "net": [str(inside)], "plain": "net.py", "far": "/usr/share/x"}
    assert portable(config, base, named) == {
        "weights": "external/w.pt#2",
        "net": ["../net.py"],
        "plain": "net.py",
        "far": "/usr/share/x",
    }
