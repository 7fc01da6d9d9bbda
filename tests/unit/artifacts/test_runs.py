import pytest

from compress.artifacts.runs import RunRecord, StepRecord
from compress.errors import ArtifactError, TryAgainError, UsageError


def record(recipe: str = "digits", **changes) -> RunRecord:
    steps = (StepRecord(name="teacher", stage="train"),)
    return RunRecord(
        id=recipe, recipe=recipe, recipe_path="r.yaml", seed=0, started_at="2024-01-01T00:00:00+00:00", steps=steps
    ).model_copy(update=changes)


def test_runs_are_numbered_whatever_the_clock_says(store):
    store.prepare()
    made = [store.create_run(record(name)) for name in ("digits", "other", "digits")]
    assert [run.id for run in made] == ["digits-0001", "other-0002", "digits-0003"]
    assert [run.number for run in made] == [1, 2, 3]
    assert store.list_runs() == made[::-1]
    assert store.latest_run("digits") == made[2]
    assert store.latest_run("other") == made[1]
    assert store.latest_run("digit") is None


def test_names_with_dashes_are_told_apart(store):
    store.prepare()
    store.create_run(record("a-b"))
    newest = store.create_run(record("a"))
    assert store.latest_run("a") == newest
    assert [run.id for run in store.runs_of("a-b")] == ["a-b-0001"]


def test_the_ten_thousandth_run_is_the_newest(store):
    store.prepare()
    store.create_run(record())
    store.write_run(record(id="digits-9999"))
    assert store.create_run(record()).id == "digits-10000"
    assert store.list_runs()[0].id == "digits-10000"


def test_records_are_replaced(store):
    store.prepare()
    run = store.create_run(record())
    store.write_run(run.model_copy(update={"status": "done", "exit_code": 0}))
    assert store.read_run(run.id).status == "done"
    assert run.step("teacher") == run.steps[0]
    assert run.step("none") is None


def test_unknown_and_damaged_records(store):
    store.prepare()
    with pytest.raises(UsageError, match="there is no run 'digits-0001'") as usage:
        store.read_run("digits-0001")
    assert usage.value.exit_code == 2
    run = store.create_run(record())
    (store.root / "runs" / f"{run.id}.json").write_text('{"id": 1')
    with pytest.raises(ArtifactError, match="the run record is damaged") as caught:
        store.read_run(run.id)
    assert caught.value.exit_code == 6
    assert store.list_runs() == []


def test_ids_cannot_leave_the_folder(store):
    with pytest.raises(UsageError, match="there is no run"):
        store.read_run("../train-0001")


def test_a_record_that_cannot_be_written_ends_with_75(store):
    with pytest.raises(TryAgainError, match="cannot be written"):
        store.write_run(record(id="digits-0001"))  # the folder was never made
