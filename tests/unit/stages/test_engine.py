from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pydantic import ValidationError

from compress.artifacts.manifest import Kind
from compress.engines.availability import check_library
from compress.errors import UnavailableError, UsageError
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": "8.6", "targets": ["8.9"]}, "expected target or targets, got both"),
        ({"targets": [8.6, "8.6"]}, r"targets names one twice: 8\.6, 8\.6"),
        ({"batch": []}, "batch is an empty list"),
        ({"batch": [{"min": 9, "opt": 8, "max": 64}]}, "expected min <= opt <= max"),
        ({"precision": "fp8"}, "'fp32', 'fp16', 'int8' or 'int8\\+fp16'"),
        ({"runtime_cache": "elsewhere"}, "should match pattern"),
    ],
)
def test_impossible_settings(config, message):
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(config)


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
