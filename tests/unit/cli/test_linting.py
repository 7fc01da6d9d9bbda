"""`compress lint`: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.cli.linting import counts_text, finding_lines, lint_file
from compress.errors import ModelError
from compress.onnx_graph.findings import Finding

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

NET = """
<ir_version: 10, opset_import: ["": 20]> net (float[n, 3, 8, 8] image) => (float[n, 3, 8, 8] logits) {
    q = QuantizeLinear (image, s, z)
    d = DequantizeLinear (q, s, z)
    logits = Relu (d)
}
"""


def save(path: Path, zero: np.ndarray | np.generic, text: str = NET) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(np.float32(0.1)), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), "z"))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.save(model, path)
    return path


def test_a_clean_file(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.onnx", np.int8(0))
    done = cli("lint", "a.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.onnx for tensorrt, opset 20: clean\n", "")


def test_errors_end_with_the_code_of_a_bad_model(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.onnx", np.uint8(128))
    done = cli("lint", "a.onnx", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout.splitlines() == [
        "a.onnx for tensorrt, opset 20: 4 errors",
        "error nonzero-zero-point (2): Calibrate symmetrically: int8, zero point 0.",
        "  q: zero point is 128, expected 0.",
        "  d: zero point is 128, expected 0.",
        "error unsigned-codes (2): Build from the signed file (model.onnx).",
        "  q: codes are uint8, expected int8; 128 to 255 would saturate silently.",
        "  d: codes are uint8, expected int8; 128 to 255 would saturate silently.",
    ]


def test_warnings_do_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.onnx", np.int8(0))
    assert lint_file(path, "onnxruntime", max_mib=100, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert {key: document[key] for key in ("target", "opset", "errors", "warnings")} == {
        "target": "onnxruntime",
        "opset": 20,
        "errors": 0,
        "warnings": 1,
    }
    (finding,) = document["findings"]
    assert set(finding) == {"rule", "severity", "node", "message", "cure"}
    assert (finding["rule"], finding["node"]) == ("signed-activation", "q")


def test_a_float_file_is_said_to_be_float(cli: Cli, tmp_path: Path) -> None:
    net = '<ir_version: 10, opset_import: ["": 20]> net (float[n, 8] x, float[m, 8] w) => (float[n, m] y)'
    onnx.save(onnx.parser.parse_model(f"{net} {{ y = Gemm <transB = 1> (x, w) }}"), tmp_path / "a.onnx")
    for target in ("tensorrt", "onnxruntime"):
        done = cli("lint", "a.onnx", "--target", target, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        head, rule, finding = done.stdout.splitlines()
        assert head == f"a.onnx for {target}, opset 20: 1 warning"
        assert rule.startswith("warning not-quantized: Nothing, where float is wanted; ")
        assert finding == "  graph: nothing is quantized: all layers (1 Gemm) run in float."


@pytest.mark.parametrize("opset", [7, 13, 16, 25])
def test_any_opset(tmp_path: Path, capsys: pytest.CaptureFixture[str], opset: int) -> None:
    text = NET.replace('"": 20', f'"": {opset}')
    body = "<ir_version: 10," + text.split("<ir_version: 10,")[1].split("{")[0] + "{ logits = Relu (image) }"
    model = onnx.parser.parse_model(body)
    onnx.save(model, tmp_path / "a.onnx")
    assert lint_file(tmp_path / "a.onnx", "tensorrt", max_mib=100, as_json=False) == 0
    assert lint_file(tmp_path / "a.onnx", "onnxruntime", max_mib=100, as_json=False) == 0
    assert f"opset {opset}" in capsys.readouterr().out


def test_an_operator_that_nobody_knows_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(save(tmp_path / "a.onnx", np.int8(0)))
    model.graph.node[2].op_type = "Flash"
    onnx.save(model, tmp_path / "a.onnx")
    assert lint_file(tmp_path / "a.onnx", "tensorrt", max_mib=100, as_json=True) == 5
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["rule"] for finding in found] == ["invalid-graph", "custom-operator"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no ONNX file at this path"),
        (b"", "has 0 bytes"),
        (b"\xff\xd8 garbage" * 100, "no ONNX model"),
        (b"\x08\x0a", "a graph of 0 nodes"),
    ],
)
def test_what_is_no_onnx(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        lint_file(path, "tensorrt", max_mib=100, as_json=True)
    assert caught.value.exit_code == 5
    assert str(path) in caught.value.where


def test_a_truncated_file_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", np.int8(0))
    path.write_bytes(path.read_bytes()[:-20])
    done = cli("lint", "a.onnx", "--json", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "where: a.onnx" in done.stderr


def test_a_limit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", np.int8(0))
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**18, np.float32), "big"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="expected 1 to 1048576"):
        lint_file(path, "tensorrt", max_mib=1, as_json=False)
    assert lint_file(path, "tensorrt", max_mib=2, as_json=False) == 0


@pytest.mark.parametrize(("target", "limit"), [("openvino", "10"), ("tensorrt", "0"), ("tensorrt", "4096")])
def test_options_that_make_no_sense(cli: Cli, tmp_path: Path, target: str, limit: str) -> None:
    done = cli("lint", "a.onnx", "--target", target, "--max-mib", limit, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""


def test_many_findings_of_one_rule_are_cut() -> None:
    found = [Finding("r", "warning", f"n{i}", "is bad.", "Mend it.") for i in range(7)]
    lines = list(finding_lines(found))
    assert lines[0] == "warning r (7): Mend it."
    assert lines[5:] == ["  n4: is bad.", "  and 2 more; --json lists all"]
    assert list(finding_lines(found[:1])) == ["warning r: Mend it.", "  n0: is bad."]


@pytest.mark.parametrize(
    ("counts", "words"),
    [((0, 0), "clean"), ((1, 0), "1 error"), ((2, 1), "2 errors, 1 warning"), ((0, 3), "3 warnings")],
)
def test_counts_in_words(counts: tuple[int, int], words: str) -> None:
    assert counts_text(*counts) == words
