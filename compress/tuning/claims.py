"""Who does which trial: each is taken once, and one whose worker was interrupted or died is taken again.

A study has `trials` places. A trial that is begun takes one; where it is interrupted, Optuna knows it as failed, and a
trial with the same parameters repeats it in the same place. One that fails by itself, e.g. because its loss diverges,
has used its place up.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from compress.artifacts.files import store_writes
from compress.log import get_logger
from compress.tuning.storage import GRACE_S, HEARTBEAT_S, Place, quiet

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

MAX_DEATHS = 5  # a trial that kills its worker every time, e.g. for want of memory, must not hold up the study for ever
WORKER, FIRST, REPEATS, DEATHS, INTERRUPTED, SURPLUS, ERROR, REASON = (
    "worker", "first", "repeats", "deaths", "interrupted", "surplus", "error", "reason",
)  # fmt: skip

log = get_logger(__name__)


class Outcome(StrEnum):
    """What became of a trial."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    PRUNED = "pruned"
    FAILED = "failed"  # by itself; it is not repeated
    INTERRUPTED = "interrupted"  # repeated by another
    SURPLUS = "surplus"  # two machines without a common lock took the same place; this one left it at once


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What became of a trial, from what its worker left."""
    name = trial.state.name
    if name != "FAIL":
        return {"COMPLETE": Outcome.DONE, "PRUNED": Outcome.PRUNED, "RUNNING": Outcome.RUNNING}.get(
            name, Outcome.WAITING
        )
    if SURPLUS in trial.user_attrs:
        return Outcome.SURPLUS
    if ERROR in trial.user_attrs or deaths_of(trial) >= MAX_DEATHS:
        return Outcome.FAILED
    return Outcome.INTERRUPTED


def deaths_of(trial: FrozenTrial) -> int:
    """How many workers died over a trial and those that it repeats; signals that ended them in order do not count."""
    died = trial.state.name == "FAIL" and not {INTERRUPTED, ERROR, SURPLUS} & set(trial.user_attrs)
    return trial.user_attrs.get(DEATHS, 0) + int(died)


class Claims:
    """Takes and gives back trials for one worker; a context, which says to others that the worker is alive.

    Args:
        study: whose trials.
        place: where it is kept.
        trials: places of the study.
    """

    def __init__(self, study: optuna.Study, place: Place, trials: int) -> None:
        self._study = study
        self._place = place
        self._trials = trials
        self._workers = place.folder / f"{study.study_name}.workers"
        self._name = uuid.uuid4().hex
        self._alive = FileLock(self._workers / self._name)

    def __enter__(self) -> Claims:
        """Be alive."""
        with store_writes(self._workers):
            self._workers.mkdir(parents=True, exist_ok=True)
            self._alive.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Be gone: what was not given back is taken over by others."""
        self._alive.release()
        (self._workers / self._name).unlink(missing_ok=True)

    def claim(self) -> tuple[optuna.Trial, int] | None:
        """Take a trial that nobody does, one that waits to be repeated first.

        Returns:
            The trial and its place, from 0; None where all places are taken.
        """
        with self._place.lock:
            self._take_over()
            while any(one.state.name == "WAITING" for one in self._all()) or self._taken() < self._trials:
                with quiet():
                    trial = self._study.ask()
                    if self._place.database:
                        _beat(self._place, trial)
                trial.set_user_attr(WORKER, self._name)
                if (place := self._place_of(trial)) is not None:
                    return trial, place
                trial.set_user_attr(SURPLUS, True)
                self._fail(trial.number)
        return None

    def others_run(self) -> bool:
        """Whether trials run that other workers have taken."""
        return any(one.state.name in ("RUNNING", "WAITING") for one in self._all())

    def interrupt(self, trial: optuna.Trial) -> None:
        """Give a trial back, so that it is repeated; nothing happens to one that has ended."""
        import optuna

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr(INTERRUPTED, True)
        self._fail(trial.number)

    @contextlib.contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Tell a database, which has no locks of workers on other machines, that this trial's worker is alive."""
        if not self._place.database:
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                try:
                    _beat(self._place, trial)
                except Exception as error:  # of whatever driver; without beats another worker repeats the trial
                    log.warning("trial %d: no heartbeat reached the database: %s", trial.number, error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _all(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _known(self) -> dict[int, FrozenTrial]:
        """Trials by number, without what is surplus: of two machines that began the study, both sent a first one."""
        known = {one.number: one for one in self._all() if outcome_of(one) is not Outcome.SURPLUS}
        later = [number for number, one in known.items() if FIRST in one.user_attrs][1:]
        return {number: one for number, one in known.items() if number not in later}

    def _taken(self) -> int:
        return sum(REPEATS not in one.user_attrs for one in self._known().values())

    def _place_of(self, trial: optuna.Trial | FrozenTrial) -> int | None:
        """The place of a trial that was taken; None where an earlier one has it, or the study has no such place."""
        known = self._known()
        if trial.number not in known:
            return None
        first, repeats = trial.number, trial.user_attrs.get(REPEATS)
        if any(n < trial.number and one.user_attrs.get(REPEATS) == repeats is not None for n, one in known.items()):
            return None
        while (before := known[first].user_attrs.get(REPEATS)) is not None:
            first = before
        place = sum(n < first and REPEATS not in one.user_attrs for n, one in known.items())
        return place if place < self._trials or repeats is not None else None

    def _take_over(self) -> None:
        """Let every trial wait again that was interrupted, or whose worker is dead; the lock is held."""
        for one in self._all():
            if one.state.name == "RUNNING" and self._is_dead(one):
                log.warning("trial %d: its worker is gone; the trial is repeated", one.number)
                self._fail(one.number)
        if self._place.database:
            import optuna

            with quiet():
                optuna.storages.fail_stale_trials(self._study)
        repeated = {one.user_attrs.get(REPEATS) for one in self._all()}
        for one in self._all():
            lost = outcome_of(one) is Outcome.INTERRUPTED and one.number not in repeated
            if lost and self._place_of(one) is not None:
                parameters = {**one.system_attrs.get("fixed_params", {}), **one.params}
                self._study.enqueue_trial(parameters, user_attrs={REPEATS: one.number, DEATHS: deaths_of(one)})

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None or not (self._workers / worker).exists():
            # Who takes a trial from a journal holds the lock until the worker's name is noted, so nobody holds this
            # one. A database has workers that this machine knows nothing of: heartbeats tell of them.
            return not self._place.database or (worker is None and _older(trial, GRACE_S))
        lock = FileLock(self._workers / worker)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        (self._workers / worker).unlink(missing_ok=True)
        return True

    def _fail(self, number: int) -> None:
        import optuna

        with quiet():
            self._study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _beat(place: Place, trial: optuna.Trial) -> None:
    storage: Any = place.storage
    storage.record_heartbeat(trial._trial_id)


def _older(trial: FrozenTrial, seconds: float) -> bool:
    start = trial.datetime_start
    return start is not None and datetime.now() - start > timedelta(seconds=seconds)
