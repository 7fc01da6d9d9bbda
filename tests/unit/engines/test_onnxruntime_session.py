from __future__ import annotations

import time

import numpy as np
import onnxruntime
import pytest

from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.errors import DataError, ModelError, UnavailableError, UsageError


@pytest.fixture
def session(net, onnx_file):
    loaded = OnnxRuntimeSession.load(onnx_file(net()), threads=2)
    yield loaded
    loaded.close()


def test_batches_give_the_same_logits_as_single_images(session):
    images = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    together = session.run({"image": images})["logits"]
    alone = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    assert together.shape == (5, 10)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)  # float sums in another order


def test_matches_a_hand_computed_product(onnx_file):
    from onnx import TensorProto, helper, numpy_helper

    weight = np.array([[1, 2], [3, 4]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
        "product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = onnx_file(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    logits = OnnxRuntimeSession.load(path).run({"image": np.array([[1, 10]], np.float32)})["logits"]
    np.testing.assert_array_equal(logits, [[31, 42]])


def test_options_are_those_that_measure_fairly(session):
    options = session._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_describe_is_plain_json(session):
    assert session.describe() == {
        "backend": "onnxruntime",
        "version": onnxruntime.__version__,
        "device": "cpu",
        "threads": 2,
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
    }


def test_timed_runs_the_model_and_returns_milliseconds(session):
    timed = session.timed({"image": np.zeros((2, 3, 8, 8), np.float32)})
    start = time.perf_counter()
    taken_ms = timed()
    assert 0 < taken_ms <= 1000 * (time.perf_counter() - start)
    with pytest.raises(DataError, match="has shape"):
        session.timed({"image": np.zeros((1, 1, 8, 8), np.float32)})()


def test_wrong_shape_is_refused(session):
    with pytest.raises(DataError, match="has shape") as caught:
        session.run({"image": np.zeros((1, 1, 8, 8), np.float32)})
    assert caught.value.exit_code == 5


def test_a_closed_session_does_not_run(session):
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_garbage_is_a_model_error(onnx_file):
    with pytest.raises(ModelError, match="refuses the model") as caught:
        OnnxRuntimeSession.load(onnx_file(b"garbage" * 10))
    assert caught.value.exit_code == 5


def test_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no ONNX file"):
        OnnxRuntimeSession.load(tmp_path / "none.onnx")


@pytest.mark.parametrize(("device", "threads"), [("tpu", 1), ("cpu", 0)])
def test_impossible_settings_are_usage_errors(net, onnx_file, device, threads):
    with pytest.raises(UsageError) as caught:
        OnnxRuntimeSession.load(onnx_file(net()), device, threads=threads)
    assert caught.value.exit_code == 2


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA provider is here")
def test_a_missing_provider_is_never_replaced(net, onnx_file):
    with pytest.raises(UnavailableError, match="no CUDAExecutionProvider here") as caught:
        OnnxRuntimeSession.load(onnx_file(net()), "cuda")
    assert caught.value.exit_code == 7
