"""`compress quantize`: what it writes, says and refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.artifacts.fingerprint import sha256_file
from compress.cli.quantizing import QuantizeOptions, output_places, quantize_file
from compress.errors import CompressError, DataError, ModelError, UsageError
from compress.onnx_graph.calibration_cache import read_calibration_cache
from compress.onnx_graph.lint import lint
from compress.onnx_graph.loading import load_onnx
from compress.onnx_graph.scales import ScaleTable
from compress.quantization.settings import QuantizeSettings

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

NET = """
<ir_version: 8, opset_import: ["": OPSET]> net (float[BATCH, 3, 8, 8] photo) => (float[BATCH, 5] scores) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (photo, w0, b0)
    r = Relu (c)
    t = ConvTranspose <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w2)
    p = GlobalAveragePool (t)
    f = Flatten (p)
    scores = Gemm <transB = 1> (f, w1, b1)
}
"""
SHAPES = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (5, 8), "b1": (5,), "w2": (8, 8, 3, 3)}
FILES = ("model.onnx", "model.ort.onnx", "scales.json", "calibration.cache", "quantize.json")


def save_net(path: Path, *, batch: str | int = "n", opset: int = 17) -> Path:
    model = onnx.parser.parse_model(NET.replace("BATCH", str(batch)).replace("OPSET", str(opset)))
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = random.normal(0, 0.4, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = f"/{node.output[0]}/{node.op_type}"
    onnx.save(model, path)
    return path


def photos(count: int = 48) -> np.ndarray:
    return np.random.default_rng(1).random((count, 3, 8, 8), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_net(tmp_path / "float.onnx")
    np.savez(tmp_path / "calib.npz", photo=photos(), labels=np.arange(48) % 5)
    return tmp_path


def options(folder: Path, **changes: object) -> QuantizeOptions:
    given: dict[str, object] = {
        "data": folder / "calib.npz",
        "output": folder / "out",
        "samples": None,
        "value_range": "0,1",
        "cache_version": "10.3.0",
        "max_mib": 100,
        "as_json": True,
    }
    return QuantizeOptions(**{**given, **changes})  # type: ignore[arg-type]


def test_the_whole_command(cli: Cli, folder: Path) -> None:
    done = cli(
        *("quantize", "float.onnx", "--data", "calib.npz"),
        *("-o", "out", "--method", "minmax", "--samples", "40"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(FILES)
    said = done.stdout
    assert said.startswith("float.onnx: 2 of 3 layers in int8 (1 Conv, 1 Gemm)\n")
    assert "calibrated with 40 samples (minmax), 0 scales kept" in said
    assert "float -> int8 on the 40 calibration samples, which are no test set: top-1 " in said
    assert "/t/ConvTranspose  ConvTranspose  TensorRT computes int8 ConvTranspose in float" in said
    assert "note: 40 of 48 samples were used, evenly spaced" in said
    assert "warning rare-opset: Export with opset 20." in said
    assert said.rstrip().endswith("next: compress bench float.onnx out/model.ort.onnx")
    assert "Traceback" not in done.stderr


def test_the_cache_is_for_the_version_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, cache_version="8.6.1"))
    cache = read_calibration_cache((folder / "out" / "calibration.cache").read_text())
    assert cache.version == (8, 6, 1)
    for version in ("ten", "10.3", "11.0.0"):
        with pytest.raises(UsageError, match="TensorRT"):
            quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, cache_version=version))


def test_what_is_written_is_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder))
    document = json.loads(capsys.readouterr().out)
    signed, unsigned = (load_onnx(folder / "out" / name) for name in FILES[:2])
    assert not [finding for finding in lint(signed) if finding.severity == "error"]
    assert not [finding for finding in lint(unsigned, "onnxruntime") if finding.severity == "error"]
    for model in (signed, unsigned):
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["photo", "scores"]
    table = ScaleTable.from_json((folder / "out" / "scales.json").read_text())
    cache = read_calibration_cache((folder / "out" / "calibration.cache").read_text())
    assert cache.scales["photo"] == pytest.approx(table["photo"].scale)
    assert cache.version == (10, 3, 0)
    record = json.loads((folder / "out" / "quantize.json").read_text())
    assert record["model"] == "float.onnx"
    assert {key: value for key, value in document.items() if record.get(key) != value}.keys() == {
        "model",
        "files",
        "next",
    }
    assert document["sha256"] == {
        "model": sha256_file(folder / "float.onnx"),
        "data": sha256_file(folder / "calib.npz"),
    }
    assert document["range"] == "0,1"
    assert document["layers"]["int8"] == 2
    assert [layer["node"] for layer in document["layers"]["float"]] == ["/t/ConvTranspose"]
    assert document["on_calibration_samples"]["n"] == 48
    assert document["on_calibration_samples"]["sqnr_db"] > 20
    assert document["on_calibration_samples"]["top1_before"] is not None
    assert document["files"]["unsigned"] == str(folder / "out" / "model.ort.onnx")
    assert "rare-opset" in {finding["rule"] for finding in document["findings"]["tensorrt"]}


def test_the_same_input_gives_the_same_bytes(folder: Path) -> None:
    for name in ("one", "two"):
        quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, output=folder / name))
    for name in FILES:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_a_named_file_and_layers_in_float(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = QuantizeSettings(method="mse", weights="mse", granularity="per_tensor", float_layers=("/scores/*",))
    quantize_file(folder / "float.onnx", settings, options(folder, output=folder / "small.onnx"))
    document = json.loads(capsys.readouterr().out)
    assert {"small.onnx", "small.ort.onnx", "small.scales.json", "small.calibration.cache"} < {
        path.name for path in folder.iterdir()
    }
    whys = {layer["node"]: layer["why"] for layer in document["layers"]["float"]}
    assert whys["/scores/Gemm"] == "asked for"
    assert document["settings"]["granularity"] == "per_tensor"
    said = {finding["rule"] for found in document["findings"].values() for finding in found}
    assert "float-layer" not in said, "nobody is warned of what they asked for"


@pytest.mark.parametrize("opset", [11, 13])
def test_older_files(folder: Path, capsys: pytest.CaptureFixture[str], opset: int) -> None:
    quantize_file(save_net(folder / "old.onnx", opset=opset), QuantizeSettings(), options(folder))
    document = json.loads(capsys.readouterr().out)
    assert document["notes"][0] == f"opset {opset} was converted to 20"
    assert document["on_calibration_samples"]["sqnr_db"] > 20


def test_a_fixed_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_file(save_net(folder / "fixed.onnx", batch=5), QuantizeSettings(), options(folder))
    document = json.loads(capsys.readouterr().out)
    assert document["samples"] == 45
    assert "static-batch" in {finding["rule"] for finding in document["findings"]["tensorrt"]}
    model = load_onnx(folder / "out" / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5


def test_values_outside_zero_to_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "calib.npz", photo=photos() * 4 - 2)
    with pytest.raises(DataError, match="has values from"):
        quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder))
    quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, value_range="any"))
    document = json.loads(capsys.readouterr().out)
    assert document["on_calibration_samples"]["top1_before"] is None
    assert document["on_calibration_samples"]["agreement"] is not None


def test_constant_samples(folder: Path) -> None:
    np.savez(folder / "calib.npz", photo=np.full((8, 3, 8, 8), 0.5, np.float32))
    assert_refused(folder, DataError, "consist of the one value 0.5")


def assert_refused(folder: Path, kind: type[CompressError], said: str, **chosen: Any) -> None:
    with pytest.raises(kind, match=said) as caught:
        quantize_file(folder / "float.onnx", QuantizeSettings(**chosen), options(folder))
    if kind is not UsageError:
        assert ("float.onnx" if kind is ModelError else "calib.npz") in caught.value.where
        assert caught.value.exit_code == 5
    assert not (folder / "out").exists(), "a refused model leaves nothing behind"


def test_a_layer_that_is_not_there(folder: Path) -> None:
    assert_refused(folder, UsageError, "nearest: /c/Conv", float_layers=("/c/Conf",))


def test_garbage(folder: Path) -> None:
    (folder / "float.onnx").write_bytes(b"garbage" * 99)
    assert_refused(folder, ModelError, "no ONNX model")


def test_what_onnxruntime_refuses(folder: Path) -> None:
    model = onnx.load(folder / "float.onnx")
    model.graph.node[1].domain = "acme"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(model, folder / "float.onnx")
    assert_refused(folder, ModelError, "custom-operator at /r/Relu")


def test_a_model_that_is_quantized_already_with_zero_points(folder: Path) -> None:
    quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, output=folder / "first"))
    (folder / "float.onnx").write_bytes((folder / "first" / "model.ort.onnx").read_bytes())
    assert_refused(folder, ModelError, "unsigned-codes")


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, output=folder / "file"))
    with pytest.raises(UsageError, match="cannot write"):
        quantize_file(folder / "float.onnx", QuantizeSettings(), options(folder, output=folder / "file" / "below"))


@pytest.mark.parametrize("output", ["model.onnx", "."])
def test_the_model_is_not_overwritten(tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError, match="would overwrite"):
        output_places(tmp_path / "model.onnx", tmp_path / output)


def test_where_results_go() -> None:
    places = output_places(Path("in/net.onnx"), None)
    assert [str(place) for place in (places.signed, places.cache)] == [
        "net-int8/model.onnx",
        "net-int8/calibration.cache",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "kl"], 2, "Unknown calibration method 'kl'; expected one of minmax"),
        (["--weights", "kl"], 2, "Unknown method for weights 'kl'"),
        (["--percentile", "99"], 2, "--percentile 99 belongs to --method percentile, not mse"),
        (["--method", "percentile", "--percentile", "20"], 2, "The percentile is 20.0"),
        (["--data", "absent.npz"], 5, "the inputs cannot be read"),
    ],
)
def test_wrong_options(cli: Cli, folder: Path, arguments: list[str], code: int, said: str) -> None:
    done = cli("quantize", "float.onnx", "--data", "calib.npz", *arguments, cwd=folder)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
