from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compress.engines import availability
from compress.engines.availability import (
    LIBRARIES,
    check_disk,
    check_driver,
    check_gpu,
    check_library,
    check_machine,
    obstacle,
    onnxruntime_providers,
    why_not,
)
from compress.errors import UsageError
from compress.nvml import NO_DRIVER, Gpu, Machine, query_machine

HAS_DRIVER = check_driver(query_machine()).available
without_driver = pytest.mark.skipif(HAS_DRIVER, reason="an NVIDIA driver is here")


def test_asking_imports_no_heavy_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from compress.engines.availability import check_machine, why_not; "
        f"check_machine(Path({str(tmp_path)!r})); why_not('tensorrt_rtx'); "
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'tensorrt', 'pycuda', 'pynvml'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_lists_everything_in_json(tmp_path):
    entries = check_machine(tmp_path, providers=True)
    assert [entry.name for entry in entries] == [*LIBRARIES, "driver", "gpu", "disk"]
    document = json.loads(json.dumps([entry.as_json() for entry in entries]))
    runtime = next(entry for entry in document if entry["name"] == "onnxruntime")
    assert "CPUExecutionProvider" in runtime["details"]["providers"]
    assert all(entry["available"] or entry["reason"] for entry in document)


def test_installed_libraries_have_a_version():
    for name in ("torch", "onnxruntime"):
        found = check_library(name)
        assert found.available
        assert found.version
        assert why_not(name) is None
    assert "CPUExecutionProvider" in onnxruntime_providers()


def test_a_missing_library_says_what_to_install(monkeypatch):
    missing = availability.Library("no_such_module", "no-such-distribution", "pip install it")
    monkeypatch.setitem(LIBRARIES, "pycuda", missing)
    found = check_library("pycuda")
    assert (found.available, found.reason, found.install_hint) == (False, "not installed", "pip install it")
    assert found.explanation == "pycuda is not installed"


@without_driver
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_without_a_driver_that_is_the_reason(backend):
    assert why_not(backend) == NO_DRIVER == "no NVIDIA driver"
    found = obstacle(backend)
    assert found is not None
    assert "install the NVIDIA driver" in found.install_hint


@without_driver
def test_gpu_and_driver_give_the_same_reason():
    assert check_gpu(query_machine()).reason == check_driver(query_machine()).reason == NO_DRIVER


def test_rtx_builds_without_a_gpu():
    if check_library("tensorrt_rtx").available:
        assert obstacle("tensorrt_rtx", to="build") is None


def test_no_gpu_behind_a_driver_is_its_own_reason(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert check_gpu(Machine("", "580.1")).reason == "no NVIDIA GPU"
    assert check_gpu(Machine("the NVIDIA driver does not answer (NVML error 18)")).reason.endswith("(NVML error 18)")
    found = check_gpu(Machine("", "580.1", (Gpu("L4", "8.9", 24 * 2**30),)))
    assert found.available
    assert found.details["gpus"][0]["compute_capability"] == "8.9"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = check_gpu(Machine("", "580.1", (Gpu("L4", "8.9", 1),)))
    assert (hidden.reason, hidden.install_hint) == (
        "CUDA_VISIBLE_DEVICES hides every GPU",
        "unset CUDA_VISIBLE_DEVICES",
    )


def test_disk_is_asked_at_the_nearest_existing_folder(tmp_path, monkeypatch):
    assert check_disk(tmp_path / "not" / "yet").details["free_gib"] > 0
    monkeypatch.setattr(availability, "_LOW_DISK_BYTES", 2**60)
    found = check_disk(tmp_path)
    assert not found.available
    assert "GiB free, expected at least" in found.reason


def test_unknown_backend_is_a_usage_error():
    with pytest.raises(UsageError, match="Unknown backend 'tflite': expected one of torch, onnxruntime") as caught:
        why_not("tflite")
    assert caught.value.exit_code == 2
