"""The toy catalogue for every test of the pipeline, and a project that is run with it."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from compress.artifacts.store import Store
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run


@pytest.fixture
def toy() -> ModuleType:
    """A fresh `toy.py`: no calls, no faults."""
    name = "compress_toy"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up here
    spec.loader.exec_module(module)
    return module


class Bench:
    """One recipe, one store, and short names for what tests do with them."""

    def __init__(self, toy, folder: Path, recipe: str | None = None) -> None:
        self.toy = toy
        self.path = toy.project(folder, recipe or toy.RECIPE)
        self.store = Store(folder / "artifacts")

    def recipe(self, *overrides: str):
        return load_recipe(self.path, overrides, self.toy.CATALOGUE)

    def run(self, *overrides: str, store: Store | None = None, **options):
        """Run in a process that has verified nothing yet, as every command is."""
        self.toy.CALLS.clear()
        return run(self.recipe(*overrides), store or Store(self.store.root), self.toy.CATALOGUE, **options)

    def statuses(self, record) -> list[str]:
        return [step.status for step in record.steps]

    def payload(self, record, step: str) -> Path:
        return next((self.store.root / record.step(step).path / "sub").iterdir())

    def artifacts(self) -> list[str]:
        return sorted(
            str(path.parent.relative_to(self.store.root)) for path in self.store.root.glob("[!.q]*/*/manifest.json")
        )

    def drafts(self) -> list[Path]:
        return list((self.store.root / ".drafts").iterdir())


@pytest.fixture
def bench_at(toy: ModuleType) -> Callable[..., Bench]:
    """Make a bench in a folder, with the toy recipe or another."""
    return lambda folder, recipe=None: Bench(toy, folder, recipe)


@pytest.fixture
def bench(bench_at: Callable[..., Bench], tmp_path: Path) -> Bench:
    """A bench with the toy recipe."""
    return bench_at(tmp_path / "project")
