"""What can run on this machine, found out without importing a tensor library or starting CUDA."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.distributions import find_distribution
from compress.errors import UsageError
from compress.nvml import Machine, query_machine

_GIB = 2**30
_LOW_DISK_BYTES = 2 * _GIB


@dataclass(frozen=True)
class Library:
    """A Python library: what to import, which distribution carries it, how to get it."""

    module: str
    distribution: str  # or one of its `compress.distributions.ALTERNATIVES`
    install_hint: str
    needs_gpu: bool = False  # to run a model
    builds_without_gpu: bool = False


LIBRARIES = {
    "torch": Library("torch", "torch", "pip install torch"),
    "onnxruntime": Library("onnxruntime", "onnxruntime", "pip install onnxruntime"),
    "tensorrt_rtx": Library(
        "tensorrt_rtx",
        "tensorrt-rtx-cu13",
        "pip install tensorrt-rtx-cu13 (Linux x86-64)",
        needs_gpu=True,
        builds_without_gpu=True,
    ),
    "tensorrt": Library(
        "tensorrt",
        "tensorrt",
        "pip install -e '.[gpu]' in this repository, or use an NGC TensorRT image",
        needs_gpu=True,
    ),
    "pycuda": Library(
        "pycuda", "pycuda", "pip install -e '.[gpu]' in this repository (needs nvcc; CUDA_ROOT names its folder)"
    ),
}
BACKENDS = ("torch", "onnxruntime", "tensorrt_rtx", "tensorrt")


@dataclass(frozen=True)
class Availability:
    """One line of `compress doctor`."""

    name: str
    available: bool
    reason: str  # why not; empty when available
    version: str | None = None
    install_hint: str = ""  # empty when available, or when nothing can be installed
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def explanation(self) -> str:
        """The reason with its subject: `no NVIDIA driver`, `pycuda is not installed`; empty when available."""
        return f"{self.name} is {self.reason}" if self.name in LIBRARIES and self.reason else self.reason

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def library_version(name: str) -> str | None:
    """Version of an installed library of `LIBRARIES` from package metadata; None if there is no record of it."""
    found = find_distribution(LIBRARIES[name].distribution)
    return found[1] if found else None


def check_library(name: str) -> Availability:
    """Whether a library of `LIBRARIES` is installed; it is not imported."""
    library = LIBRARIES[name]
    if find_spec(library.module) is None:
        return Availability(name, False, "not installed", install_hint=library.install_hint)
    return Availability(name, True, "", library_version(name))


def onnxruntime_providers() -> tuple[str, ...]:
    """Execution providers of the installed ONNX Runtime, best first; empty without it. Imports it."""
    if find_spec("onnxruntime") is None:
        return ()
    # By name, so that the TensorRT session, which asks this module, does not depend on ONNX Runtime.
    return tuple(import_module("onnxruntime").get_available_providers())


def check_driver(machine: Machine) -> Availability:
    """Whether the NVIDIA driver is loaded; CUDA is not started.

    Args:
        machine: the answer of `query_machine`.
    """
    if machine.problem:
        hint = "install the NVIDIA driver, or start the container with its GPUs (--gpus all)"
        return Availability("driver", False, machine.problem, install_hint=hint)
    return Availability("driver", True, "", machine.driver_version)


def check_gpu(machine: Machine) -> Availability:
    """Whether a GPU is there for CUDA programs; its name, memory and compute capability.

    Args:
        machine: the answer of `query_machine`.
    """
    driver = check_driver(machine)
    if not driver.available:
        return Availability("gpu", False, driver.reason, install_hint=driver.install_hint)
    if machine.gpu_problem:
        hint = "" if machine.gpus == () else "unset CUDA_VISIBLE_DEVICES"
        return Availability("gpu", False, machine.gpu_problem, install_hint=hint)
    gpus = [asdict(gpu) for gpu in machine.gpus or ()]
    return Availability("gpu", True, "", details={"gpus": gpus})


def check_disk(path: Path) -> Availability:
    """Free space where artifacts go, GiB; below 2 GiB it counts as missing.

    Args:
        path: the store; where it does not exist yet, its nearest existing parent is asked.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    details = {"free_gib": round(free / _GIB, 1)}
    if free < _LOW_DISK_BYTES:
        reason = f"{free / _GIB:.1f} GiB free, expected at least {_LOW_DISK_BYTES / _GIB:.0f}"
        return Availability(
            "disk", False, reason, install_hint="free some space, or choose another --store", details=details
        )
    return Availability("disk", True, "", details=details)


def check_machine(store: Path, *, providers: bool = False) -> list[Availability]:
    """Everything that `compress doctor` shows, in its order.

    Args:
        store: folder of the artifacts, for the free space.
        providers: also import ONNX Runtime (about 0.2 s) and list its execution providers.
    """
    machine = query_machine()
    found: list[Availability] = []
    for name in LIBRARIES:
        entry = check_library(name)
        if providers and name == "onnxruntime" and entry.available:
            details = {"providers": list(onnxruntime_providers())}
            entry = Availability(name, True, "", entry.version, details=details)
        found.append(entry)
    return [*found, check_driver(machine), check_gpu(machine), check_disk(store)]


def obstacle(backend: str, *, to: str = "run") -> Availability | None:
    """The first thing that keeps a backend from running or building here, with what to install; None if nothing does.

    Args:
        backend: one of `BACKENDS`.
        to: `run` a model, or `build` an engine.

    Raises:
        UsageError: unknown backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"Unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    library = LIBRARIES[backend]
    checks: list[Availability] = []
    if to == "build":
        checks.append(check_library(backend))
    if library.needs_gpu and not (to == "build" and library.builds_without_gpu):
        checks.append(check_gpu(query_machine()))
    if to == "run":
        checks.append(check_library(backend))
        if library.needs_gpu:
            checks.append(check_library("pycuda"))
    return next((check for check in checks if not check.available), None)


def why_not(backend: str) -> str | None:
    """Why a backend cannot run a model here, e.g. `no NVIDIA driver`; None if it can.

    Raises:
        UsageError: unknown backend.
    """
    found = obstacle(backend)
    return found.explanation if found else None
