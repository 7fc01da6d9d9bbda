"""The same recipe in two clones gives the same artifacts, and a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.artifacts.manifest import Artifact
from compress.artifacts.store import Store
from compress.engines.tensorrt_builder import build_engine


def clone(root: Path, folder: Path) -> Path:
    """Copy what a checkout needs to run a recipe; returns the folder."""
    for name in ("compress", "pipelines"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", folder)
    return folder


def start(folder: Path, options: list[str]) -> subprocess.Popen[str]:
    """Start `compress run pipelines/digits.yaml` with the code of the clone."""
    command = [sys.executable, "-m", "compress", "run", "pipelines/digits.yaml", *options, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def digests(folder: Path) -> dict[str, str]:
    """Content digest of every artifact but the measured ones, by key."""
    found = Store(folder / "artifacts").list()
    assert all(isinstance(one, Artifact) for one in found), "nothing is damaged"
    manifests = [one.manifest for one in found if isinstance(one, Artifact)]
    return {manifest.key: manifest.digest for manifest in manifests if manifest.stage != "benchmark"}


@pytest.mark.slow
def test_two_clones_at_different_paths_make_the_same_artifacts(root, shrunk, tmp_path, monkeypatch):
    folders = [clone(root, tmp_path / "one"), clone(root, tmp_path / "elsewhere" / "two")]

    for folder in folders:
        process = start(folder, shrunk("digits.yaml"))
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, 3, 4), errors

    first, second = (digests(folder) for folder in folders)
    assert len(first) == 8
    assert first == second

    # The engine again, where only paths and settings differ: TensorRT-RTX orders its work by memory address.
    (model,) = folders[0].glob("artifacts/calibrate/*/model.onnx")
    (plan,) = folders[0].glob("artifacts/engine/*/model.plan")
    for depth in range(1, 7):
        folder = tmp_path.joinpath(*["deeper" * depth] * depth)
        folder.mkdir(parents=True)
        monkeypatch.setenv("A_SETTING", "of some length" * depth**3)
        build_engine(model, folder / "model.plan")
        assert (folder / "model.plan").read_bytes() == plan.read_bytes()


@pytest.mark.slow
def test_a_killed_run_leaves_whole_artifacts_and_goes_on(root, shrunk, tmp_path):
    folder = clone(root, tmp_path / "clone")
    killed = start(folder, shrunk("digits.yaml"))
    manifest = folder / "artifacts" / "train"
    deadline = time.monotonic() + 120
    while not list(manifest.glob("*/manifest.json")):  # the first step is there, the second is at work
        assert time.monotonic() < deadline, "no step ended in two minutes"
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = digests(folder)

    process = start(folder, shrunk("digits.yaml"))
    output, errors = process.communicate(timeout=300)

    assert process.returncode in (0, 3, 4), errors
    document = json.loads(output)
    assert document["steps"][0]["status"] == "hit"
    assert before.items() <= digests(folder).items()
