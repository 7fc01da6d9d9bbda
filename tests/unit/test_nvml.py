from __future__ import annotations

import pytest

from compress.nvml import NO_DRIVER, Gpu, Machine, query_machine

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
