"""Whole studies of the toy: what is tried, what is noted, what may go on and what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compress.artifacts import tags
from compress.errors import DataError, InputError, ModelError, NotComparableError, TryAgainError, UsageError
from compress.pipeline.plan import plan
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run
from compress.tuning import figures
from compress.tuning.claims import Outcome
from compress.tuning.studies import identity, read_plan


def test_a_study_runs_its_trials_and_notes_what_came_out(studio, toy):
    trials = studio.work()
    assert [trial.outcome for trial in trials] == [Outcome.DONE] * 6
    for trial in trials:
        assert set(trial.values) == {"steps.student.temperature", "student.model.widths"}
        assert 1 <= trial.values["steps.student.temperature"] <= 16
        assert trial.values["student.model.widths"] in ([2], [4], [8, 8])
        assert trial.figures["accuracy"] == {
            "value": trial.objectives["accuracy"], "unit": "fraction", "split": "validation", "n": 100,
        }  # fmt: skip
        assert trial.run is not None
        record = studio.store.read_run(trial.run).step("student")
        assert record is not None
        assert (record.key, record.digest) == (trial.artifacts["student"]["key"], trial.artifacts["student"]["digest"])
    assert toy.RAN.count("teacher") == 1, "what no knob changes is made once"


def test_trials_are_no_runs_that_the_recipe_is_held_against(studio, toy):
    recipe = load_recipe(studio.path, [], toy.CATALOGUE)
    run(replace(recipe, steps=recipe.steps[:2]), studio.store, toy.CATALOGUE)
    assert {studio.store.read_run(trial.run).recipe for trial in studio.work()} == {"toy-tune"}
    studio.write(("temperature: 2.0", "temperature: 2.5"))
    planned = plan(load_recipe(studio.path, [], toy.CATALOGUE), studio.store, toy.CATALOGUE)
    assert planned[1].reason == "config changed: temperature 2.0 -> 2.5"


def test_no_benchmark_runs_so_no_test_data_are_read(studio, toy):
    studio.work()
    assert set(toy.RAN) == {"teacher", "student"}


def test_the_first_trial_is_the_recipe_as_it_is_written(studio):
    assert studio.work()[0].values == {"steps.student.temperature": 2.0, "student.model.widths": [4]}


def test_a_recipe_outside_its_space_is_no_trial(studio):
    first = studio.work("student.temperature=50")[0]
    assert first.values["steps.student.temperature"] <= 16


def test_a_finished_study_runs_nothing_and_more_trials_can_be_asked_for(studio, toy):
    studio.work()
    toy.RAN.clear()
    assert len(studio.work()) == 6
    assert toy.RAN == []
    assert len(studio.work("tune.trials=8")) == 8


def test_the_same_seed_tries_the_same_values_and_another_seed_others(studio, tmp_path):
    first = [trial.values for trial in studio.work()]
    studio.storage = str(tmp_path / "again.journal")
    assert [trial.values for trial in studio.work()] == first
    studio.storage = str(tmp_path / "other.journal")
    other = [trial.values for trial in studio.work("tune.seed=1")]
    assert other[0] == first[0]
    assert all(one != two for one, two in zip(other[1:], first[1:], strict=True))


def test_an_interrupted_trial_is_repeated_with_the_same_values_and_nothing_else_changes(studio, toy, tmp_path):
    undisturbed = [trial.values for trial in studio.work()]
    studio.storage = str(tmp_path / "again.journal")
    studio.store = type(studio.store)(tmp_path / "other")

    def interrupt(config, workspace):
        if len(toy.RAN) == 4:
            raise KeyboardInterrupt

    toy.RAN.clear()
    toy.HOOK.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        studio.work()
    toy.HOOK.clear()
    broken = studio.trials()
    assert [trial.outcome for trial in broken] == [Outcome.DONE] * 2 + [Outcome.INTERRUPTED]
    trials = studio.work()
    assert [trial.outcome for trial in trials].count(Outcome.DONE) == 6
    assert [(trial.number, trial.repeats) for trial in trials if trial.repeats is not None] == [(3, 2)]
    assert trials[3].values == broken[2].values
    done = [trial.values for trial in trials if trial.outcome is Outcome.DONE]
    assert done == undisturbed


@pytest.mark.parametrize("kind", [ModelError, InputError, UsageError])
def test_a_trial_that_fails_because_of_its_values_is_not_repeated(studio, toy, kind):
    def fail(config, workspace):
        if workspace.step == "student" and config.model.widths == (2,):
            raise kind("the loss is nan")

    toy.HOOK.append(fail)
    trials = studio.work()
    assert len(trials) == 6
    failed = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    assert failed
    for trial in failed:
        assert trial.values["student.model.widths"] == [2]
        assert trial.objectives == {}
        assert trial.reason.startswith("the loss is nan\n  where: step student")


def test_values_that_do_not_go_together_fail_their_trial_alone(studio):
    studio.write(
        (
            "    student.model.widths: {choices: [[2], [4], [8, 8]]}",
            "    student.epochs: {choices: [3, 5]}\n    student.samples: {low: 2, high: 13}",
        )
    )
    trials = studio.work("tune.trials=12")
    refused = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    assert refused
    assert all("samples times epochs must not exceed 40" in trial.reason for trial in refused)
    for trial in trials:
        affordable = trial.values["student.epochs"] * trial.values["student.samples"] <= 40
        assert (trial.outcome is Outcome.DONE) == affordable


def test_other_errors_end_the_worker_and_give_the_trial_back(studio, toy):
    def full(config, workspace):
        raise TryAgainError("the disk is full")

    toy.HOOK.append(full)
    with pytest.raises(TryAgainError, match="the disk is full"):
        studio.work()
    toy.HOOK.clear()
    assert [trial.outcome for trial in studio.trials()] == [Outcome.INTERRUPTED]
    assert [trial.outcome for trial in studio.work()].count(Outcome.DONE) == 6


def test_a_step_that_is_the_same_in_every_trial_uses_no_trial_up(studio, toy):
    def fail(config, workspace):
        if workspace.step == "teacher":
            raise ModelError("the loss is nan")

    toy.HOOK.append(fail)
    with pytest.raises(ModelError, match="the loss is nan"):
        studio.work()
    toy.HOOK.clear()
    assert [trial.outcome for trial in studio.trials()] == [Outcome.INTERRUPTED]
    assert [trial.outcome for trial in studio.work()].count(Outcome.DONE) == 6


def test_data_that_cannot_be_read_use_no_trial_up(studio, toy, monkeypatch):
    studio.write(("name: toy\n", "name: toy\ndata: {}\n"), ("steps.student.temperature", "steps.teacher.temperature"))
    monkeypatch.setitem(toy.STAGES, "train", replace(toy.STAGES["train"], splits=("train",)))
    gone: list[bool] = []

    def digests(data, base, hash_file):
        if gone:
            raise DataError("the folder is gone")
        return {"train": "0"}

    monkeypatch.setattr(toy, "CATALOGUE", replace(toy.CATALOGUE, data_digests=digests))
    toy.HOOK.append(lambda config, workspace: gone.extend([True] * (toy.RAN.count("student") == 2)))
    with pytest.raises(DataError, match="the folder is gone"):
        studio.work()
    gone.clear()
    assert [trial.outcome for trial in studio.trials()] == [Outcome.DONE] * 2 + [Outcome.INTERRUPTED]


def test_a_latency_that_cannot_be_told_fails_its_trial_alone(studio, monkeypatch):
    def unclear(*_, **__):
        raise NotComparableError("a call takes less than the clock resolves")

    monkeypatch.setattr(figures, "accuracy", unclear)
    assert [trial.outcome for trial in studio.work("tune.trials=2")] == [Outcome.FAILED] * 2


@pytest.mark.parametrize("half", [False, True])
def test_a_recipe_that_is_changed_meanwhile_ends_the_worker_and_gives_the_trial_back(studio, toy, half):
    text = studio.path.read_text()

    def edit(config, workspace):
        if len(toy.RAN) == 3:
            studio.path.write_text(text[:100] if half else text.replace("epochs: 2", "epochs: 1"))

    toy.HOOK.append(edit)
    with pytest.raises(UsageError, match="the recipe was changed while it is tuned") as caught:
        studio.work()
    assert caught.value.where == str(studio.path)
    toy.HOOK.clear()
    studio.path.write_text(text)
    trials = studio.trials()
    assert [trial.outcome for trial in trials] == [Outcome.DONE] * 2 + [Outcome.INTERRUPTED]
    assert len([trial for trial in studio.work() if trial.outcome is Outcome.DONE]) == 6


def test_a_pruner_ends_trials_that_are_worse_after_the_same_epoch(studio, toy):
    trials = studio.work("tune.trials=20", "tune.pruner=median")
    pruned = [trial for trial in trials if trial.outcome is Outcome.PRUNED]
    done = [trial for trial in trials if trial.outcome is Outcome.DONE]
    assert len(pruned) + len(done) == 20
    assert len(done) >= 5, "the median of fewer is not trusted"
    assert pruned
    assert all("of student: top-1 0." in trial.reason for trial in pruned)
    assert max(trial.objectives["accuracy"] for trial in done) > 0.9
    *_, study = studio.open("tune.trials=20", "tune.pruner=median")
    reported = [trial.intermediate_values for trial in study.get_trials()]
    assert all(set(values) <= {1, 2, 3} for values in reported), "the teacher, the same in all, reports nothing"
    assert reported[0]
    record = next(run for run in studio.store.list_runs() if run.status == "interrupted")
    assert record.step("student").error.startswith("Pruned: after epoch")
    assert not list((studio.store.root / ".drafts").iterdir())


def test_without_a_pruner_nothing_is_reported(studio):
    studio.work()
    *_, study = studio.open()
    assert {len(trial.intermediate_values) for trial in study.get_trials()} == {0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((("epochs: 2", "epochs: 3"),), "steps.teacher.config.epochs 2 -> 3"),
        ((("name: toy\n", "name: toy\nseed: 1\n"),), "seed 0 -> 1"),
        ((("high: 16", "high: 8"),), "tune.space.steps.student.temperature.high 16 -> 8"),
        ((("{accuracy: student}", "{size: student}"),), "tune.objectives.accuracy student -> None"),
    ],
)
def test_a_study_of_another_recipe_is_refused_and_left_as_it_is(studio, change, told):
    studio.work()
    studio.write(*change)
    journal = studio.store.root / "tune" / "toy.journal"
    before = journal.read_bytes()
    with pytest.raises(UsageError, match="the study 'toy' is of another recipe") as caught:
        studio.open()
    assert told in caught.value.message
    assert "--study" in caught.value.hint
    assert journal.read_bytes().startswith(before)
    plan, _, study = studio.open(name="other")
    assert study.study_name == "other"
    assert plan.tune.trials == 6


@pytest.mark.parametrize("varied", [False, True])
def test_a_study_is_refused_when_a_tag_has_moved_to_another_run(studio, toy, varied):
    studio.write(("{stage: train, epochs: 2}", "{stage: tagged, tag: base}"))
    if varied:
        studio.write(("    student.model", "    teacher.tag: {choices: [base, none]}\n    student.model"))
    base = studio.path.with_name("base.yaml")
    for epochs in (2, 3):
        base.write_text(f"name: base\nsteps:\n  teacher: {{stage: train, epochs: {epochs}}}\n")
        record = run(load_recipe(base, [], toy.CATALOGUE), studio.store, toy.CATALOGUE)
        tags.write(studio.store.root, "base", record.id)
        if epochs == 2:
            assert len(studio.work()) == 6
    with pytest.raises(UsageError, match=r"is of another recipe: earlier\.teacher"):
        studio.open()


@pytest.mark.parametrize(("figure", "names"), [("accuracy", ["validation"]), ("size", [])])
def test_the_validation_split_belongs_to_a_study_that_looks_at_it(studio, toy, figure, names):
    studio.write(("name: toy\n", "name: toy\ndata: {}\n"), ("{accuracy: student}", f"{{{figure}: student}}"))
    catalogue = replace(toy.CATALOGUE, data_digests=lambda data, base, hash_file: {"validation": "1", "test": "2"})
    assert list(identity(read_plan(studio.path, [], catalogue), studio.store, catalogue)["data"]) == names


@pytest.mark.parametrize(
    "change",
    [
        ("temperature: 2.0  # softening", "temperature: 3.0"),
        ("trials: 6", "trials: 7"),
        ("trials: 6", "trials: 6\n  seed: 3"),
        ("# a study of the toy", "# another remark"),
        ("  report: {stage: benchmark, reference: student}\n", ""),
    ],
)
def test_what_a_study_does_not_depend_on_may_change(studio, change):
    studio.work()
    studio.write(change)
    assert len(studio.trials()) == 6


def test_what_latencies_are_held_against_stays_what_it_was(studio):
    studio.open()
    studio.write(("temperature: 2.0", "temperature: 3.0"))
    *_, study = studio.open()
    assert study.user_attrs["as_written"] == {"steps.student.temperature": 2.0, "student.model.widths": [4]}


def test_a_study_of_another_program_is_refused(studio, tmp_path):
    import optuna

    studio.storage = f"sqlite:///{tmp_path / 'foreign.db'}"
    study = optuna.create_study(storage=studio.storage, study_name="toy", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UsageError, match="was not made by `compress tune`"):
        studio.open()
