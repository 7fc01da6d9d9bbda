"""Where the store is when nobody says so."""

from __future__ import annotations

from pathlib import Path

from compress.artifacts.store import default_store
from compress.errors import UsageError


def store_root(option: Path | None, start: Path | None = None) -> Path:
    """Return the store's folder.

    Args:
        option: what `--store` said; wins.
        start: the recipe; without one the search starts in the working directory.

    Returns:
        `artifacts/` beside the nearest pyproject.toml of the recipe, else `artifacts/` in the working directory.

    Raises:
        UsageError: the store is a file.
    """
    # Without a recipe one is thought of in the working directory.
    root = option if option is not None else default_store(start if start is not None else Path("recipe.yaml"))
    if root.exists() and not root.is_dir():
        raise UsageError(f"the store must be a folder, got the file {root}", hint="name a folder with --store DIR")
    return root


def shown(path: Path | str) -> str:
    """Return a path as short as it can be said: relative to the working directory where it lies below it."""
    path, here = Path(path).resolve(), Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
