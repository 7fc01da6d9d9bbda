"""What this machine is, and what `auto` becomes on it; no tensor library is imported."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import UnavailableError

NOT_INSTALLED = "not installed"
_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@functools.cache
def library_version(distribution: str) -> str:
    """Version of an installed distribution from its metadata; `not installed` without one."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


@functools.cache
def _cpu_info() -> str:
    return _CPU_INFO.read_text() if _CPU_INFO.is_file() else ""


def cpu() -> str:
    """The processor's model name, e.g. `AMD EPYC`."""
    match = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets that the processor names, e.g. `avx512_bf16`."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def threads() -> int:
    """Processors that this process may use: its affinity, within the container's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _CGROUP_CPU.is_file():
        quota, _, period = _CGROUP_CPU.read_text().strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            available = min(available, max(1, int(quota) // int(period)))
    return available


@functools.cache
def _nvidia() -> tuple[str, str, str] | None:
    """Name of the first GPU, driver version and compute capability; None without a GPU that can be asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}:
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None  # no driver on this machine: the usual case, and the answer
    try:
        if nvml.nvmlDeviceGetCount() == 0:
            return None
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
        return str(nvml.nvmlDeviceGetName(device)), str(nvml.nvmlSystemGetDriverVersion()), f"{major}.{minor}"
    finally:
        nvml.nvmlShutdown()


def gpu() -> str | None:
    """Name of the first NVIDIA GPU; None without one."""
    return found[0] if (found := _nvidia()) else None


def driver() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    return found[1] if (found := _nvidia()) else None


def compute_capability() -> str | None:
    """CUDA compute capability of the first GPU, e.g. `9.0`; None without one."""
    return found[2] if (found := _nvidia()) else None


FACTS: dict[str, Callable[[], Any]] = {
    "cpu": cpu,
    "threads": threads,
    "gpu": gpu,
    "driver": driver,
    "compute_capability": compute_capability,
}


def _cuda_problem() -> str:
    if gpu() is None:
        return "no NVIDIA GPU answers on this machine"
    version = library_version("torch")
    if version == NOT_INSTALLED or version.endswith("+cpu"):
        return f"torch {version} has no CUDA"
    return ""


def resolve_device(device: str) -> str:
    """Replace `auto` by `cuda` where a GPU and a torch with CUDA are here, else by `cpu`.

    Args:
        device: `auto`, `cpu` or `cuda`, the latter two with an index if wanted.

    Raises:
        UnavailableError: `cuda` was asked for and cannot be had.
    """
    if device == "auto":
        return "cpu" if _cuda_problem() else "cuda"
    if device.startswith("cuda") and (problem := _cuda_problem()):
        raise UnavailableError(f"device {device!r} is not available: {problem}", hint="set device: cpu, or auto")
    return device


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """Replace `auto` by `bf16` where the processor (AVX512-BF16, AMX) or GPU (CUDA >= 8.0) has it, else by `fp32`.

    Args:
        precision: `auto`, `fp32` or `bf16`.
        device: a resolved device.
    """
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        capability = compute_capability() or "0.0"
        return "bf16" if int(capability.partition(".")[0]) >= 8 else "fp32"
    return "bf16" if _BF16_FLAGS & cpu_flags() else "fp32"


def resolve_threads(count: int | str) -> int:
    """Replace `auto` by the number of processors that this process may use."""
    return threads() if count == "auto" else int(count)
