"""Durable writes, and what a failing file system means for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import TryAgainError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_REFUSED = _READ_ONLY | {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
# Writers in native code (safetensors, torch, onnx) raise errors of their own that only quote the system's text.
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, onto the disk.

    Raises:
        OSError: the disk failed; the data must then be taken as lost, never retried.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new ones, never a part.

    Args:
        path: the file; its folder exists.
        data: everything it shall hold.
        exclusive: refuse to replace a file that is there.

    Raises:
        FileExistsError: `exclusive`, and the file is there.
        OSError: the disk failed.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(draft, path)  # unlike a rename, fails if the name is taken
        else:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    fsync_path(path.parent)


def walk(folder: Path) -> Iterator[Path]:
    """Every entry below `folder` that is not a folder, sorted by path; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.is_dir(follow_symlinks=False):
                yield from walk(Path(entry.path))
            else:
                yield Path(entry.path)


def disk_is_full(error: BaseException) -> bool:
    """Whether `error`, or one that led to it, says that the disk is full."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _FULL:
            return True
        if any(text in str(current) for text in _FULL_TEXTS):
            return True
        current = current.__cause__ or current.__context__
    return False


def store_refused(error: BaseException, root: Path) -> bool:
    """Whether the system refused to write a file below `root`."""
    if not isinstance(error, OSError) or error.errno not in _READ_ONLY or not isinstance(error.filename, str):
        return False
    return Path(error.filename).is_relative_to(root)


def try_again_error(error: BaseException, root: Path) -> TryAgainError:
    """Explain a failed write below `root`."""
    if disk_is_full(error):
        return TryAgainError(
            "the disk is full; nothing was published",
            where=str(root),
            hint="free some space, or pass --store with a folder on another disk, and run again",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return TryAgainError(
            f"the store cannot be written: {reason}",
            where=str(error.filename or root),
            hint="make the folder writable, or pass --store with another one",
        )
    return TryAgainError(f"the store failed: {reason}", where=str(root), hint="check the disk and run again")


@contextmanager
def store_writes(root: Path) -> Generator[None]:
    """Turn every OSError of a write to the store at `root` into a TryAgainError that explains it."""
    try:
        yield
    except OSError as error:
        raise try_again_error(error, root) from error
