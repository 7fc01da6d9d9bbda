from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, main_thread
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from pydantic import ValidationError

from compress.artifacts.manifest import Kind, Quantization
from compress.cli.process import call
from compress.engines import tensorrt_builder
from compress.engines.availability import check_library
from compress.engines.build_request import BuildRequest
from compress.errors import EXIT_SIGTERM, UnavailableError, UsageError
from compress.pipeline.machine import FACTS
from compress.stages.engine import ENGINE, EngineConfig, EngineInputs, resolve, sources

with_builder = pytest.mark.skipif(
    not check_library("tensorrt_rtx").available, reason="tensorrt_rtx is not installed (Linux x86-64 only)"
)


@pytest.fixture
def model(make):
    """A float ONNX artifact of one convolution."""
    artifact = make("float", Kind.ONNX_MODEL)
    artifact.path.mkdir()
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["logits"], name="conv_0", pads=[1, 1, 1, 1])],
        "net",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 8, 8, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        artifact.path / "model.onnx",
    )
    return artifact


@with_builder
def test_one_target_keeps_its_file_names(execute, model):
    engine = execute(ENGINE, "engine", EngineInputs(model))
    assert sorted(path.name for path in engine.path.iterdir()) == ["model.json", "model.plan"]
    assert json.loads((engine.path / "model.json").read_bytes())["precision"] == "fp32"
    metrics = {metric.name: metric.value for metric in engine.manifest.metrics}
    assert metrics["convolutions"] == 1
    assert metrics["int8_operands"] == 0


@with_builder
def test_several_targets_give_a_plan_each(execute, model):
    engine = execute(
        ENGINE,
        "engine",
        EngineInputs(model),
        targets=[8.6, "8.9"],
        precision="fp16",
        batch=[{"min": 1, "opt": 1, "max": 1}, {"min": 8, "opt": 32, "max": 64}],
    )
    assert sorted(path.name for path in engine.path.iterdir()) == [
        "model-8.6.json",
        "model-8.6.plan",
        "model-8.9.json",
        "model-8.9.plan",
    ]
    for target in ("8.6", "8.9"):
        sidecar = json.loads((engine.path / f"model-{target}.json").read_bytes())
        assert (sidecar["compute_capabilities"], sidecar["portable"], sidecar["precision"]) == ([target], False, "fp16")
        assert [(profile["index"], profile["opt"][0]) for profile in sidecar["profiles"]] == [(0, 1), (1, 32)]
    assert "8.6: 0 of 1 convolutions have int8 operands" in engine.manifest.notes
    assert "8.9: what is not int8 computes in 16 bits, sums and exponentials in 32" in engine.manifest.notes
    size = next(metric.value for metric in engine.manifest.metrics if metric.name == "size")
    assert size == sum(path.stat().st_size for path in engine.path.glob("*.plan"))


@with_builder
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"precision": "int8"}, "not quantized, so it cannot be built as int8"),
        ({"hardware_compatibility": "ampere_plus"}, "no hardware compatibility levels"),
        ({"targets": ["8.6", "1.0"]}, r"Unknown compute capability 1\.0"),
    ],
)
def test_what_the_builder_refuses_ends_the_step(execute, model, config, message):
    with pytest.raises(UsageError, match=message) as caught:
        execute(ENGINE, "engine", EngineInputs(model), **config)
    assert caught.value.exit_code == 2


@pytest.fixture
def partly_quantized(make):
    """A quantized ONNX artifact whose second convolution is float."""
    artifact = make("int8", Kind.QUANTIZED_ONNX)
    artifact.path.mkdir()
    graph = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch,3,8,8] image) => (float[batch,4,6,6] logits) {
          codes = QuantizeLinear (image, scale, zero)
          levels = DequantizeLinear (codes, scale, zero)
          weight = DequantizeLinear <axis = 0> (weight_codes, scales, zeros)
          conv_0 = Conv <pads = [1, 1, 1, 1]> (levels, weight)
          logits = Conv (conv_0, kernel)
        }
        """
    )
    for node in graph.graph.node:
        node.name = {"logits": "conv_1"}.get(node.output[0], node.output[0])
    random = np.random.default_rng(0)
    constants = {
        "scale": np.float32(1 / 127),
        "zero": np.int8(0),
        "weight_codes": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "scales": np.full(8, 0.01, np.float32),
        "zeros": np.zeros(8, np.int8),
        "kernel": random.standard_normal((4, 8, 3, 3)).astype(np.float32),
    }
    graph.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    onnx.save(graph, artifact.path / "model.onnx")
    quantization = Quantization(scheme="int8-symmetric", float_layers=("conv_1",))
    return replace(artifact, manifest=artifact.manifest.model_copy(update={"quantization": quantization}))


@with_builder
@pytest.mark.parametrize(("precision", "said"), [("auto", False), ("int8", True), ("int8+fp16", False)])
def test_float_layers_of_an_int8_engine_are_said_to_be_fp32(execute, partly_quantized, precision, said):
    engine = execute(ENGINE, "engine", EngineInputs(partly_quantized), precision=precision)
    note = "layers left in float compute in fp32: conv_1; precision: int8+fp16 would run them in fp16"
    assert (note in engine.manifest.notes) is said
    assert {metric.name: metric.value for metric in engine.manifest.metrics}["int8_convolutions"] == 1


def children(monkeypatch: pytest.MonkeyPatch, of_second_target: str, *, terminated: bool = False) -> None:
    """Builds of two targets whose processes run Python code: the first one's sleeps for a minute."""
    both = Barrier(2)

    def build(onnx_path: Path, plan: Path, *, stop: Event, **settings: Any) -> dict[str, Any]:
        folder = plan.parent / f"build-{plan.stem}"
        folder.mkdir()
        request = BuildRequest(
            onnx_path=onnx_path,
            plan_path=folder / "plan",
            answer_path=folder / "answer.json",
            log_path=folder / "log.jsonl",
            progress_path=folder / "progress",
            cache_path=folder / "timing_cache",
            backend="tensorrt_rtx",
            batches=((1, 1, 1),),
            input_name="image",
        )
        both.wait(30)
        second = plan.stem == "model-8.9"
        if second and terminated:
            signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)
        code = of_second_target if second else SLEEP
        command = [sys.executable, "-c", code]
        return tensorrt_builder.run_child(request, 60, command, stop).model_dump(mode="json")

    monkeypatch.setattr(tensorrt_builder, "build_engine", build)


SLEEP = "import time; time.sleep(60)"


def test_the_error_of_one_target_stops_the_others(execute, model, monkeypatch):
    children(monkeypatch, "raise SystemExit(3)")
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="building process ended with 3"):
        execute(ENGINE, "engine", EngineInputs(model), targets=["8.6", "8.9"])
    assert time.monotonic() - started < 20  # returns only when both processes are gone


def test_a_signal_stops_the_builds_of_every_target(execute, model, monkeypatch):
    children(monkeypatch, SLEEP, terminated=True)
    started = time.monotonic()
    targets = ["8.6", "8.9"]
    assert call(lambda: execute(ENGINE, "engine", EngineInputs(model), targets=targets)) == EXIT_SIGTERM
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": "8.6", "targets": ["8.9"]}, "expected target or targets, got both"),
        ({"targets": [8.6, "8.6"]}, r"targets names one twice: 8\.6, 8\.6"),
        ({"batch": []}, "batch is an empty list"),
        ({"batch": [{"min": 9, "opt": 8, "max": 64}]}, "expected min <= opt <= max"),
        ({"precision": "fp8"}, "'fp32', 'fp16', 'int8' or 'int8\\+fp16'"),
        ({"runtime_cache": "elsewhere"}, "should match pattern"),
        ({"runtime_cache": "here", "backend": "tensorrt"}, "runtime_cache needs backend tensorrt_rtx"),
        (
            {"runtime_cache": "here", "targets": [8.6, 8.9]},
            r"at most one plan runs on it: expected one target, got 8\.6, 8\.9",
        ),
    ],
)
def test_impossible_settings(config, message):
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(config)


def test_one_target_may_have_a_runtime_cache():
    assert EngineConfig.model_validate({"runtime_cache": "here", "targets": [8.6]}).runtime_cache == "here"


def test_what_auto_becomes():
    assert resolve(EngineConfig()).target == "portable"
    assert resolve(EngineConfig(targets=("8.6", "8.9"))).target == "auto"
    assert resolve(EngineConfig(target="8.9")).target == "8.9"


def test_a_number_is_a_target_too():
    assert EngineConfig.model_validate({"target": 12.0}).target == "12.0"


@pytest.mark.skipif(FACTS["gpu"]() is not None, reason="there is a GPU here")
def test_compiling_ahead_needs_the_gpu():
    with pytest.raises(UnavailableError, match="runtime_cache: here needs a GPU, and there is none") as caught:
        resolve(EngineConfig(runtime_cache="here"))
    assert caught.value.exit_code == 7


def test_an_earlier_builds_timings_are_a_source(tmp_path):
    assert sources(EngineConfig(), tmp_path) == []
    assert sources(EngineConfig(timing_cache="model.timing_cache"), tmp_path) == [tmp_path / "model.timing_cache"]
