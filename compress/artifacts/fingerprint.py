"""Canonical JSON and SHA-256: what keys and digests are made of."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

_CHUNK_BYTES = 1 << 20
_RACY_NS = 2_000_000_000  # a file changed this recently can change again without a new time stamp


def canonical_json(document: Any) -> bytes:
    """Encode so that equal documents give equal bytes: sorted keys, no spaces, ASCII.

    Args:
        document: dicts with string keys, lists, tuples, strings, numbers, booleans and None.

    Returns:
        ASCII bytes without a final newline.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value or key has no JSON form.
    """
    _require_string_keys(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _require_string_keys(document: Any) -> None:
    # json.dumps would turn 1 and "1" into the same key.
    if isinstance(document, dict):
        for key, value in cast("dict[Any, Any]", document).items():
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, got {key!r}")
            _require_string_keys(value)
    elif isinstance(document, list | tuple):
        for value in cast("list[Any]", document):
            _require_string_keys(value)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data`, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of the bytes of `path`, 64 lower-case hex digits; memory stays constant.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def document_digest(document: Any) -> str:
    """SHA-256 of the canonical JSON of `document`; see `canonical_json` for what it takes and raises."""
    return sha256_bytes(canonical_json(document))


def payload_digest(files: Mapping[str, str]) -> str:
    """SHA-256 over a payload.

    Args:
        files: path relative to the payload's folder, with `/` -> SHA-256 of the file.

    Returns:
        64 hex digits; independent of where the payload lies and of the order of `files`.
    """
    return document_digest(dict(files))


class FileHashes:
    """SHA-256 of files, remembered by (path, size, mtime_ns, inode).

    Args:
        memo: JSON file that keeps the hashes between runs; None remembers within this object only.
        rehash: ignore what the memo file says.
    """

    def __init__(self, memo: Path | None = None, *, rehash: bool = False) -> None:
        self._memo = memo
        self._entries: dict[str, list[Any]] = {} if memo is None or rehash else _read_memo(memo)
        self._changed = False

    def sha256(self, path: Path) -> str:
        """SHA-256 of `path`, computed only if the file differs from the remembered one.

        Raises:
            OSError: the file cannot be read.
        """
        where = os.path.abspath(path)
        state = os.stat(where)
        signature = [state.st_size, state.st_mtime_ns, state.st_ino]
        known = self._entries.get(where)
        if known is not None and known[:3] == signature:
            return str(known[3])
        digest = sha256_file(path)
        if time.time_ns() - state.st_mtime_ns > _RACY_NS:
            self._entries[where] = [*signature, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write the memo file if something was added; it is replaced in one step.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._memo is None or not self._changed:
            return
        self._memo.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memo.with_name(f"{self._memo.name}.{os.getpid()}")
        try:
            draft.write_bytes(canonical_json(self._entries))
            draft.replace(self._memo)
        finally:
            draft.unlink(missing_ok=True)
        self._changed = False


def _read_memo(path: Path) -> dict[str, list[Any]]:
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # only a memo: missing, unreadable or damaged, it is worth no more than an empty one
    if not isinstance(stored, dict):
        return {}
    entries = cast("dict[str, Any]", stored)
    return {
        where: entry
        for where, entry in entries.items()
        if isinstance(entry, list) and len(cast("list[Any]", entry)) == 4
    }
