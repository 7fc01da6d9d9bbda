"""What this machine is, and what `auto` becomes on it; no tensor library is imported."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.distributions import find_distribution
from compress.errors import UnavailableError, UsageError
from compress.nvml import Machine, query_machine

NOT_INSTALLED = "not installed"
_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_CPUS = Path("/sys/devices/system/cpu")
_MOST_THREADS = 64  # more than the processors are allowed: another count gives other weights
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@functools.cache
def library_version(distribution: str) -> str:
    """Version of an installed distribution from its metadata; `not installed` without one.

    An alternative that carries the same library is named too, e.g. `1.7.0 (tensorrt-rtx-cu12)`.
    """
    found = find_distribution(distribution)
    if found is None:
        return NOT_INSTALLED
    name, version = found
    return version if name == distribution else f"{version} ({name})"


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
def _nvidia() -> Machine:
    return query_machine()


def gpu() -> str | None:
    """Name of the first NVIDIA GPU, `unknown` where there is one that cannot be asked; None without one."""
    machine = _nvidia()
    if machine.gpu_problem:
        return None
    return machine.gpus[0].name if machine.gpus else "unknown"


def driver() -> str | None:
    """Version of the NVIDIA driver; None without a GPU, or where it cannot be asked."""
    machine = _nvidia()
    return None if machine.gpu_problem else machine.driver_version


def compute_capability() -> str | None:
    """CUDA compute capability of the first GPU, e.g. `9.0`; None without one, or where it cannot be asked."""
    machine = _nvidia()
    return machine.gpus[0].compute_capability if machine.gpus and not machine.gpu_problem else None


FACTS: dict[str, Callable[[], Any]] = {
    "cpu": cpu,
    "threads": threads,
    "gpu": gpu,
    "driver": driver,
    "compute_capability": compute_capability,
}


def governor() -> str | None:
    """How the clock rate is chosen, e.g. `performance`, several joined with commas; None where Linux does not say."""
    found = {file.read_text().strip() for file in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(found)) or None


def machine_state() -> dict[str, Any]:
    """What a latency depends on beside machine and model, at this moment.

    Returns:
        `governor`; `load_average`, runnable processes over 1, 5 and 15 minutes, None where there is none;
        `spinning`, whether OpenMP's idle threads busy-wait (ONNX Runtime's never do here: its sessions forbid it).
    """
    return {
        "governor": governor(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "spinning": os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE",
    }


def _cuda_problem() -> str:
    if problem := _nvidia().gpu_problem:
        return problem
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
    """Replace `auto` by the number of processors that this process may use.

    Raises:
        UsageError: fewer than 1, or so many that starting them would starve the machine.
    """
    if count == "auto":
        return threads()
    most = max(_MOST_THREADS, 4 * (os.cpu_count() or 1))
    if not 1 <= int(count) <= most:
        raise UsageError(f"threads is {count}, expected 1 to {most}", hint="leave it out, or say auto")
    return int(count)
