"""A worker takes trials until none is left; several work on one study, here and on other machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compress.log import get_logger
from compress.tuning.claims import ERROR, REASON, Claims
from compress.tuning.storage import Place, explained
from compress.tuning.studies import Plan, choose
from compress.tuning.trials import Evaluator, Pruned, Unfit

if TYPE_CHECKING:
    import optuna

POLL_S = 0.5
_PATIENCE_S = 30.0

log = get_logger(__name__)


def work(
    plan: Plan, study: optuna.Study, place: Place, evaluator: Evaluator, on_trial: Callable[[], None] = lambda: None
) -> None:
    """Run trials until every place of the study is used up; a trial of a worker that dies meanwhile is taken over.

    A trial that fails because of its values (they do not go together, training diverges, a calibration set is too
    small) has used its place up. Any other error, and a signal, gives the trial back and ends the worker: data that
    cannot be read, a step that is the same in every trial, a full disk.

    Args:
        plan: what is tuned.
        study: whose trials.
        place: where it is kept.
        evaluator: runs a trial.
        on_trial: called after each trial, and now and then while waiting for those of other workers.

    Raises:
        TryAgainError: the database cannot be reached, or the store is full.
        CompressError: what has nothing to do with a trial's values.
    """
    with explained(place), Claims(study, place, plan.tune.trials) as claims:
        while True:
            claimed = claims.claim()
            if claimed is not None:
                _run(plan, study, claims, evaluator, *claimed)
            elif not claims.others_run():
                break
            else:
                time.sleep(POLL_S)
            on_trial()
        on_trial()


def _run(
    plan: Plan, study: optuna.Study, claims: Claims, evaluator: Evaluator, trial: optuna.Trial, place: int
) -> None:
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        with claims.beating(trial):
            evaluator.prepare()
            values = choose(study, trial, plan.knobs, plan.tune.seed, place)
            try:
                objectives = evaluator.run(trial, values)
            except Pruned as reason:
                trial.set_user_attr(REASON, str(reason))
                study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            except Unfit as error:
                trial.set_user_attr(ERROR, str(error))
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            else:
                study.tell(trial, objectives, skip_if_finished=True)
    except UpdateFinishedTrialError:
        log.warning("trial %d: others took this worker for dead and repeat the trial", trial.number)
    except BaseException:
        claims.interrupt(trial)
        raise


@contextmanager
def helpers(count: int, arguments: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start workers in processes of their own, which end with the block, and with this process.

    Args:
        count: how many, >= 0.
        arguments: of `compress`, so that it works on the same study and prints nothing.

    Yields:
        The processes.
    """
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "compress", *arguments]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment))
        yield started
        for number, one in enumerate(started, start=2):
            if code := one.wait():
                log.warning("worker %d ended with %d; its trial was taken over", number, code)
    finally:
        for one in started:
            if one.poll() is None:
                one.terminate()
        for one in started:
            try:
                one.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def end_with_parent() -> None:
    """Ask the system to terminate this process when the one that started it is gone; Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
