"""The check for GPU hosts runs anywhere: what cannot run is written down, with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.engines.availability import why_not

pytestmark = pytest.mark.slow

SECTIONS = ["environment", "models", "engines", "validity", "inference", "fidelity", "latency"]
REASON = why_not("tensorrt_rtx")


def check(root: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(root / "benchmarks" / "gpu_check.sh"), *map(str, arguments)]
    settings = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=400, env=settings)


@pytest.mark.skipif(REASON is None, reason="engines run here")
def test_without_a_gpu_every_section_says_what_it_could_not_do(root: Path, tmp_path: Path) -> None:
    output, wheels = tmp_path / "new" / "gpu.json", tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "broken-1.0.tar.gz").write_text("no archive")
    done = check(root, "--quick", "--wheels", wheels, "--output", output)
    assert "gpu_check: broken-1.0.tar.gz cannot be installed" in done.stderr
    assert done.returncode == 7, done.stdout + done.stderr
    sections = json.loads(output.read_text())["sections"]
    assert list(sections) == SECTIONS
    assert {name: one["status"] for name, one in sections.items() if one["status"] != "done"} == {"validity": "not run"}
    assert sections["environment"]["gpu_problem"] in sections["validity"]["reason"]
    assert sections["environment"]["libraries"]["tensorrt-rtx-cu13"] == sections["engines"]["int8"]["backend_version"]
    int8 = sections["engines"]["int8"]
    assert int8["convolutions"]["int8"] == int8["convolutions"]["total"] > 0
    assert sections["engines"]["fp32"]["convolutions"]["int8"] == 0
    assert sections["inference"]["int8"]["status"] == "not run"
    fidelity = sections["fidelity"]
    assert fidelity["onnxruntime fp32"]["against teacher"]["sqnr_db"] > 60
    assert fidelity["onnxruntime int8 unsigned"]["against onnxruntime int8"]["agreement"] > 0.95
    assert REASON in fidelity["engine int8"]["reason"]
    timed = sections["latency"]["batches"]["1"]
    assert set(timed["variants"]) == {"torch fp32", "torch bf16", "onnxruntime fp32", "onnxruntime int8 unsigned"}
    assert timed["variants"]["onnxruntime int8 unsigned"]["over onnxruntime int8 unsigned"]["ratio"] == 1
    assert all(one["p50_ms"] > 0 for one in timed["variants"].values())
    engines = [f"engine {name}" for name in ("int8", "int8+fp16", "fp16", "fp32")]
    assert set(timed["problems"]) == {*engines, *(f"{name}, CUDA graphs" for name in engines)}


def test_a_folder_of_wheels_that_is_not_there(root: Path, tmp_path: Path) -> None:
    done = check(root, "--wheels", tmp_path / "absent")
    assert done.returncode == 2
    assert done.stderr == f"gpu_check: --wheels needs a folder, got '{tmp_path / 'absent'}'\n"
    assert check(root, "--wheels").returncode == 2


def test_what_fails_is_written_down_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    # A library that breaks when it is imported, in front of the real one.
    broken = tmp_path / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('built for another machine')")
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(root / "benchmarks" / "gpu_check.py"), "--quick", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 3, done.stdout + done.stderr
    sections = json.loads(output.read_text())["sections"]
    assert list(sections) == SECTIONS
    assert sections["models"]["status"] == "failed"
    assert "built for another machine" in sections["models"]["message"]
    engines = sections["engines"]
    assert (engines["status"], engines["reason"]) == ("not run", "an earlier section made no files")


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_with_a_gpu_the_int8_engine_answers(root: Path, tmp_path: Path) -> None:
    done = check(root, "--quick", "--output", tmp_path / "gpu.json")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["inference"]["int8"]["status"] == "done"
    assert sections["fidelity"]["engine int8"]["against onnxruntime int8"]["agreement"] > 0.95
    assert sections["latency"]["batches"]["1"]["variants"]["engine int8"]["p50_ms"] > 0
