"""`compress bench`: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.cli.benching import parse_budget
from compress.engines.availability import why_not
from compress.errors import UsageError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path, matmul_onnx: Callable[..., Path]) -> Path:
    net: dict[str, Any] = {"features": 128, "hidden": [128], "classes": 128}
    matmul_onnx(tmp_path / "small.onnx", **net)
    matmul_onnx(tmp_path / "large.onnx", **{**net, "hidden": [128] * 40})
    matmul_onnx(tmp_path / "ten.onnx", **{**net, "classes": 10})
    matmul_onnx(tmp_path / "eight.onnx", **net, batch=8)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "alone.plan").write_bytes(b"")
    np.savez(tmp_path / "other.npz", x=np.ones((1, 128), np.float32))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["small.onnx", "--batch", "0"], 2, "--batch 0: expected whole numbers from 1 to 999999, e.g. 1,32"),
        (["small.onnx", "--batch", "9" * 20], 2, "expected whole numbers from 1 to 999999"),
        (["small.onnx", "--budget", "9" * 400 + "s"], 2, "at most a day"),
        (["small.onnx", "--threads", "100000"], 2, "threads is 100000, expected 1 to"),
        (["small.onnx", "--batch", "1,x"], 2, "--batch 1,x: expected whole numbers"),
        (["small.onnx", "--batch", ""], 2, "--batch : expected whole numbers"),
        (["small.onnx", "--budget", "30"], 2, "--budget 30: expected a time such as 30s, 2m or 10m"),
        (["small.onnx", "--budget", "0s"], 2, "--budget 0s: expected a time"),
        (["small.onnx", "--threads", "0"], 2, "threads is 0, expected 1 to"),
        (["small.onnx", "--gate", "latency_ratio=1.05"], 2, "--gate latency_ratio needs two files"),
        (["small.onnx", "ten.onnx", "--gate", "latency=1"], 2, "bench has no gate 'latency'; it judges latency_r"),
        (["small.onnx", "ten.onnx", "--gate", "top1_drop_pp=1"], 2, "'top1_drop_pp'; it judges latency_ratio alone"),
        (["small.onnx", "ten.onnx", "--gate", "latency_ratio=fast"], 2, "expected a ratio above 0"),
        (["small.onnx", "ten.onnx", "--gate", "latency_ratio"], 2, "expected a ratio above 0"),
        (["model.pt"], 2, "cannot tell what model.pt is"),
        ([], 2, "Missing argument 'FILE...'"),
        (["eight.onnx", "--batch", "4"], 2, "eight.onnx takes batches of 8 only, got a batch of 4"),
        (["broken.onnx"], 5, "refuses the model"),
        (["absent.onnx"], 5, "There is no ONNX file at absent.onnx"),
        (["small.onnx", "--input", "other.npz"], 5, "the inputs lack image; the file has x"),
        (["small.onnx", "--input", "absent.npz"], 5, "the inputs cannot be read"),
        (["small.onnx", "ten.onnx"], 4, "ten.onnx gives outputs of shape (1, 10), and small.onnx of shape (1, 128)"),
        (["alone.plan"], 6, "The engine has no sidecar: alone.json is missing"),
    ],
)
def test_wrong_input(cli: Cli, folder: Path, arguments: list[str], code: int, said: str) -> None:
    done = cli("bench", *arguments, "--json", cwd=folder)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("2m", 120), ("1.5m", 90), ("0.5s", 0.5)])
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1s", "1h", "1 m", "infs"])
def test_a_budget_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time"):
        parse_budget(text)


@pytest.mark.slow
def test_a_slower_file_is_found_and_fails_its_gate(cli: Cli, folder: Path) -> None:
    arguments = ("small.onnx", "large.onnx", "--batch", "1", "--threads", "1", "--budget", "6s")
    done = cli("bench", *arguments, "--json", "--gate", "latency_ratio=1.05", cwd=folder)

    assert done.returncode == 3, done.stderr
    assert "gate latency_ratio fail: large.onnx at batch 1" in done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"environment", "variants", "pairs"}
    (pair,) = document["pairs"]
    assert set(pair) == {"base", "new", "batch", "ratio", "low", "high", "verdict"}
    assert (pair["base"], pair["new"], pair["batch"], pair["verdict"]) == ("small.onnx", "large.onnx", 1, "slower")
    assert 1 < pair["low"] <= pair["ratio"] <= pair["high"]
    small, large = document["variants"]
    assert (small["name"], small["status"], small["kind"]) == ("small.onnx", "measured", "onnx_model")
    assert small["single_stream"]["p90_ms"] < large["single_stream"]["p90_ms"]
    assert small["offline"]["samples_per_s"] > large["offline"]["samples_per_s"]
    assert small["cold_start"]["processes"] == 5
    assert small["latency"][0]["batch"] == 1
    environment = document["environment"]
    assert environment["session_threads"] == 1
    assert environment["spinning"] is False
    assert {"harness", "governor", "load_average", "cpu", "libraries", "budget", "seed"} <= set(environment)


@pytest.mark.slow
def test_one_file_is_measured_and_compared_with_nothing(cli: Cli, folder: Path) -> None:
    done = cli("bench", "eight.onnx", "--budget", "3s", cwd=folder)

    assert done.returncode == 0, done.stderr
    assert "one file: there is nothing to compare it with" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("eight.onnx"))
    assert row[:4] == ["eight.onnx", "onnxruntime", "cpu", "8"]
    assert "idle threads sleep" in done.stdout


@pytest.mark.slow
def test_files_of_different_work_are_measured_for_information(cli: Cli, folder: Path) -> None:
    done = cli("bench", "small.onnx", "ten.onnx", "--batch", "2", "--budget", "3s", "--informational", cwd=folder)

    assert done.returncode == 0, done.stderr
    assert "ten.onnx" in done.stdout
    assert done.stderr == ""


def messages(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command with --json said on standard error."""
    return [json.loads(line)["message"] for line in done.stderr.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(why_not("tensorrt_rtx") is None, reason="engines run here")
def test_a_pair_that_cannot_be_measured_is_named_by_its_gate(
    cli: Cli, folder: Path, unreadable_engine: Callable[..., Path]
) -> None:
    unreadable_engine(folder / "net.plan", features=128, classes=128)
    options = ("--batch", "1", "--threads", "1", "--budget", "1s", "--gate", "latency_ratio=9", "--json")
    reason = why_not("tensorrt_rtx")

    done = cli("bench", "small.onnx", "small.onnx", "net.plan", *options, cwd=folder)
    not_run, judged = messages(done)
    assert not_run == f"gate latency_ratio not run: net.plan ({reason})"
    assert judged.startswith("gate latency_ratio pass: small.onnx (2) at batch 1: ")
    assert [pair["new"] for pair in json.loads(done.stdout)["pairs"]] == ["small.onnx (2)"]

    done = cli("bench", "net.plan", "small.onnx", "large.onnx", *options, cwd=folder)
    assert done.returncode == 4, "nothing was compared"
    assert messages(done) == [
        f"gate latency_ratio not run: {name} (net.plan was not run: {reason})" for name in ("small.onnx", "large.onnx")
    ]

    done = cli("bench", "net.plan", "net.plan", *options, cwd=folder)
    assert done.returncode == 7
    assert messages(done) == [f"gate latency_ratio not run: net.plan (2) ({reason})", "no file can run here"]
