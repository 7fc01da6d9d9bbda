"""`compress quantize --budget-pp` and `--sqnr-db`: what stays in float, on which samples it is judged, what is said."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.artifacts.fingerprint import sha256_file
from compress.cli.choosing import ChoiceOptions
from compress.cli.quantizing import QuantizeOptions, quantize_file
from compress.errors import DataError, ModelError, UsageError
from compress.measure import candidates
from compress.quantization.sensitivity import answers
from compress.quantization.settings import QuantizeSettings

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(chain, images, tmp_path: Path) -> Path:
    """A float network whose layer c1 int8 serves badly, samples with its own answers as labels, and others."""
    model = chain(100)
    onnx.save(model, tmp_path / "float.onnx")
    for name, samples, seed in (("calib", 96, 0), ("val", 200, 1)):
        data = images(samples, seed)
        labels = answers(model, lambda data=data: [data]).argmax(axis=1)
        np.savez(tmp_path / f"{name}.npz", image=data, label=labels)
        np.savez(tmp_path / f"{name}_bare.npz", image=data)
    return tmp_path


def options(folder: Path, data: str = "calib.npz", labels: str | None = None, **choice: Any) -> QuantizeOptions:
    return QuantizeOptions(
        folder / data, folder / "out", None, "0,1", "10.3.0", 100, True, labels, ChoiceOptions(**choice)
    )


def quantize(folder: Path, capsys: pytest.CaptureFixture[str], *given: Any, **choice: Any) -> dict[str, Any]:
    quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, *given, **choice))
    document = json.loads(capsys.readouterr().out)
    record = json.loads((folder / "out" / "quantize.json").read_text())
    assert record["precision"] == document["precision"]
    return document


def test_the_whole_command(cli: Cli, folder: Path) -> None:
    done = cli("quantize", "float.onnx", "--data", "calib.npz", "--budget-pp", "15", "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "goal: at most 15 pp of top-1 lost; kept small: multiply-accumulates in float" in said
    assert "82.1 % of the multiply-accumulates are in int8" in said
    assert "calibrated, chosen and judged on the same 96 samples of calib.npz: others may lose more" in said
    (row,) = [line for line in said.splitlines() if line.startswith("c1 ")]
    assert row.split()[1] == "Conv"
    assert "were it in int8: " in row
    assert row.endswith("pp of top-1 are lost")
    assert "float-layer" not in said, "nobody is warned of what was chosen"


def test_a_budget_is_kept_by_the_written_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = quantize(folder, capsys, budget_pp=15)
    precision = document["precision"]
    assert precision["reached"]["loss_pp"] <= 15 < precision["all_int8"]["loss_pp"]
    assert precision["judged_on"] == {"file": "calib.npz", "samples": 96, "calibrated_on_the_same": True}
    change = document["on_calibration_samples"]
    assert 100 * (change["top1_before"] - change["top1_after"]) <= 15
    assert [layer["node"] for layer in document["layers"]["float"]] == ["c1"]
    assert {layer["name"]: layer["decided"] for layer in precision["layers"]}["c1"] == "float"
    assert "candidates" not in precision


def test_other_samples_to_judge_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = quantize(folder, capsys, "calib_bare.npz", budget_pp=15, judge=folder / "val.npz")
    assert document["precision"]["judged_on"] == {"file": "val.npz", "samples": 200, "calibrated_on_the_same": False}
    assert document["precision"]["samples"] == 200
    assert document["samples"] == 96
    assert document["sha256"]["judge"] == sha256_file(folder / "val.npz")
    assert "judge" not in quantize(folder, capsys, budget_pp=15)["sha256"]


def test_the_calibration_file_named_again_is_the_same_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = quantize(folder, capsys, budget_pp=15, judge=folder / "." / "calib.npz")
    assert document["precision"]["judged_on"]["calibrated_on_the_same"]


def test_decibels_need_no_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = quantize(folder, capsys, "calib_bare.npz", sqnr_db=20)
    assert document["precision"]["mode"] == "mixed"
    assert document["precision"]["reached"]["sqnr_db"] >= 20
    assert document["precision"]["reached"]["loss_pp"] is None
    assert [layer["node"] for layer in document["layers"]["float"]] == ["c1"]


def test_labels_by_another_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(folder / "calib.npz") as arrays:
        np.savez(folder / "named.npz", image=arrays["image"], truth=arrays["label"])
    assert quantize(folder, capsys, "named.npz", "truth", budget_pp=15)["precision"]["float_top1"] == 1
    with pytest.raises(UsageError, match=r"--labels y is not in .*named.npz; arrays that are no input: truth"):
        quantize(folder, capsys, "named.npz", "y", budget_pp=15)
    with pytest.raises(UsageError, match=r"--labels image is an input of the model"):
        quantize(folder, capsys, "named.npz", "image", budget_pp=15)


def test_a_budget_without_labels(cli: Cli, folder: Path) -> None:
    done = cli("quantize", "float.onnx", "--data", "calib_bare.npz", "--budget-pp", "15", "-o", "out", cwd=folder)
    assert done.returncode == 2
    assert "--budget-pp wants the class of each sample, and calib_bare.npz has none" in done.stderr
    assert "numpy.savez('calib_bare.npz', image=..., label=...)" in done.stderr
    assert not (folder / "out").exists()
    (command,) = [line for line in done.stderr.splitlines() if "without labels: " in line]
    again = cli(*shlex.split(command.split("without labels: compress ")[1]), "-o", "out", cwd=folder)
    assert again.returncode == 0, again.stderr


def test_labels_are_wanted_where_it_is_judged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"val_bare.npz has none"):
        quantize(folder, capsys, budget_pp=15, judge=folder / "val_bare.npz")


@pytest.mark.parametrize(
    ("choice", "float_layers", "said"),
    [
        ({"budget_pp": 1, "sqnr_db": 20}, (), "--budget-pp and --sqnr-db are different ways"),
        ({"budget_pp": 0}, ("c1",), "--budget-pp and --float-layer are different ways"),
        ({"minimize": "latency"}, (), "--minimize belongs to --budget-pp or --sqnr-db"),
        ({"judge": Path("val.npz")}, ("c1",), "--judge belongs to --budget-pp or --sqnr-db"),
        ({"budget_pp": 1, "minimize": "energy"}, (), "--minimize energy: expected work or latency"),
    ],
)
def test_options_that_contradict_each_other(choice: dict[str, Any], float_layers: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        ChoiceOptions(**choice).goal(float_layers)
    assert caught.value.exit_code == 2
    assert ChoiceOptions().goal(float_layers) is None


@pytest.mark.parametrize("option", ["--budget-pp=-1", "--budget-pp=101", "--sqnr-db=0"])
def test_goals_out_of_range(cli: Cli, folder: Path, option: str) -> None:
    done = cli("quantize", "float.onnx", "--data", "calib.npz", option, cwd=folder)
    assert done.returncode == 2
    assert f"Invalid value for '{option.split('=')[0]}'" in done.stderr


def test_a_goal_that_only_float_keeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="Only with no layer in int8") as caught:
        quantize(folder, capsys, sqnr_db=149)
    assert "float.onnx" in caught.value.where
    assert not (folder / "out").exists()


def test_wrong_labels_are_blamed_on_the_file_that_has_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(folder / "val.npz") as arrays:
        np.savez(folder / "val.npz", image=arrays["image"], label=arrays["label"] + 9)
    with pytest.raises(DataError, match="Labels are from") as caught:
        quantize(folder, capsys, budget_pp=15, judge=folder / "val.npz")
    assert "val.npz" in caught.value.where
    assert "calib.npz" not in caught.value.where


def test_answers_that_are_no_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(folder / "float.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5, 2]), "square"))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["logits", "square"], ["map"], name="map"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("map", onnx.TensorProto.FLOAT, ["batch", 5, 2]))
    onnx.save(model, folder / "float.onnx")
    with pytest.raises(DataError, match=r"output map has shape .*, expected \(n, classes\)"):
        quantize(folder, capsys, budget_pp=15)
    assert quantize(folder, capsys, "calib_bare.npz", sqnr_db=20)["layers"]["float"][0]["node"] == "c1"


def test_a_fixed_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(folder / "float.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, folder / "float.onnx")
    document = quantize(folder, capsys, budget_pp=15)
    assert document["precision"]["judged_on"]["samples"] == 91, "13 whole batches of 7"
    assert document["layers"]["float"][0]["node"] == "c1"


@pytest.mark.slow
def test_the_least_latency(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    timed = candidates.time_together
    monkeypatch.setattr(
        candidates, "time_together", lambda graphs, feed, threads, seconds=0: timed(graphs, feed, seconds=0.1)
    )
    quantize_file(
        folder / "float.onnx",
        QuantizeSettings(),
        QuantizeOptions(
            *(folder / "calib.npz", folder / "out", None, "0,1", "10.3.0", 100, False),
            choice=ChoiceOptions(budget_pp=15, minimize="latency"),
        ),
    )
    said = capsys.readouterr().out
    assert "kept small: latency in ONNX Runtime over that of the all-int8 file" in said
    assert "of the all-int8 file's; with the least work in float " in said
    precision = json.loads((folder / "out" / "quantize.json").read_text())["precision"]
    assert precision["latency"]["chosen"]["ratio"] > 0
    assert precision["latency"]["least_work_layers"] == ["c1"]
    assert precision["candidates"], "what stands beside c1 was tried"
    assert precision["reached"]["loss_pp"] <= 15
