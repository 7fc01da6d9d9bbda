from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compress import errors
from compress.engines.availability import check_library, obstacle
from compress.engines.build_child import _write
from compress.engines.build_request import BuildRequest
from compress.engines.sidecar import read_sidecar, sidecar_path
from compress.engines.tensorrt_builder import build_engine, run_child
from compress.errors import ModelError, TryAgainError, UnavailableError, UsageError

pytestmark = pytest.mark.skipif(
    not check_library("tensorrt_rtx").available, reason="tensorrt_rtx is not installed (Linux x86-64 only)"
)


@pytest.fixture
def request_in(tmp_path):
    return BuildRequest(
        onnx_path=tmp_path / "model.onnx",
        plan_path=tmp_path / "plan",
        answer_path=tmp_path / "answer.json",
        log_path=tmp_path / "log.jsonl",
        progress_path=tmp_path / "progress",
        cache_path=tmp_path / "timing_cache",
        backend="tensorrt_rtx",
        batches=((1, 1, 1),),
        input_name="image",
    )


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# --- what an engine proves


def test_signed_qdq_gives_int8_everywhere(int8_engine, int8_of):
    document = json.loads(sidecar_path(int8_engine).read_text())
    assert int8_of(document) == (3, 3, 1, 1)
    assert document["operand_types"]["float_nodes"] == document["operand_types"]["unseen_nodes"] == []
    assert document["operand_types"]["operations"][0]["nodes"] == ["c1"]


def test_the_float_graph_gives_none(build, net, int8_of):
    document = build(net())
    assert int8_of(document) == (0, 3, 0, 1)
    assert document["operand_types"]["float_nodes"] == ["c1", "c2", "c3", "head"]


@pytest.mark.parametrize(
    ("removed", "expected", "floats"),
    [("c2_relu", (2, 3, 1, 1), ["c3"]), ("flat", (3, 3, 0, 1), ["head"]), ("c1_relu", (2, 3, 1, 1), ["c2"])],
)
def test_one_missing_pair_costs_exactly_one(build, net, all_activations, removed, expected, floats, int8_of):
    document = build(net(quantized=tuple(name for name in all_activations if name != removed)))
    assert int8_of(document) == expected
    assert document["operand_types"]["float_nodes"] == floats


def test_float_weights_cost_all(build, net, all_activations, int8_of):
    assert int8_of(build(net(quantized=all_activations, weights_int8=False))) == (0, 3, 0, 1)


def test_graphs_of_another_quantizer_build_too(build, net, tmp_path, int8_of):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.batches = iter([{"image": random.random((8, 3, 8, 8), np.float32)} for _ in range(2)])

        def get_next(self):
            return next(self.batches, None)

    onnx.save(net(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "Add", "GlobalAveragePool"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
        },
    )
    assert int8_of(build(onnx.load(tmp_path / "int8.onnx"))) == (3, 3, 1, 1)


# --- the sidecar


def test_the_sidecar_says_what_was_built(int8_engine):
    sidecar = read_sidecar(sidecar_path(int8_engine))
    assert sidecar.backend == "tensorrt_rtx"
    assert sidecar.backend_version == check_library("tensorrt_rtx").version
    assert sidecar.portable
    assert sidecar.plan_bytes == int8_engine.stat().st_size
    assert [profile.model_dump() for profile in sidecar.profiles] == [
        {"input": "image", "min": (1, 3, 8, 8), "opt": (8, 3, 8, 8), "max": (64, 3, 8, 8), "index": 0}
    ]
    assert [(tensor.name, tensor.mode, tensor.dtype, tensor.shape) for tensor in sidecar.io] == [
        ("image", "input", "float32", ("batch", 3, 8, 8)),
        ("logits", "output", "float32", ("batch", 10)),
    ]
    assert sidecar.layers > 10
    assert sidecar.messages == ()
    assert sidecar.precision == "int8"
    assert sidecar.capabilities == (
        "compute_capabilities",
        "engine_validity",
        "progress",
        "runtime_cache",
        "version_compatible",
    )
    assert sidecar.timing_cache_sha256 is None


def test_another_folder_gives_the_same_bytes(int8_engine, tmp_path):
    elsewhere = tmp_path / "another" / "much longer folder name"
    elsewhere.mkdir(parents=True)
    (elsewhere / "renamed.onnx").write_bytes((int8_engine.parent / "model.onnx").read_bytes())
    build_engine(elsewhere / "renamed.onnx", elsewhere / "renamed.plan")
    assert (elsewhere / "renamed.plan").read_bytes() == int8_engine.read_bytes()
    assert (elsewhere / "renamed.json").read_bytes() == sidecar_path(int8_engine).read_bytes()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["renamed.json", "renamed.onnx", "renamed.plan"]
    assert str(tmp_path).encode() not in (elsewhere / "renamed.json").read_bytes()


def test_chosen_compute_capabilities_are_recorded(build, net):
    document = build(net(), compute_capabilities=("8.6", "8.9"))
    assert (document["compute_capabilities"], document["portable"]) == (["8.6", "8.9"], False)


def test_unknown_compute_capability(build, net):
    with pytest.raises(UsageError, match=r"Unknown compute capability 1\.0: tensorrt_rtx knows 7\.5"):
        build(net(), compute_capabilities=("1.0",))


def test_a_fixed_batch_needs_no_profile(build, net):
    document = build(net(batch=4), batch=(4, 4, 4))
    assert document["profiles"] == []
    assert document["io"][0]["shape"] == [4, 3, 8, 8]


def test_an_enormous_workspace_is_lowered_and_said(build, net):
    document = build(net(), workspace_bytes=2**63)
    assert any("workspace limit lowered" in message for message in document["messages"])


def test_a_module_of_the_user_does_not_shadow_ours(build, net, tmp_path, monkeypatch):
    (tmp_path / "onnx.py").write_text("raise SystemExit('the wrong onnx')")
    monkeypatch.chdir(tmp_path)
    assert build(net())["backend"] == "tensorrt_rtx"


# --- what must fail


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((9, 8, 64), "batch min above opt: got min 9, opt 8, max 64; expected 1 <= min <= opt <= max"),
        ((1, 65, 64), "batch opt above max"),
        ((0, 8, 64), "batch min below 1"),
    ],
)
def test_impossible_batches(build, net, batch, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(net(), batch=batch)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "openvino"}, "Unknown engine backend 'openvino': expected tensorrt_rtx or tensorrt"),
        ({"timeout_s": 0}, "time limit must be above 0 s"),
        ({"workspace_bytes": -1}, "workspace must be above 0 bytes"),
        ({"input_name": "picture"}, "The model has no input 'picture': it has image"),
    ],
)
def test_impossible_arguments(build, net, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(net(), **options)
    assert caught.value.exit_code == 2


def test_no_dynamic_batch(build, net):
    with pytest.raises(ModelError, match=r"has no dynamic batch: its shape is \(4, 3, 8, 8\)") as caught:
        build(net(batch=4))
    assert caught.value.exit_code == 5
    assert "dynamic first axis" in caught.value.hint


def test_another_dynamic_axis(build, net):
    model = net()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ModelError, match="Only the first axis may be dynamic; these are too: image axis 2"):
        build(model)


def test_garbage_leaves_nothing_behind(build, tmp_path):
    with pytest.raises(ModelError, match="no ONNX model") as caught:
        build(b"garbage" * 10)
    assert caught.value.exit_code == 5
    assert caught.value.where == "model.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="There is no ONNX file"):
        build_engine(tmp_path / "none.onnx", tmp_path / "model.plan")


def test_uint8_is_refused_before_it_saturates(build, net, all_activations):
    with pytest.raises(ModelError, match="signed symmetric int8 Q/DQ only"):
        build(net(quantized=all_activations, zero_point=np.uint8(0)))


def test_every_unsupported_operator_is_named(build, net):
    model = net()
    model.opset_import.append(helper.make_opsetid("custom.domain", 1))
    for name in ("c1_relu", "c2_relu"):
        node = next(node for node in model.graph.node if node.name == name)
        node.op_type, node.domain = "Mystery", "custom.domain"
    with pytest.raises(ModelError) as caught:
        build(model)
    message = str(caught.value)
    assert "refuses 2 nodes" in message
    assert "c1_relu (Mystery): unknown operator" in message
    assert "c2_relu (Mystery): unknown operator" in message
    assert caught.value.exit_code == 5


def test_quantized_operators_get_words_of_our_own(build, net):
    model = net()
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((8, 10), np.int8)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    del model.graph.node[-1]
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["flat", "s", "z"], ["codes"], name="q"),
            helper.make_node(
                "QLinearMatMul", ["codes", "s", "z", "w", "s", "z", "s", "z"], ["product"], name="product"
            ),
            helper.make_node("DequantizeLinear", ["product", "s", "z"], ["logits"], name="dq"),
        ]
    )
    with pytest.raises(
        ModelError, match=r"product \(QLinearMatMul\): not supported; int8 is spelled with QuantizeLinear"
    ):
        build(model)


@pytest.mark.skipif(obstacle("tensorrt", to="build") is None, reason="tensorrt builds here")
def test_a_missing_backend_says_what_to_install(build, net):
    with pytest.raises(UnavailableError, match="tensorrt cannot build engines here: ") as caught:
        build(net(), backend="tensorrt")
    assert caught.value.exit_code == 7
    assert "install" in caught.value.hint


def test_the_time_limit_ends_the_build(build, net):
    with pytest.raises(UnavailableError, match=r"did not finish within 0\.05 s") as caught:
        build(net(), timeout_s=0.05)
    assert caught.value.exit_code == 7
    assert "time limit" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_asks_to_try_again(tmp_path):
    (tmp_path / "plan").symlink_to("/dev/full")
    with pytest.raises(TryAgainError, match="The disk is full: 4 bytes of engine do not fit") as caught:
        _write(tmp_path / "plan", b"plan")
    assert caught.value.exit_code == 75


def test_a_native_crash_becomes_an_error_with_the_last_messages(request_in):
    line = json.dumps({"severity": "ERROR", "text": "something in the optimizer"})
    code = f"import os, pathlib; pathlib.Path('log.jsonl').write_text({line!r} + '\\n' + '{{cut'); os.abort()"
    with pytest.raises(ModelError) as caught:
        run_child(request_in, 60, python(code))
    assert "tensorrt_rtx crashed (SIGABRT) on this model" in caught.value.message
    assert "ERROR: something in the optimizer" in caught.value.message
    assert "{cut" in caught.value.message
    assert caught.value.exit_code == 5


def test_a_kill_from_outside_is_no_fault_of_the_model(request_in):
    with pytest.raises(UnavailableError, match=r"was killed \(SIGKILL\), as happens when memory runs out") as caught:
        run_child(request_in, 60, python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert caught.value.exit_code == 7


def test_a_bug_in_the_child_stays_a_bug(request_in):
    with pytest.raises(RuntimeError, match=r"ended with 1:\n.*ZeroDivisionError"):
        run_child(request_in, 60, python("import sys; sys.tracebacklimit = 0; 1 / 0"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_child_dies_with_its_parent(request_in, tmp_path):
    child = (
        "import os, time; from compress.engines.build_child import _die_with_parent; _die_with_parent(); "
        "open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    root = str(Path(errors.__file__).parents[1])
    process = subprocess.Popen(python(parent), cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    process.kill()
    process.wait()
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody may be there to reap an orphan
    except FileNotFoundError:
        return False
