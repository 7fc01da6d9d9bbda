"""Modules of `benchmarks/`, which are scripts and no package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[..., ModuleType]


@pytest.fixture
def load(root: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a module of `benchmarks/`, or of a copy of that folder, as its scripts do."""

    def run(name: str, folder: Path = root / "benchmarks") -> ModuleType:
        monkeypatch.syspath_prepend(str(folder))
        own = {"peers", *(path.stem for path in folder.glob("*.py"))}
        for known in [key for key in sys.modules if key.split(".")[0] in own]:
            monkeypatch.delitem(sys.modules, known)
        return importlib.import_module(name)

    return run
