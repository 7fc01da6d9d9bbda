"""Import a user's callable from its folder, leaving the interpreter as it was."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.errors import ModelError
from compress.models.sources import find_local, local_sources, module_file

ALIAS = "_compress_user_"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the folder's modules be imported by their own names while the block runs.

    Afterwards those modules are forgotten and the path is as before, so that a module of the same name
    in another folder is not mistaken for them. No byte code is written to the folder, and what
    they print goes to standard error.

    Args:
        folder: absolute path.
    """
    aside = {name: module for name, module in sys.modules.items() if _hides_local(name, folder)}
    for name in aside:
        del sys.modules[name]
    before, wrote = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):  # standard output carries results alone
            yield
    finally:
        if str(folder) in sys.path:  # unless the module took it away itself
            sys.path.remove(str(folder))
        sys.dont_write_bytecode = wrote
        new = set(sys.modules) - before
        local = {name for name in new if _is_top_of(name.split(".")[0], folder)}
        for name in local:
            del sys.modules[name]
        sys.modules.update(aside)


def _hides_local(name: str, folder: Path) -> bool:
    """Whether a module loaded from elsewhere would be taken for one that the folder has."""
    top = name.split(".")[0]
    if top in sys.stdlib_module_names or top.startswith(ALIAS):
        return False
    return find_local(top, folder) is not None and not _is_top_of(top, folder)


def _is_top_of(top: str, folder: Path) -> bool:
    """Whether a loaded top-level module lies directly in the folder (which may hold a whole site-packages deeper)."""
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    places = [Path(place) for place in getattr(module, "__path__", ())]
    return folder / top in places or (file is not None and Path(file) == folder / f"{top}.py")


def load_callable(name: str, folder: Path) -> Callable[..., Any]:
    """Return what `module:callable` names; the folder goes before installed packages.

    Call it inside `importable` too: its own imports may happen late.

    Args:
        name: `module:callable`; the module may be dotted.
        folder: absolute path of the folder that modules start from.

    Raises:
        ModelError: no such module or callable, or the module fails to import; names module and folder.
    """
    module_name, _, attribute = name.partition(":")
    file = module_file(module_name, folder)
    module = _import(module_name, folder, file)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        got = "it is not callable" if hasattr(module, attribute) else "it has no such name"
        raise ModelError(
            f"module {module_name!r} in {folder} gives no callable {attribute!r}: {got}",
            where=str(file),
            hint=f"callables there: {', '.join(known) or 'none'}",
        )
    return found


def _import(module_name: str, folder: Path, file: Path) -> ModuleType:
    local = find_local(module_name, folder) is not None
    full_name = f"{_alias_package(module_name, folder)}.{module_name}" if local else module_name
    try:
        with importable(folder):
            return importlib.import_module(full_name)
    except (Exception, SystemExit) as error:
        for name in [n for n in sys.modules if n.startswith(f"{full_name.split('.')[0]}.") and local]:
            del sys.modules[name]
        raise ModelError(
            f"cannot import module {module_name!r} from {folder}: {type(error).__name__}: {error}",
            where=place_of(error, folder) or str(file),
            hint="fix the module; its folder is on the path while it is imported",
        ) from error


def _alias_package(module_name: str, folder: Path) -> str:
    # One name for each folder and content: classes keep a module that `inspect` finds, namesakes stay
    # apart, and an edited file is read again.
    digest = hashlib.sha256(str(folder).encode())
    for path in local_sources(module_name, folder):
        digest.update(path.read_bytes())
    alias = f"{ALIAS}{digest.hexdigest()[:16]}"
    if alias not in sys.modules:
        package = ModuleType(alias, f"Stands for {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[alias] = package
    return alias


def place_of(error: BaseException, folder: Path) -> str:
    """Return `file:line` of the deepest frame of an error that lies in the folder; empty if none does."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
