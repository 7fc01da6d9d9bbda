"""ONNX files that cannot be used, through the command line: each ends with its exit code, says why, writes nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MODEL = Path("model") / "net.onnx"
COMMANDS = {
    "quantize": ("quantize", MODEL, "--data", "samples.npz", "-o", "int8", "--json"),
    "lint": ("lint", MODEL, "--json"),
    "bench": ("bench", MODEL, "--batch", "1", "--budget", "1s", "--json"),
}
READERS = ("quantize", "lint")  # of the file itself; `bench` leaves that to ONNX Runtime
FIRST_BAD = 40  # the first of the samples on which a Relu is zero


def network(*middle: onnx.NodeProto) -> onnx.ModelProto:
    """x -> MatMul, Relu, `middle` from b to c, MatMul -> scores; positive weights, so that b is 0 only where x is."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        *(middle or [helper.make_node("Identity", ["b"], ["c"])]),
        helper.make_node("MatMul", ["c", "w1"], ["scores"]),
    ]
    for node in nodes:
        node.name = node.output[0]
    random = np.random.default_rng(0)
    arrays = {"w0": random.random((4, 8), np.float32) + 0.1, "w1": random.random((8, 3), np.float32) + 0.1}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def folder(tmp_path):
    """The model of the commands above and 70 valid samples."""
    (tmp_path / MODEL).parent.mkdir()
    onnx.save(network(), tmp_path / MODEL)
    samples = np.random.default_rng(1).random((70, 4), np.float32) + np.float32(0.1)
    samples[FIRST_BAD:] = 0
    np.savez(tmp_path / "samples.npz", x=np.minimum(samples, 1))
    return tmp_path


@pytest.fixture
def refusal(cli, folder):
    """Runs a command that must be refused, with nothing on standard output and no new file; returns what it says."""

    def run(command, *arguments):
        before = sorted(folder.rglob("*"))
        done = cli(*COMMANDS[command], *arguments, cwd=folder)
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(folder.rglob("*")) == before, "something was left behind"
        return done.stderr

    return run


# --- activations that valid samples turn into NaN or infinity


@pytest.mark.parametrize(
    ("operator", "inputs"), [("Log", ["b"]), ("Reciprocal", ["b"]), ("Div", ["b", "b"])], ids=["-inf", "inf", "nan"]
)
def test_an_activation_that_is_not_finite(folder, refusal, operator, inputs):
    onnx.save(network(helper.make_node(operator, inputs, ["c"])), folder / MODEL)
    assert re.search(
        r"Activation c is NaN or infinite.*where: model/net\.onnx, calibration samples 32 to 47\n",
        refusal("quantize"),
        re.DOTALL,
    )


def test_an_output_that_is_not_finite(folder, refusal):
    """Behind the last layer nothing is calibrated; the comparison of both files finds it."""
    model = network()
    model.graph.node[-1].output[0] = "d"
    model.graph.node.append(helper.make_node("Log", ["d"], ["scores"], name="last"))
    onnx.save(model, folder / MODEL)
    said = r"Output scores of the float model is NaN or infinite.*where: model/net\.onnx, calibration samples 0 to 63\n"
    assert re.search(said, refusal("quantize"), re.DOTALL)


def test_an_integer_that_is_divided_by_zero(folder, refusal):
    to_integer = helper.make_node("Cast", ["b"], ["i"], to=TensorProto.INT32)
    divided = helper.make_node("Div", ["i", "i"], ["j"])
    onnx.save(
        network(to_integer, divided, helper.make_node("Cast", ["j"], ["c"], to=TensorProto.FLOAT)), folder / MODEL
    )
    assert re.search(
        r"cannot run the float graph: .*division by zero.*where: model/net\.onnx\n", refusal("quantize"), re.DOTALL
    )


# --- external data


EXTERNAL = {  # where the weights are said to be, and what `quantize` and `lint` say about it
    "outside": ("../weights.bin", "is outside the folder"),
    "absolute": ("{folder}/weights.bin", "is outside the folder"),
    "link inside": ("link.bin", "is a symbolic link"),
    "link outside": ("link.bin", "is outside the folder"),
    "missing": ("gone.bin", "is missing"),
}


@pytest.fixture
def external(request, folder):
    """Weights in other places than beside the model, each readable but the missing one; returns what is said of it."""
    location, said = EXTERNAL[request.param]
    model = onnx.load(folder / MODEL)
    onnx.save(model, folder / MODEL, save_as_external_data=True, location="weights.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        entry = next(entry for entry in tensor.external_data if entry.key == "location")
        entry.value = location.format(folder=folder)
    (folder / MODEL).write_bytes(model.SerializeToString())
    if request.param.startswith("link"):
        (folder / "model" / "link.bin").symlink_to("weights.bin" if said == "is a symbolic link" else "../weights.bin")
    if said == "is outside the folder":
        os.rename(folder / "model" / "weights.bin", folder / "weights.bin")
    return rf"External data '{location.format(folder=folder)}' of tensor w0 {said}"


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("external", EXTERNAL, indirect=True)
def test_external_data_that_is_no_plain_file_beside_the_model(refusal, external, command):
    said = rf"{external}.*where: model/net\.onnx\n.*weights inside"
    assert re.search(said, refusal(command), re.DOTALL)


# ONNX Runtime follows a link that stays in the folder, and `bench` writes nothing that could carry its target away.
@pytest.mark.parametrize("external", [case for case in EXTERNAL if case != "link inside"], indirect=True)
def test_external_data_that_onnxruntime_refuses(refusal, external):
    assert re.search(
        r"refuses the model: .*External data path.*where: net\.onnx\n.*`compress lint`", refusal("bench"), re.DOTALL
    )


# --- bytes


@pytest.fixture(params=["truncated", "garbage", "empty"])
def damaged(request, folder):
    """Spoils the model; returns what `quantize` and `lint` say."""
    whole = (folder / MODEL).read_bytes()
    content, said = {
        "truncated": (whole[: len(whole) // 2], "is no ONNX model, or it is cut off"),
        "garbage": (b"garbage" * 50, "is no ONNX model, or it is cut off"),
        "empty": (b"", "has 0 bytes; expected 1 to"),
    }[request.param]
    (folder / MODEL).write_bytes(content)
    return said


@pytest.mark.parametrize("command", READERS)
def test_a_damaged_file(refusal, damaged, command):
    said = rf"{damaged}.*where: model/net\.onnx\n"
    assert re.search(said, refusal(command), re.DOTALL)


def test_a_damaged_file_that_onnxruntime_refuses(refusal, damaged):
    said = r"refuses the model: .*where: net\.onnx\n.*`compress lint`"
    assert re.search(said, refusal("bench"), re.DOTALL)


@pytest.mark.parametrize("command", READERS)
def test_a_file_above_the_limit(folder, refusal, command):
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**18, np.float32), "large"))
    onnx.save(model, folder / MODEL)
    size = (folder / MODEL).stat().st_size
    said = rf"has {size} bytes; expected 1 to 1048576\.\n.*where: model/net\.onnx\n"
    assert re.search(said, refusal(command, "--max-mib", "1"), re.DOTALL)


# --- operators


@pytest.fixture
def custom(folder):
    """A model with an operator of a domain that nobody knows."""
    model = network(helper.make_node("Swish", ["b"], ["c"], domain="acme"))
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, folder / MODEL)


def test_a_custom_operator(custom, refusal):
    assert re.search(
        r"custom-operator at c: acme::Swish is a custom operator\.\n.*where: model/net\.onnx\n",
        refusal("quantize"),
        re.DOTALL,
    )
    said = r"refuses the model: .*acme.*Swish.*where: net\.onnx\n"
    assert re.search(said, refusal("bench"), re.DOTALL)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_custom_operator_is_a_finding(custom, cli, folder, target):
    done = cli("lint", MODEL, "--target", target, cwd=folder)
    assert (done.returncode, done.stderr) == (5, "")
    assert "error custom-operator: Replace the layers behind them" in done.stdout
    assert "  c: acme::Swish is a custom operator." in done.stdout
