"""The stand-in for TensorRT 10, held against the names and parameters of its published stubs (tensorrt-stubs 10.13)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.engines.build_progress import ProgressFile, make_monitor

NAMES = Path(__file__).with_name("tensorrt_10_names.txt").read_text(encoding="utf-8").splitlines()
CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITimingCache",
    "OnnxParser",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
)
OURS = {"Network.model", "ITimingCache.entries", "IOptimizationProfile.shapes"}  # how the stand-in keeps its state


def parameters_of(name: str) -> list[list[str]]:
    """Parameter names of every overload in the stubs."""
    found = [line.partition("(")[2].rstrip(")") for line in NAMES if line.startswith(f"{name}(")]
    return [[part for part in line.split(", ") if part] for line in found]


def problems_of(kind: str, cls: Any) -> Iterator[str]:
    for attribute, value in vars(cls).items():
        name = f"{kind}.{attribute}"
        if attribute.startswith("_") or name.replace(kind, cls.__name__) in OURS:
            continue
        if not inspect.isfunction(value):
            if name not in NAMES:
                yield f"{name} is no attribute"
            continue
        mine = list(inspect.signature(value).parameters)[1:]
        if not any(mine == known[: len(mine)] for known in parameters_of(name)):
            yield f"{name}({', '.join(mine)}) is no method: {parameters_of(name)}"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_stand_in_has_no_method_that_the_stubs_do_not_have(tensorrt, kind):
    assert list(problems_of(kind, getattr(tensorrt("10.13.0"), kind))) == []


def test_what_it_lets_be_set_exists(tensorrt):
    trt = tensorrt("10.13.0")
    assert {f"IBuilderConfig.{name}" for name in trt.IBuilderConfig._names} <= set(NAMES)
    assert {f"Runtime.{name}" for name in trt.Runtime._names} <= set(NAMES)


@pytest.mark.parametrize("kind", ENUMS)
def test_its_enums_are_those_of_the_stubs(tensorrt, kind):
    members = getattr(tensorrt("10.13.0"), kind).__members__
    assert {f"{kind}.{member}" for member in members} <= set(NAMES)


@pytest.mark.parametrize("name", ["phase_start", "step_complete", "phase_finish"])
def test_our_monitor_has_the_signatures_that_are_called(tensorrt, tmp_path, name):
    file = ProgressFile(tmp_path / "progress")
    monitor = make_monitor(tensorrt("10.13.0"), file)
    assert [list(inspect.signature(getattr(monitor, name)).parameters)] == parameters_of(f"IProgressMonitor.{name}")
    file.close()


def test_a_method_that_does_not_exist_is_found():
    class Builder:
        def build_everything(self, network): ...

        def create_network(self, options): ...

    assert [problem.partition(" is ")[0] for problem in problems_of("Builder", Builder)] == [
        "Builder.build_everything(network)",
        "Builder.create_network(options)",
    ]
