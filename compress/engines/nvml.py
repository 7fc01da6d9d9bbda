"""The GPUs of this machine, asked through the driver's management library without starting CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_TEXT_BYTES = 96


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    compute_capability: str  # e.g. 8.9
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What the driver says; `problem` is empty when it answered."""

    problem: str
    driver_version: str | None = None
    gpus: tuple[Gpu, ...] = ()


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def query_machine() -> Machine | None:
    """Driver version and GPUs; None where the management library is absent, as on some Jetsons."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    status = nvml.nvmlInit_v2()
    if status != _SUCCESS:
        return Machine(f"the NVIDIA driver does not answer (NVML error {status})")
    try:
        version = ctypes.create_string_buffer(_TEXT_BYTES)
        count = ctypes.c_uint()
        statuses = (
            nvml.nvmlSystemGetDriverVersion(version, _TEXT_BYTES),
            nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)),
        )
        if any(statuses):
            return Machine(f"the NVIDIA driver does not list its GPUs (NVML errors {statuses})")
        gpus = tuple(_gpu(nvml, index) for index in range(count.value))
        return Machine("", version.value.decode(), gpus)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    memory = _Memory()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != _SUCCESS:
        return Gpu(f"GPU {index}, not readable", "?", 0)
    # Each question may be unsupported on some device; what stays at its default is then plain to see.
    named = nvml.nvmlDeviceGetName(handle, name, _TEXT_BYTES) == _SUCCESS
    capable = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == _SUCCESS
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(
        name.value.decode() if named else f"GPU {index}",
        f"{major.value}.{minor.value}" if capable else "?",
        int(memory.total),
    )
