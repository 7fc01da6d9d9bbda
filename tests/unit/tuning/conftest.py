"""A recipe, a store and a study of the toy catalogue, and short names for what tests do with them."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compress.artifacts.store import Store
from compress.tuning.results import Trial, read_trials
from compress.tuning.storage import open_place
from compress.tuning.studies import identity, open_study, read_plan
from compress.tuning.trials import Evaluator
from compress.tuning.workers import work

PROGRAM = Path(__file__).with_name("toy_study.py")


@pytest.fixture
def toy() -> Iterator[ModuleType]:
    """A fresh `toy_study.py`: no hook, nothing ran."""
    spec = importlib.util.spec_from_file_location("compress_toy_study", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compress_toy_study"] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compress_toy_study"]


class Studio:
    """One recipe and one store; every method opens the study anew, as every command does."""

    def __init__(self, toy: Any, folder: Path) -> None:
        self.toy = toy
        self.path = folder / "toy.yaml"
        self.path.write_text(toy.RECIPE)
        self.store = Store(folder / "artifacts")
        self.storage: str | None = None

    def write(self, *changes: tuple[str, str]) -> None:
        """Change the recipe's text."""
        text = self.path.read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        self.path.write_text(text)

    def open(self, *overrides: str, name: str = "toy") -> tuple[Any, Any, Any]:
        plan = read_plan(self.path, overrides, self.toy.CATALOGUE)
        place = open_place(self.storage, self.store, name)
        return plan, place, open_study(plan, place, name, identity(plan, self.store, self.toy.CATALOGUE))

    def work(self, *overrides: str) -> list[Trial]:
        """Go on to the end."""
        plan, place, study = self.open(*overrides)
        work(plan, study, place, Evaluator(plan, study, self.store, self.toy.CATALOGUE))
        return self.trials(*overrides)

    def trials(self, *overrides: str) -> list[Trial]:
        plan, _, study = self.open(*overrides)
        return read_trials(study.get_trials(deepcopy=False), plan.knobs, list(plan.objectives))

    def start(self, seconds: float, *, wait: bool = False) -> subprocess.Popen[str]:
        """A worker in a process of its own, which has opened the study and begins at once, or waits for a line."""
        command = [sys.executable, str(PROGRAM), str(self.path), str(self.store.root), self.storage or "", str(seconds)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise AssertionError(process.communicate()[1])
        if not wait:
            print(file=process.stdin, flush=True)
        return process


@pytest.fixture
def studio(toy: ModuleType, tmp_path: Path) -> Studio:
    """A study that nobody has begun."""
    return Studio(toy, tmp_path)
