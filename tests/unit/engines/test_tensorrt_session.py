from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from compress.engines.availability import why_not
from compress.engines.sidecar import sidecar_path
from compress.engines.tensorrt_session import TensorRTSession
from compress.errors import ArtifactError, UnavailableError, UsageError

without_driver = pytest.mark.skipif(why_not("tensorrt_rtx") is None, reason="engines run here")


@without_driver
def test_without_a_driver_the_reason_is_given(int8_engine):
    with pytest.raises(UnavailableError, match="tensorrt_rtx engines cannot run here: no NVIDIA driver") as caught:
        TensorRTSession.load(int8_engine)
    assert caught.value.exit_code == 7
    assert "install the NVIDIA driver" in caught.value.hint


@without_driver
def test_refusing_touches_no_gpu_library(int8_engine):
    code = (
        "import sys\nfrom pathlib import Path\nfrom compress.engines.tensorrt_session import TensorRTSession\n"
        "from compress.errors import UnavailableError\n"
        f"try:\n    TensorRTSession.load(Path({str(int8_engine)!r}))\nexcept UnavailableError:\n"
        "    print(sorted({'tensorrt_rtx', 'tensorrt', 'pycuda', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_damaged_plan_is_refused_before_anything_else(int8_engine, tmp_path):
    shutil.copy(sidecar_path(int8_engine), tmp_path / "model.json")
    (tmp_path / "model.plan").write_bytes(int8_engine.read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(ArtifactError, match="not the one that was built") as caught:
        TensorRTSession.load(tmp_path / "model.plan")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:x", "gpu"])
def test_an_engine_runs_on_a_gpu_only(int8_engine, device):
    with pytest.raises(UsageError, match="expected cuda or cuda:N") as caught:
        TensorRTSession.load(int8_engine, device)
    assert caught.value.exit_code == 2
