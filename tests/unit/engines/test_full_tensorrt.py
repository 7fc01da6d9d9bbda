"""The builder on TensorRT 10 and 11, of which stand-ins know names, order and refusals; see `fake_tensorrt`."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing

import onnx
import pytest
from onnx import TensorProto

from compress.engines.build_child import build
from compress.engines.build_messages import BuildLog
from compress.engines.build_progress import BuildState, read_progress
from compress.engines.build_request import BuildRequest
from compress.errors import ModelError, UsageError

VERSIONS = ("10.16.2", "11.4.1")


@pytest.fixture(params=VERSIONS)
def trt(request, tensorrt):
    return tensorrt(request.param)


@pytest.fixture
def ask(onnx_file, tmp_path):
    def run(model, **options):
        request = BuildRequest(
            **{
                "onnx_path": onnx_file(model),
                "plan_path": tmp_path / "plan",
                "answer_path": tmp_path / "answer.json",
                "log_path": tmp_path / "log.jsonl",
                "progress_path": tmp_path / "progress",
                "cache_path": tmp_path / "timing_cache",
                "backend": "tensorrt",
                "batches": ((1, 8, 64),),
                "input_name": "image",
                **options,
            }
        )
        with closing(BuildLog(request.log_path)) as log:
            return build(request, log)

    return run


def plan_in(folder) -> dict:
    return json.loads((folder / "plan").read_bytes().partition(b":")[2])


def test_one_path_builds_on_both(trt, ask, net, all_activations, tmp_path):
    sidecar = ask(net(quantized=all_activations))
    assert trt.calls[:6] == ["builder", "network", "parse", "config", "profile", "build"]
    assert (sidecar.backend, sidecar.backend_version, sidecar.precision) == ("tensorrt", trt.__version__, "int8")
    assert not sidecar.portable
    assert [profile.index for profile in sidecar.profiles] == [0]
    assert plan_in(tmp_path)["flags"] == []
    assert sidecar.messages == ("WARNING: a tactic took …",)
    assert sidecar.capabilities == ("hardware_compatibility", "progress", "timing_cache", "version_compatible")


def test_the_inspector_tells_the_precision_of_each_layer(trt, ask, net, all_activations):
    int8 = ask(net(quantized=all_activations)).operand_types
    assert (int8.convolutions.int8, int8.convolutions.total, int8.gemms.int8, int8.gemms.total) == (3, 3, 1, 1)
    assert int8.operations[0].nodes == ("c1",)
    assert int8.operations[0].inputs == ("int8", "int8")

    plain = ask(net()).operand_types
    assert plain.float_nodes == ("c1", "c2", "c3", "head")
    assert plain.operations[0].inputs == ("float32", "float32")


def test_half_precision_is_in_the_graph(trt, ask, net, tmp_path):
    sidecar = ask(net(), precision="fp16")
    assert sidecar.precision == "fp16"
    assert sidecar.onnx_sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    assert sidecar.operand_types.operations[0].inputs[1] == "float16"
    assert [tensor.dtype for tensor in sidecar.io] == ["float32", "float32"]
    assert plan_in(tmp_path)["flags"] == []


def test_progress_goes_through_the_file(trt, ask, net, tmp_path):
    ask(net())
    assert read_progress(tmp_path / "progress") == BuildState("Building Engine", 2, 2)
    assert read_progress(tmp_path / "nothing") is None


def test_timings_are_written_and_taken_up(trt, ask, net, tmp_path):
    sidecar = ask(net())
    cache = tmp_path / "timing_cache"
    assert sidecar.timing_cache_sha256 == hashlib.sha256(cache.read_bytes()).hexdigest()
    earlier = tmp_path / "earlier"
    earlier.write_bytes(cache.read_bytes())
    assert ask(net(), timing_cache=earlier).timing_cache_sha256 == sidecar.timing_cache_sha256


@pytest.mark.parametrize("blob", [b"garbage", b'{"where": {"gpu": "7.5", "version": "10.0"}}'])
def test_timings_of_something_else_are_refused(trt, ask, net, tmp_path, blob):
    (tmp_path / "other").write_bytes(blob)
    with pytest.raises(UsageError, match="refuses the timing cache: damaged, or of another version or GPU") as got:
        ask(net(), timing_cache=tmp_path / "other")
    assert got.value.exit_code == 2


def test_compatibility_flags(trt, ask, net, tmp_path):
    sidecar = ask(net(), hardware_compatibility="ampere_plus", version_compatible=True)
    assert (sidecar.hardware_compatibility, sidecar.version_compatible) == ("ampere_plus", True)
    assert plan_in(tmp_path)["compatible"] == 1
    # Without its own runtime a plan holds no code of the host.
    assert plan_in(tmp_path)["flags"] == ["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"]


def test_an_unknown_level_is_named(trt, ask, net):
    with pytest.raises(
        UsageError, match=r"Unknown hardware compatibility 'hopper': tensorrt .* knows none, ampere_plus"
    ):
        ask(net(), hardware_compatibility="hopper")


def test_a_backend_without_such_levels_says_so(tensorrt, ask, net):
    trt = tensorrt("10.16.2")
    del trt.BuilderFlag
    trt.BuilderFlag = type("BuilderFlag", (), {})
    with pytest.raises(UsageError, match=r"tensorrt 10\.16\.2 builds no version compatible engines"):
        ask(net(), version_compatible=True)


def test_other_gpus_cannot_be_named(trt, ask, net):
    with pytest.raises(UsageError, match="tensorrt builds for the GPU of this machine only"):
        ask(net(), compute_capabilities=("8.6",))


def test_several_profiles(trt, ask, net, tmp_path):
    sidecar = ask(net(), batches=((1, 1, 1), (8, 32, 64)))
    assert [(profile.index, profile.min[0], profile.opt[0], profile.max[0]) for profile in sidecar.profiles] == [
        (0, 1, 1, 1),
        (1, 8, 32, 64),
    ]
    assert len(plan_in(tmp_path)["profiles"]) == 2


def test_the_workspace_is_clamped(trt, ask, net):
    assert any("workspace limit lowered" in message for message in ask(net(), workspace_bytes=2**63).messages)


@pytest.mark.parametrize(
    ("quantized", "precision", "message"),
    [(True, "fp16", "is quantized, so it cannot be built as fp16"), (False, "int8", "is not quantized")],
)
def test_a_precision_that_the_graph_does_not_have(trt, ask, net, all_activations, quantized, precision, message):
    with pytest.raises(UsageError, match=message) as caught:
        ask(net(quantized=all_activations if quantized else ()), precision=precision)
    assert caught.value.exit_code == 2
    assert trt.calls == []


def test_garbage_never_reaches_the_parser(trt, ask):
    with pytest.raises(ModelError, match="no ONNX model"):
        ask(b"garbage" * 10)
    assert trt.calls == []


@pytest.mark.parametrize(("part", "found"), [("node", "0 layers and 1 outputs"), ("output", "layers and 0 outputs")])
def test_a_parser_that_accepts_and_finds_nothing(trt, ask, net, tmp_path, monkeypatch, part, found):
    parse = trt.OnnxParser.parse

    def parse_nothing(self, data):
        accepted = parse(self, data)
        self._network().model.graph.ClearField(part)
        return accepted

    monkeypatch.setattr(trt.OnnxParser, "parse", parse_nothing)
    with pytest.raises(ModelError, match=rf"The parser found .*{found} in the model; expected at least one") as caught:
        ask(net())
    assert caught.value.exit_code == 5
    assert "compress lint" in caught.value.hint
    assert trt.calls == ["builder", "network", "parse"]
    assert not (tmp_path / "plan").exists()


# --- the stand-ins themselves: what was removed is gone, and order is enforced


def test_removed_names_are_gone(tensorrt):
    ten, eleven = tensorrt("10.16.2"), tensorrt("11.4.1")
    assert hasattr(ten, "IInt8Calibrator")
    for name in ("FP16", "INT8"):
        assert hasattr(ten.BuilderFlag, name)
        with pytest.raises(AttributeError):
            getattr(eleven.BuilderFlag, name)
    with pytest.raises(AttributeError):
        _ = eleven.IInt8Calibrator
    logger = type("Logger", (eleven.ILogger,), {"log": lambda *_: None})()
    config = eleven.Builder(logger).create_builder_config()
    with pytest.raises(AttributeError, match="int8_calibrator"):
        config.int8_calibrator = None


def test_a_network_that_nobody_holds_crashes(trt, net):
    logger = type("Logger", (trt.ILogger,), {"log": lambda *_: None})()
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), logger)
    with pytest.raises(AssertionError, match="the network is gone"):
        parser.parse(net().SerializeToString())


def test_weak_typing_and_its_flags_are_refused(tensorrt):
    trt = tensorrt("10.16.2")
    logger = type("Logger", (trt.ILogger,), {"log": lambda *_: None})()
    with pytest.raises(AssertionError, match="not strongly typed"):
        trt.Builder(logger).create_network(0)
    with pytest.raises(AssertionError, match="strongly typed"):
        trt.Builder(logger).create_builder_config().set_flag(trt.BuilderFlag.INT8)


def test_the_half_graph_is_what_was_parsed(trt, ask, net, monkeypatch):
    seen = []
    parse = trt.OnnxParser.parse
    monkeypatch.setattr(trt.OnnxParser, "parse", lambda self, data: seen.append(data) or parse(self, data))
    ask(net(), precision="fp16")
    types = {tensor.data_type for tensor in onnx.load_model_from_string(seen[0]).graph.initializer}
    assert types == {TensorProto.FLOAT16}
