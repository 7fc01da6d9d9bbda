"""Where a study is kept: Optuna's journal file beside the store, or a database."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from compress.artifacts.files import store_writes
from compress.artifacts.store import Store
from compress.errors import ArtifactError, TryAgainError, UnavailableError, UsageError
from compress.pipeline.steps import NAME

if TYPE_CHECKING:
    import optuna

FOLDER = "tune"
HEARTBEAT_S = 20
GRACE_S = 90
_HEAD = b'{"op_code"'  # of every line of a journal
_DATABASE_WAIT_S = 60
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module: package


@dataclass(frozen=True)
class Place:
    """An opened storage.

    Attributes:
        storage: of Optuna.
        database: it is one; else it is a journal file.
        lock: held by whoever takes or gives back trials; with a database, only workers on one store share it.
        folder: for what lies beside the study: locks of its workers, its figure.
        label: the storage for people, without a password.
    """

    storage: optuna.storages.BaseStorage
    database: bool
    lock: FileLock
    folder: Path
    label: str


def import_optuna() -> Any:
    """Optuna, without the log lines and remarks that are for programmers.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UnavailableError(
            f"tuning needs Optuna, which is not installed here ({error})",
            hint="pip install -e '.[tune]' in this repository, or pip install optuna",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings about its experimental parts: heartbeats are one, and warn at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Explain what a storage may meet while it is used.

    Raises:
        TryAgainError: the database does not answer.
    """
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        raise _unreachable(place.label, error) from error


def open_place(option: str | None, store: Store, name: str) -> Place:
    """Open the storage of a study, and make what is not there yet.

    Args:
        option: a database's URL, or the path of a journal file; None: `<store>/tune/<name>.journal`.
        store: where trials keep their artifacts.
        name: of the study.

    Raises:
        UnavailableError: Optuna or the database's driver is not installed.
        UsageError: a name that leads elsewhere, no URL that SQLAlchemy knows, or a file that is no journal.
        ArtifactError: the journal is damaged.
        TryAgainError: the database cannot be reached, or the folder cannot be written.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"--study {name!r}: expected a letter, then letters, digits, - or _", hint="name it otherwise")
    import_optuna()
    if option is not None and "://" in option:
        folder = store.root / FOLDER
        with store_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
        storage, label = _open_database(option)
        return Place(storage, True, FileLock(folder / f"{name}.lock"), folder, label)
    path = Path(option).absolute() if option is not None else store.root / FOLDER / f"{name}.journal"
    lock = FileLock(path.with_name(path.name + ".lock"))
    with store_writes(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_journal(path)
        storage = _open_journal(path, lock)
    return Place(storage, False, lock, path.parent, str(path))


class _Journal:
    """Optuna's journal file under a lock of the system, which is free as soon as its holder is dead."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        from optuna.storages.journal import JournalFileBackend

        self._path = path
        self._lock = lock
        self._file = JournalFileBackend(str(path), lock_obj=self)  # type: ignore[arg-type]

    def acquire(self) -> bool:
        self._lock.acquire()
        _cut_half_line(self._path)
        return True

    def release(self) -> None:
        self._lock.release()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with store_writes(self._path.parent):
            self._file.append_logs(logs)


def _cut_half_line(path: Path) -> None:
    """Remove what a writer that was killed left of its last line; the caller holds the lock."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _check_journal(path: Path) -> None:
    if not path.exists():
        return
    hint = "name a file that is not there yet, or the journal of a study"
    if not path.is_file():
        raise UsageError("the study's journal must be a file, got a folder", where=str(path), hint=hint)
    with path.open("rb") as file:
        first = file.readline()
    if not first.endswith(b"\n") and first[: len(_HEAD)] == _HEAD[: len(first)]:
        return  # a writer that was killed at its first line left half of it; the next one cuts it off
    try:
        journal = "op_code" in json.loads(first)
    except ValueError:
        journal = False
    if not journal:
        raise UsageError("this file is no study's journal, and is left as it is", where=str(path), hint=hint)


def _open_journal(path: Path, lock: FileLock) -> optuna.storages.BaseStorage:
    from optuna.storages.journal import JournalStorage

    try:
        return JournalStorage(_Journal(path, lock))  # type: ignore[arg-type]
    except (ValueError, KeyError, AssertionError) as error:
        raise ArtifactError(
            f"the study's journal is damaged: {type(error).__name__}: {error}",
            where=str(path),
            hint="move it away, or name another with --storage; the store keeps the artifacts of its trials",
        ) from error


def _open_database(url: str) -> tuple[optuna.storages.BaseStorage, str]:
    import optuna
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        parsed = sqlalchemy.make_url(url)
        label = parsed.render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            "--storage: expected a database's URL, e.g. postgresql://user@host/name, or the path of a journal file",
            hint="the text before :// names the kind of database",
        ) from error
    waiting = {"timeout": _DATABASE_WAIT_S} if parsed.get_backend_name() == "sqlite" else {}
    try:
        with quiet():
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": waiting},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
        return storage, label
    except ArgumentError as error:
        raise UsageError(
            f"--storage: {error}", where=label, hint="sqlite, postgresql and mysql are supported"
        ) from error
    except ImportError as error:
        lacking = getattr(error.__cause__, "name", None) or str(error)
        raise UnavailableError(
            f"the driver of the database is not installed: {lacking}",
            where=label,
            hint=f"pip install {_DRIVERS.get(lacking, lacking)}",
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unreachable(label, error) from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise UnavailableError(str(error), where=label, hint="use the version of Optuna that made them") from error


def _unreachable(label: str, error: Exception) -> TryAgainError:
    """A database that does not answer."""
    cause = error.__cause__ or error
    said = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return TryAgainError(
        f"the study's database cannot be used: {said[0] if said else type(cause).__name__}",
        where=label,
        hint="check that it runs and lets you in, then run the command again: finished trials are kept",
    )
