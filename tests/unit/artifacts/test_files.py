import errno
import os

import pytest

from compress.artifacts.files import disk_is_full, store_writes, try_again_error, walk, write_durably
from compress.errors import TryAgainError


def test_writing_replaces_in_one_step_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "f"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_exclusive_writing_keeps_what_is_there(tmp_path):
    path = tmp_path / "f"
    write_durably(path, b"one", exclusive=True)
    with pytest.raises(FileExistsError):
        write_durably(path, b"two", exclusive=True)
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_walk_follows_no_link(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)] == ["a", "b/x"]


def chained(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("cannot save") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        RuntimeError("PytorchStreamWriter failed: No space left on device"),
        chained(OSError(errno.ENOSPC, "x")),
    ],
)
def test_a_full_disk_is_recognised(error, tmp_path):
    assert disk_is_full(error)
    found = try_again_error(error, tmp_path)
    assert (found.exit_code, found.message) == (75, "the disk is full; nothing was published")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "x"), ValueError("x"), chained(ValueError("y"))])
def test_other_failures_are_no_full_disk(error):
    assert not disk_is_full(error)


def test_failed_writes_say_what_failed_and_where(tmp_path):
    with pytest.raises(TryAgainError, match="cannot be written: Not a directory") as caught, store_writes(tmp_path):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(tmp_path / "f"))
    assert caught.value.where == str(tmp_path / "f")
    with pytest.raises(TryAgainError, match="the store failed: Input/output error") as caught, store_writes(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert (caught.value.where, caught.value.exit_code) == (str(tmp_path), 75)


def test_a_full_device_is_recognised_for_real():
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert disk_is_full(caught.value)
