"""Engines on a GPU, held against ONNX Runtime on the same graph."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser

from compress.engines.availability import why_not
from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.engines.runtime_cache import write_runtime_cache
from compress.engines.sidecar import sidecar_path
from compress.engines.tensorrt_builder import build_engine
from compress.engines.tensorrt_session import TensorRTSession
from compress.errors import ArtifactError, DataError, UnavailableError

REASON = why_not("tensorrt_rtx")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

FLOAT = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,3,8,8] image) => (float[batch,8,8,8] logits) {
  features = Conv <pads = [1, 1, 1, 1]> (image, weight)
  logits = Relu (features)
}
"""
INT8 = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,3,8,8] image) => (float[batch,8,8,8] logits) {
  codes = QuantizeLinear (image, scale, zero)
  values = DequantizeLinear (codes, scale, zero)
  weight = DequantizeLinear <axis = 0> (weight_codes, weight_scale, weight_zero)
  features = Conv <pads = [1, 1, 1, 1]> (values, weight)
  logits = Relu (features)
}
"""


def make_net(text: str) -> ModelProto:
    random = np.random.default_rng(0)
    tensors = {"weight": random.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    if text is INT8:
        tensors = {
            "scale": np.float32(1 / 127),
            "zero": np.int8(0),
            "weight_codes": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
            "weight_scale": np.full(8, 0.02, np.float32),
            "weight_zero": np.zeros(8, np.int8),
        }
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()
    )
    return model


@pytest.fixture(params=[FLOAT, INT8], ids=["float", "int8"])
def engine(request, tmp_path) -> Path:
    onnx.save(make_net(request.param), tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", batch=(1, 4, 16))
    return tmp_path / "model.plan"


def test_every_batch_of_the_profile_agrees_with_onnxruntime(engine):
    reference = OnnxRuntimeSession.load(engine.with_suffix(".onnx"))
    session = TensorRTSession.load(engine)
    random = np.random.default_rng(1)
    for batch in (1, 4, 16, 3, 1):
        images = random.random((batch, 3, 8, 8), np.float32)
        got = session.run({"image": images})["logits"]
        expected = reference.run({"image": images})["logits"]
        assert got.shape == expected.shape
        # Tensor cores may round the factors of float products to 10 bits (TF32).
        np.testing.assert_allclose(got, expected, rtol=5e-3, atol=2e-2)
    session.close()


def test_results_outlive_the_next_run_and_the_session(engine):
    session = TensorRTSession.load(engine)
    first = session.run({"image": np.ones((2, 3, 8, 8), np.float32)})["logits"]
    kept = first.copy()
    session.run({"image": np.zeros((2, 3, 8, 8), np.float32)})
    session.close()
    np.testing.assert_array_equal(first, kept)


def test_timed_is_device_time_and_no_more_than_wall_time(engine):
    session = TensorRTSession.load(engine)
    timed = session.timed({"image": np.ones((16, 3, 8, 8), np.float32)})
    timed()
    start = time.perf_counter()
    taken_ms = timed()
    assert 0 < taken_ms < 1000 * (time.perf_counter() - start)
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        timed()


def test_two_sessions_live_side_by_side(engine):
    images = np.random.default_rng(2).random((4, 3, 8, 8), np.float32)
    first, second = TensorRTSession.load(engine), TensorRTSession.load(engine)
    expected = first.run({"image": images})["logits"]
    first.close()
    np.testing.assert_array_equal(second.run({"image": images})["logits"], expected)
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        first.run({"image": images})


def test_a_batch_outside_the_profile_is_refused(engine):
    session = TensorRTSession.load(engine)
    with pytest.raises(DataError, match="A batch of 17 is outside the engine's profile: expected 1 to 16"):
        session.run({"image": np.zeros((17, 3, 8, 8), np.float32)})
    session.close()


def test_an_engine_of_another_version_is_refused(engine):
    document = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps({**document, "backend_version": "0.0.1"}))
    with pytest.raises(UnavailableError, match=r"built by tensorrt_rtx 0\.0\.1") as caught:
        TensorRTSession.load(engine)
    assert caught.value.exit_code == 7


def test_a_damaged_engine_never_reaches_the_deserializer(engine):
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(ArtifactError) as caught:
        TensorRTSession.load(engine)
    assert caught.value.exit_code == 6


def test_a_missing_gpu_is_refused(engine):
    with pytest.raises(UnavailableError, match="There is no GPU 99"):
        TensorRTSession.load(engine, "cuda:99")


def test_every_profile_and_captured_graph_agrees_with_a_plain_run(tmp_path):
    onnx.save(make_net(INT8), tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", batch=[(1, 1, 1), (2, 8, 16)])
    plain, graphs = (
        TensorRTSession.load(tmp_path / "model.plan"),
        TensorRTSession.load(tmp_path / "model.plan", graphs=True),
    )
    random = np.random.default_rng(3)
    for batch in (1, 1, 8, 8, 16, 8, 1):
        images = random.random((batch, 3, 8, 8), np.float32)
        np.testing.assert_array_equal(graphs.run({"image": images})["logits"], plain.run({"image": images})["logits"])
    assert plain.describe()["cuda_graphs"] == "no: not asked for"
    plain.close()
    graphs.close()


def test_half_precision_stays_close(tmp_path):
    onnx.save(make_net(FLOAT), tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", batch=(1, 4, 16), precision="fp16")
    images = np.random.default_rng(4).random((4, 3, 8, 8), np.float32)
    session = TensorRTSession.load(tmp_path / "model.plan")
    expected = OnnxRuntimeSession.load(tmp_path / "model.onnx").run({"image": images})["logits"]
    np.testing.assert_allclose(session.run({"image": images})["logits"], expected, rtol=1e-2, atol=2e-2)
    session.close()


def test_a_runtime_cache_is_taken_up_on_the_same_machine(engine):
    write_runtime_cache(engine)
    session = TensorRTSession.load(engine)
    assert session.describe()["runtime_cache"] == "warm"
    session.close()


def test_telemetry_has_units_that_make_sense(engine):
    session = TensorRTSession.load(engine)
    found = session.telemetry()
    assert found is not None
    assert 0 < found["temperature_c"] < 120
    assert found["sm_clock_mhz"] > 0
    session.close()
