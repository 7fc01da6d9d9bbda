"""The toy catalogue for every test of the pipeline."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


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
