"""Journals and databases, and those that are neither."""

from __future__ import annotations

import errno
import sys

import pytest
from optuna.storages.journal import JournalFileBackend

from compress.errors import ArtifactError, TryAgainError, UnavailableError, UsageError
from compress.tuning.storage import open_place


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("redis://localhost/1", UsageError, "sqlalchemy.dialects:redis"),
        ("://", UsageError, "expected a database's URL"),
        ("sqlite:////no/such/folder/studies.db", TryAgainError, "cannot be used: unable to open database file"),
        ("oracle+nothing://host/x", UsageError, "oracle"),
    ],
)
def test_databases_that_cannot_be_opened(studio, url, error, told):
    studio.storage = url
    with pytest.raises(error) as caught:
        studio.open()
    assert told in str(caught.value)
    assert caught.value.hint


def test_a_missing_driver_is_named_with_its_package(studio, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    studio.storage = "postgresql+psycopg2://tuner:secret@localhost/studies"
    with pytest.raises(UnavailableError, match="the driver of the database is not installed: psycopg2") as caught:
        studio.open()
    assert caught.value.hint == "pip install psycopg2-binary"
    assert caught.value.exit_code == 7
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "", ".", "a/b", "1st"])
@pytest.mark.parametrize("database", [False, True])
def test_a_name_that_is_no_name_is_refused_before_anything_is_written(studio, tmp_path, name, database):
    studio.storage = f"sqlite:///{tmp_path / 'studies.db'}" if database else None
    with pytest.raises(UsageError, match=r"--study .*expected a letter, then letters"):
        studio.open(name=name)
    assert [file.name for file in tmp_path.iterdir()] == ["toy.yaml"]


def test_a_password_is_not_shown(studio, tmp_path):
    place = open_place(f"sqlite:///{tmp_path / 'studies.db'}?password=x", studio.store, "toy")
    assert place.label.startswith("sqlite:///")
    assert place.database


def test_optuna_that_is_not_installed(studio, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UnavailableError, match="tuning needs Optuna, which is not installed here") as caught:
        studio.open()
    assert caught.value.exit_code == 7
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    "content", [b"name: toy\nseed: 0", b'{"op": 1}\n', b'{"op": 1}', b'{"op_code_of": 1', b"[1, 2]\n", b"\x00\xff"]
)
def test_another_file_is_refused_and_left_as_it_is(studio, tmp_path, content):
    path = tmp_path / "precious.yaml"
    path.write_bytes(content)
    studio.storage = str(path)
    with pytest.raises(UsageError, match="this file is no study's journal"):
        studio.open()
    assert path.read_bytes() == content


def test_a_folder_is_refused(studio, tmp_path):
    studio.storage = str(tmp_path)
    with pytest.raises(UsageError, match="must be a file"):
        studio.open()


def test_a_folder_that_cannot_be_made(studio, tmp_path):
    (tmp_path / "file").touch()
    studio.storage = str(tmp_path / "file" / "toy.journal")
    with pytest.raises(TryAgainError, match="cannot be written"):
        studio.open()


def test_a_damaged_journal(studio):
    studio.work()
    path = studio.store.root / "tune" / "toy.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{half a line\n", *lines[3:]]))
    with pytest.raises(ArtifactError, match="the study's journal is damaged") as caught:
        studio.open()
    assert str(path) in caught.value.where


def test_half_a_line_that_a_killed_writer_left_is_cut_off(studio):
    studio.work()
    path = studio.store.root / "tune" / "toy.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker_id":"')
    assert len(studio.work("tune.trials=7")) == 7
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    assert all(line.startswith(b"{") and line.endswith(b"}") for line in path.read_bytes().splitlines())


@pytest.mark.parametrize("half", [b"{", b'{"op_', b'{"op_code":0,"worker_id":"4', b""])
def test_half_a_first_line_is_a_journal_too(studio, half):
    path = studio.store.root / "tune" / "toy.journal"
    path.parent.mkdir(parents=True)
    path.write_bytes(half)
    assert len(studio.work()) == 6
    assert all(line.startswith(b'{"op_code"') and line.endswith(b"}") for line in path.read_bytes().splitlines())


def test_one_journal_holds_several_studies(studio, tmp_path):
    studio.storage = str(tmp_path / "all.journal")
    studio.work()
    *_, other = studio.open(name="other")
    assert [trial.state.name for trial in other.get_trials()] == ["WAITING"]
    assert len(studio.trials()) == 6


def test_a_full_disk_while_a_study_goes_on(studio, toy, monkeypatch):
    write = JournalFileBackend.append_logs

    def full(self, logs):
        if toy.RAN.count("student") == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(TryAgainError, match="the disk is full") as caught:
        studio.work()
    assert caught.value.exit_code == 75
    monkeypatch.undo()
    assert sum(trial.objectives != {} for trial in studio.work()) == 6, "there is room again, and it goes on"
