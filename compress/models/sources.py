"""Find the files behind a `module:callable` without importing anything."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from compress.errors import ModelError


def module_file(module: str, folder: Path) -> Path:
    """Return the file of a dotted module: in the folder if it is there, else where it is installed.

    Raises:
        ModelError: there is no such module; names module and folder.
    """
    path = find_local(module, folder) or _installed_file(module.split("."))
    if path is None:
        raise ModelError(
            f"no module {module!r} in {folder}, nor among the installed packages",
            where=str(folder),
            hint="check model.name and model.folder; the folder is relative to the recipe's",
        )
    return path


def find_local(module: str, folder: Path) -> Path | None:
    """Return the file of a dotted module in the folder; None if the folder does not hold it."""
    return _file_below([folder], module.split("."))


def local_sources(module: str, folder: Path) -> list[Path]:
    """Return the files that importing a module of the folder reads from it: itself, packages, imports, sorted.

    Imports are read from the syntax tree, wherever in the file they stand; names that the folder does
    not hold are installed packages and left out.

    Raises:
        ModelError: there is no such module, or a file is not Python.
    """
    found: set[Path] = set()
    waiting = [module_file(module, folder)]
    waiting += _parents(module, folder)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _imported(path, folder):
            parts = name.split(".")
            # `from package.module import thing` may name a module or an attribute: try every prefix.
            prefixes = [parts[: n + 1] for n in range(len(parts))]
            waiting += [file for prefix in prefixes if (file := _file_below([folder], prefix))]
    return sorted(found)


def _parents(module: str, folder: Path) -> list[Path]:
    parts = module.split(".")
    return [file for n in range(1, len(parts)) if (file := _file_below([folder], parts[:n]))]


def _file_below(folders: list[Path], parts: list[str]) -> Path | None:
    for folder in folders:
        place = folder.joinpath(*parts)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


def _installed_file(parts: list[str]) -> Path | None:
    # Only the top-level package is asked for: looking up a submodule would import its parents.
    try:
        spec = importlib.util.find_spec(parts[0])
    except ValueError:  # a module that has no spec, like __main__
        return None
    if spec is None:
        return None
    if len(parts) > 1:
        return _file_below([Path(place) for place in spec.submodule_search_locations or ()], parts[1:])
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _imported(path: Path, folder: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"not valid Python: {error}", where=str(path)) from error
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = _package(path, folder)[: None if node.level <= 1 else 1 - node.level] if node.level else []
            stem = ".".join([*package, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" if stem else alias.name for alias in node.names]
    return names


def _package(path: Path, folder: Path) -> list[str]:
    """The dotted package that relative imports of a file start from."""
    return list(path.parent.relative_to(folder).parts) if path.is_relative_to(folder) else []
