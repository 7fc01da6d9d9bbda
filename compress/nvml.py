"""The GPUs of this machine, asked through the driver's own libraries without starting CUDA.

Keys, sessions and `compress doctor` all ask here, so that they cannot disagree.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

NO_DRIVER = "no NVIDIA driver"
_CUDA_LIBRARY = "libcuda.so.1"
_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_TEXT_BYTES = 96
_SM_CLOCK, _MEMORY_CLOCK, _CORE_SENSOR = 1, 2, 0
_POWER_LIMIT = "nvmlDeviceGetEnforcedPowerLimit"
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons; the others say idle, or that somebody set the clocks.
_THROTTLING = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "too hot",
    0x40: "hardware: too hot",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    compute_capability: str | None  # e.g. 8.9; None if the driver does not say
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What the driver says; `problem` is empty when it answered.

    `gpus` is None where only the management library is absent, as on some Jetsons: there is a driver, and
    nobody to ask what it drives.
    """

    problem: str
    driver_version: str | None = None
    gpus: tuple[Gpu, ...] | None = ()

    @property
    def gpu_problem(self) -> str:
        """Why a CUDA program would find no GPU here; empty if it would find one."""
        if self.problem:
            return self.problem
        if self.gpus == ():
            return "no NVIDIA GPU"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
        return "CUDA_VISIBLE_DEVICES hides every GPU" if hidden else ""


@dataclass(frozen=True)
class GpuState:
    """What a GPU's speed depends on at this moment; None where the driver does not tell."""

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: int | None
    throttled: tuple[str, ...] | None  # why clocks are held down; empty while nothing holds them


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def query_machine() -> Machine:
    """Driver version and GPUs."""
    try:
        ctypes.CDLL(_CUDA_LIBRARY)
    except OSError:
        return Machine(NO_DRIVER)
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Machine("", gpus=None)
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
        return Gpu(f"GPU {index}, not readable", None, 0)
    # Each question may be unsupported on some device; what stays at its default is then plain to see.
    named = nvml.nvmlDeviceGetName(handle, name, _TEXT_BYTES) == _SUCCESS
    capable = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == _SUCCESS
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Gpu(
        name.value.decode() if named else f"GPU {index}",
        f"{major.value}.{minor.value}" if capable else None,
        int(memory.total),
    )


def query_state(pci_bus_id: str) -> GpuState | None:
    """Clocks, power and temperature of one GPU; None where the management library does not answer.

    Args:
        pci_bus_id: e.g. 0000:01:00.0: CUDA and the management library number GPUs differently.
    """
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != _SUCCESS:
        return None
    try:
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(pci_bus_id.encode(), ctypes.byref(handle)) != _SUCCESS:
            return None
        power, limit = (_number(nvml, name, handle) for name in ("nvmlDeviceGetPowerUsage", _POWER_LIMIT))
        reasons = ctypes.c_ulonglong()
        known = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(reasons)) == _SUCCESS
        return GpuState(
            sm_clock_mhz=_number(nvml, "nvmlDeviceGetClockInfo", handle, _SM_CLOCK),
            memory_clock_mhz=_number(nvml, "nvmlDeviceGetClockInfo", handle, _MEMORY_CLOCK),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=_number(nvml, "nvmlDeviceGetTemperature", handle, _CORE_SENSOR),
            throttled=tuple(name for bit, name in _THROTTLING.items() if reasons.value & bit) if known else None,
        )
    finally:
        nvml.nvmlShutdown()


def _number(nvml: ctypes.CDLL, question: str, handle: ctypes.c_void_p, *which: int) -> int | None:
    answer = ctypes.c_uint()
    status = getattr(nvml, question)(handle, *which, ctypes.byref(answer))
    return answer.value if status == _SUCCESS else None
