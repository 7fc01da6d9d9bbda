"""Work that is done once: what it returned lies in a file, with a digest of everything that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promises import ROOT

from compress.data.split import document_digest, file_sha256
from compress.pipeline.machine import library_version


def digest_of(*paths: Path) -> str:
    """One digest of files, and of the Python files of folders."""
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return document_digest({file.relative_to(ROOT).as_posix(): file_sha256(file) for file in files})


def versions(*libraries: str) -> dict[str, str]:
    """Versions of distributions in this environment."""
    return {name: library_version(name) for name in libraries}


def remembered(path: Path, key: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The JSON value that `make` returned before for the same key, or returns now; a failure is not remembered."""
    wanted = document_digest(key)
    if path.is_file():
        document = json.loads(path.read_text())
        if document["key"] == wanted:
            return document["value"]
    value = make()
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"key": wanted, "value": value}, indent=2) + "\n")
    part.replace(path)
    return value
