from __future__ import annotations

from typing import Any, ClassVar

import pytest

from compress.nvml import NO_DRIVER, Gpu, GpuState, Machine, query_machine, query_state

L4 = Gpu("NVIDIA L4", "8.9", 24 * 2**30)


@pytest.mark.parametrize(
    ("machine", "visible", "problem"),
    [
        (Machine(NO_DRIVER), None, "no NVIDIA driver"),
        (Machine("the NVIDIA driver does not answer (NVML error 18)"), "", "(NVML error 18)"),
        (Machine("", "580.1", (L4,)), None, ""),
        (Machine("", "580.1", (L4,)), "0", ""),
        (Machine("", "580.1", (L4,)), "", "CUDA_VISIBLE_DEVICES hides every GPU"),
        (Machine("", "580.1", (L4,)), " -1", "CUDA_VISIBLE_DEVICES hides every GPU"),
        (Machine("", "580.1"), None, "no NVIDIA GPU"),
        (Machine("", "580.1"), "-1", "no NVIDIA GPU"),
        (Machine("", gpus=None), None, ""),
        (Machine("", gpus=None), "", "CUDA_VISIBLE_DEVICES hides every GPU"),
    ],
)
def test_why_there_is_no_gpu(
    machine: Machine, visible: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpu_problem.endswith(problem)
    assert bool(machine.gpu_problem) == bool(problem)


def test_the_driver_is_asked() -> None:
    machine = query_machine()
    assert machine.problem == NO_DRIVER or machine.problem or machine.gpus is None or machine.driver_version


class FakeNvml:
    """Answers like the management library of a GPU that is held down by its power limit."""

    answers: ClassVar = {
        "nvmlDeviceGetPowerUsage": 71_500,
        "nvmlDeviceGetEnforcedPowerLimit": 72_000,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x5,
    }

    def __init__(self, unsupported: str = "") -> None:
        self.unsupported = unsupported
        self.open = 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> int:
            if name == "nvmlDeviceGetHandleByPciBusId_v2":
                return 0 if arguments[0] == b"0000:01:00.0" else 2
            if name == self.unsupported:
                return 3
            clocks = {1: 2040, 2: 6251}
            arguments[-1]._obj.value = self.answers[name] if name in self.answers else clocks[arguments[1]]
            return 0

        return ask


def test_the_state_of_a_gpu_has_units(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    assert query_state("0000:01:00.0") == GpuState(2040, 6251, 71.5, 72.0, 61, ("power limit",))
    assert query_state("0000:02:00.0") is None
    assert library.open == 0


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttled"),
    ],
)
def test_what_a_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch, question: str, field: str) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: FakeNvml(question))
    state = query_state("0000:01:00.0")
    assert state is not None
    assert getattr(state, field) is None
    assert state.sm_clock_mhz == 2040


def test_without_the_library_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert query_state("0000:01:00.0") is None
