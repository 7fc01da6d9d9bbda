"""Which version of this package's code is running."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import compress
from compress.artifacts.manifest import Source

_TIMEOUT_S = 10


@functools.cache
def package_source() -> Source:
    """Commit of the checkout that this package runs from, and whether it differs; None for an installed package."""
    package = Path(compress.__file__).parent
    # An installed package may lie inside somebody else's repository, whose commit says nothing about it.
    if _git(package, "ls-files", "--error-unmatch", "errors.py") is None:
        return Source(commit=None, dirty=None)
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return Source(commit=commit, dirty=None if changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None  # without git the commit is unknown, which the manifest can say
    return done.stdout.strip() if done.returncode == 0 else None
