"""Workers of one study: each trial is taken once, and those of workers that are gone are taken again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from compress.tuning import claims as module
from compress.tuning import studies
from compress.tuning.claims import Claims, Outcome, outcome_of
from compress.tuning.storage import quiet

STORAGES = ["journal", "database"]


@pytest.fixture(params=STORAGES)
def shared(request: pytest.FixtureRequest, studio, tmp_path: Path):
    """A study in a journal, and one in a database."""
    if request.param == "database":
        studio.storage = f"sqlite:///{tmp_path / 'studies.db'}"
    return studio


def took(claims: Claims) -> tuple[optuna.Trial, int]:
    """A claim that is not in vain."""
    claimed = claims.claim()
    assert claimed is not None
    return claimed


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.05)


def ended_well(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, output + errors


def stop(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.communicate(timeout=60)


def check_complete(trials, places: int) -> None:
    """No place is lost or used twice, and each interrupted trial is repeated once, with its values."""
    outcomes = Counter(trial.outcome for trial in trials)
    assert outcomes[Outcome.DONE] == places, outcomes
    assert set(outcomes) <= {Outcome.DONE, Outcome.INTERRUPTED}
    by_number = {trial.number: trial for trial in trials}
    repeated = [trial.repeats for trial in trials if trial.repeats is not None]
    assert sorted(repeated) == sorted(n for n, trial in by_number.items() if trial.outcome is Outcome.INTERRUPTED)
    assert all(by_number[trial.repeats].values.items() <= trial.values.items() for trial in trials if trial.repeats)


@pytest.mark.slow
def test_workers_share_the_trials(shared):
    processes = [shared.start(0.3, wait=True) for _ in range(2)]
    for process in processes:
        print(file=process.stdin, flush=True)
    ended_well(processes)
    trials = shared.trials()
    assert [trial.outcome for trial in trials] == [Outcome.DONE] * 6
    *_, study = shared.open()
    assert len({trial.user_attrs["worker"] for trial in study.get_trials()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_trial_of_a_worker_that_ends_is_taken_over(studio, number):
    first = studio.start(60)
    until(lambda: any(trial.outcome is Outcome.RUNNING for trial in studio.trials()), "a running trial")
    second = studio.start(0.02)
    until(lambda: any(trial.outcome is Outcome.DONE for trial in studio.trials()), "the second worker")
    stop(first, number)
    ended_well([second])
    trials = studio.trials()
    check_complete(trials, 6)
    assert sum(trial.outcome is Outcome.INTERRUPTED for trial in trials) == 1


@pytest.mark.slow
def test_a_study_survives_workers_that_are_killed_at_any_moment(studio):
    for wait in (0.0, 0.02, 0.1, 0.3, 0.5):
        process = studio.start(0.1)
        time.sleep(wait)
        stop(process, signal.SIGKILL)
    check_complete(studio.work(), 6)


def test_one_trial_after_the_other_is_taken_and_no_more_than_there_are_places(shared):
    _, place, study = shared.open()
    with Claims(study, place, 3) as one, Claims(study, place, 3) as two:
        taken = [claims.claim() for claims in (one, two, one, two)]
        assert [claimed and (claimed[0].number, claimed[1]) for claimed in taken] == [(0, 0), (1, 1), (2, 2), None]
        assert one.others_run()
        for claimed in taken[:3]:
            assert claimed is not None
            study.tell(claimed[0], 0.5)
        assert not one.others_run()
        assert two.claim() is None


def test_a_trial_given_back_is_the_next_to_be_taken_and_keeps_its_place(shared):
    _, place, study = shared.open()
    with Claims(study, place, 3) as claims:
        claims.claim()
        second, _ = took(claims)
        second.suggest_float("steps.student.temperature", 1, 16, log=True)
        claims.interrupt(second)
        claims.interrupt(second)  # twice is no more than once
        again, position = took(claims)
        assert (again.number, position) == (2, 1)
        assert again.user_attrs["repeats"] == 1
        assert again.suggest_float("steps.student.temperature", 1, 16, log=True) == second.params.popitem()[1]
        claims.interrupt(again)
        third, position = took(claims)
        assert (third.number, position, third.user_attrs["repeats"]) == (3, 1, 2)
        assert took(claims)[1] == 2
        assert claims.claim() is None


def test_a_finished_trial_cannot_be_given_back(shared):
    _, place, study = shared.open()
    with Claims(study, place, 1) as claims:
        trial, _ = took(claims)
        study.tell(trial, 0.5)
        claims.interrupt(trial)
        assert claims.claim() is None
        assert study.trials[0].state.name == "COMPLETE"


def test_trials_of_a_worker_that_left_without_a_word_are_taken_over(studio):
    _, place, study = studio.open()
    with Claims(study, place, 2) as gone:
        gone.claim()
    with Claims(study, place, 2) as alive:
        trial, position = took(alive)
        assert (trial.user_attrs["repeats"], position) == (0, 0)
        with Claims(study, place, 2) as third:
            assert took(third)[1] == 1, "the trial of a worker that is alive stays its own"


def test_a_trial_taken_from_a_journal_by_nobody_is_taken_over(studio):
    _, place, study = studio.open()
    study.ask()  # and dead before its name was noted
    with Claims(study, place, 2) as claims:
        assert took(claims)[0].user_attrs["repeats"] == 0


def test_a_database_knows_the_workers_of_other_machines_by_their_heartbeats(studio, tmp_path, monkeypatch):
    studio.storage = f"sqlite:///{tmp_path / 'studies.db'}"
    _, place, study = studio.open()
    with Claims(study, place, 2) as elsewhere:
        elsewhere.claim()
        for lock in (tmp_path / "artifacts" / "tune" / "toy.workers").iterdir():
            lock.unlink()  # as on another machine with another store
        with Claims(study, place, 2) as here:
            assert took(here)[1] == 1, "it may be alive"
            assert here.claim() is None
            monkeypatch.setattr(place.storage, "grace_period", 1)
            time.sleep(2.1)
            trial, position = took(here)
            assert (trial.user_attrs["repeats"], position) == (0, 0)


def test_beats_go_on_while_a_trial_runs(studio, tmp_path, monkeypatch):
    studio.storage = f"sqlite:///{tmp_path / 'studies.db'}"
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    _, place, study = studio.open()
    beats: list[int] = []
    with Claims(study, place, 2) as claims:
        trial, _ = took(claims)
        monkeypatch.setattr(place.storage, "record_heartbeat", beats.append)
        with claims.beating(trial):
            until(lambda: len(beats) >= 3, "heartbeats")
        count = len(beats)
        time.sleep(0.1)
        assert len(beats) == count


def test_a_place_that_two_machines_took_at_once_is_kept_by_the_first(studio, monkeypatch):
    _, place, study = studio.open()
    with Claims(study, place, 1) as claims:
        claims.claim()
        counts = iter([0, 1])  # the first is what another machine counted a moment ago
        monkeypatch.setattr(claims, "_taken", lambda: next(counts))
        assert claims.claim() is None
    assert [outcome_of(trial) for trial in study.get_trials()] == [Outcome.RUNNING, Outcome.SURPLUS]
    assert len(studio.trials()) == 1, "nobody is told of it"


def test_two_machines_that_begin_a_study_at_once_try_the_recipe_as_it_is_written_once(studio, tmp_path, monkeypatch):
    studio.storage = f"sqlite:///{tmp_path / 'studies.db'}"
    begin = studies._begin

    def both(*given):
        begin(*given)
        begin(*given)  # the other one, which saw no trial either

    monkeypatch.setattr(studies, "_begin", both)
    trials = studio.work()
    assert [trial.outcome for trial in trials] == [Outcome.DONE] * 6
    written = {"steps.student.temperature": 2.0, "student.model.widths": [4]}
    assert [trial.values == written for trial in trials] == [True] + [False] * 5


def test_a_first_trial_that_was_interrupted_is_repeated(shared):
    _, place, study = shared.open()
    with Claims(study, place, 2) as claims:
        claims.interrupt(took(claims)[0])
        trial, position = took(claims)
        assert (trial.number, position, trial.user_attrs["repeats"]) == (1, 0, 0)


@pytest.mark.parametrize("repeat", [False, True])
def test_a_trial_whose_place_was_taken_already_is_not_repeated(shared, repeat):
    _, place, study = shared.open()
    with Claims(study, place, 1) as claims:
        trial, _ = took(claims)
        if repeat:
            claims.interrupt(trial)
            trial, _ = took(claims)
            study.enqueue_trial({}, user_attrs={"repeats": 0})  # by another machine at the same moment
        with quiet():
            surplus = study.ask()  # and dead before it was found to be surplus
        claims.interrupt(surplus)
        study.tell(trial, 0.5)
        assert claims.claim() is None
        assert len(study.get_trials()) == surplus.number + 1


def test_a_trial_that_kills_every_worker_does_not_hold_up_the_study(studio):
    _, place, study = studio.open()
    for _ in range(module.MAX_DEATHS):
        with Claims(study, place, 1) as claims:
            assert claims.claim() is not None
    with Claims(study, place, 1) as claims:
        assert claims.claim() is None
    trials = studio.trials()
    assert [trial.outcome for trial in trials] == [Outcome.INTERRUPTED] * 4 + [Outcome.FAILED]
    assert trials[-1].reason == "its worker died 5 times"


def test_signals_do_not_count_as_deaths(studio):
    _, place, study = studio.open()
    with Claims(study, place, 1) as claims:
        for _ in range(module.MAX_DEATHS + 2):
            trial, position = took(claims)
            assert position == 0
            claims.interrupt(trial)
        assert claims.claim() is not None


def test_helpers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = 'from compress.tuning.workers import end_with_parent; import time;'"
        "'end_with_parent(); print(1, flush=True); time.sleep(60)'\n"
        "process = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
        "process.stdout.readline()\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until(lambda: not _alive(child), "the helper to end", 20)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
