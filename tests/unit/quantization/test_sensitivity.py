from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from compress.errors import DataError, ModelError
from compress.onnx_graph.canonical import canonical_bytes
from compress.onnx_graph.inspect import summarize
from compress.quantization.quantize import quantize_onnx
from compress.quantization.sensitivity import (
    Judge,
    MixedGraphs,
    answers,
    layer_sensitivity,
    layer_work,
    sqnr_db,
)
from compress.quantization.settings import QuantizeSettings

NAMES = ["c0", "c1", "c2", "p0", "logits"]
SETTINGS = QuantizeSettings()


@pytest.fixture
def batches(images):
    return lambda: iter([images(64, 0), images(32, 1)])


def float_part(model):
    return set(summarize(model)["qdq"]["float_layers"])


def test_work_by_hand(chain):
    work = layer_work(chain(), ["p0"])
    macs = {"c0": 16 * 64 * 9, "c1": 16 * 64 * 9, "c2": 32 * 64 * 16, "logits": 320, "p0": 0}
    assert {name: one.macs for name, one in work.items()} == macs
    assert work["p0"].elements == work["p0"].amount == 32
    assert [one.operator for one in work.values()] == ["Conv", "Conv", "Conv", "GlobalAveragePool", "Gemm"]


def test_work_of_attention_and_transposed_convolutions():
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 2, 5, 8] image) => (float[batch, 2, 5, 5] scores, float[batch, 3, 10, 16] up) {
        t = Transpose <perm = [0, 1, 3, 2]> (image)
        scores = MatMul (image, t)
        up = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (image, w)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 2, 2), np.float32), "w"))
    for node in model.graph.node:
        node.name = node.output[0]
    work = layer_work(model)
    assert {name: one.macs for name, one in work.items()} == {"scores": 2 * 5 * 5 * 8, "up": 2 * 5 * 8 * 3 * 4}


def test_sqnr_by_hand():
    reference = np.array([[3.0, 4.0]], np.float32)
    assert sqnr_db(reference + np.array([[0.0, 0.5]], np.float32), reference) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == 200.0
    assert sqnr_db(reference, np.zeros_like(reference)) == -200.0


def test_graphs_of_choices(chain, batches):
    model = chain()
    full = quantize_onnx(model, batches())
    graphs = MixedGraphs(model, full, SETTINGS)
    assert list(graphs.names) == NAMES
    assert canonical_bytes(graphs.signed([])) == canonical_bytes(full.signed)
    assert canonical_bytes(graphs.unsigned(graphs.signed([]))) == canonical_bytes(full.unsigned)
    mixed = graphs.signed(["c1", "logits"])
    again = quantize_onnx(model, batches(), QuantizeSettings(float_layers=("c1", "logits")))
    assert float_part(mixed) == {"c1", "logits"}
    assert canonical_bytes(mixed) == canonical_bytes(again.signed)
    # a graph that was trained with fake-quant arrives quantized
    trained = MixedGraphs(full.signed, quantize_onnx(full.signed, iter([])), SETTINGS)
    assert canonical_bytes(trained.signed([])) == canonical_bytes(full.signed)
    assert float_part(trained.signed(["c1"])) == {"c1"}


def test_layers_left_in_float_by_hand_are_no_choice(chain, batches):
    settings = QuantizeSettings(float_layers=("c2",))
    model = chain()
    graphs = MixedGraphs(model, quantize_onnx(model, batches(), settings), settings)
    assert "c2" not in graphs.names
    assert float_part(graphs.signed(["c0"])) == {"c0", "c2"}


def test_the_stretched_layer_is_the_sensitive_one(chain, batches):
    model = chain(100)
    reference = answers(model, batches)
    labels = reference.argmax(axis=1)
    found = layer_sensitivity(model, batches, labels)
    assert [one.name for one in found] == NAMES
    worst = min(found, key=lambda one: one.alone.sqnr_db)
    best = max(found, key=lambda one: one.without.sqnr_db)
    assert worst.name == best.name == "c1"
    others = [one for one in found if one.name != "c1"]
    assert min(one.alone.sqnr_db for one in others) > worst.alone.sqnr_db + 10
    assert worst.alone.loss_pp is not None
    assert worst.alone.loss_pp > 0
    assert all(one.alone.loss_pp is None for one in layer_sensitivity(model, batches))


def test_float_against_itself(chain, batches):
    model = chain()
    labels = answers(model, batches).argmax(axis=1)
    judge = Judge(model, batches, labels)
    assert (judge.samples, judge.top1) == (96, 1.0)
    for optimized in (True, False):
        score = judge.score(model, optimized=optimized)
        assert score.loss_pp == 0
        assert score.sqnr_db > 100
    wrong = Judge(model, batches, (labels + 1) % 10)
    assert wrong.top1 == 0


def test_wrong_samples_and_labels(chain, batches):
    model = chain()
    with pytest.raises(DataError, match=r"labels of shape \(3,\) for 96 samples") as caught:
        Judge(model, batches, np.zeros(3, np.int64))
    assert caught.value.exit_code == 5
    with pytest.raises(DataError, match="from 0 to 10; the network answers for 10 classes"):
        Judge(model, batches, np.arange(96) % 11)
    with pytest.raises(DataError, match="no samples"):
        Judge(model, lambda: [], None)
    with pytest.raises(ModelError, match=r"ONNX Runtime fails on inputs of shape .*9, 8") as failed:
        Judge(model, lambda: [np.zeros((2, 1, 9, 8), np.float32)], None)
    assert failed.value.exit_code == 5
    with pytest.raises(ModelError, match="logits is NaN or infinite on 2 samples"):
        answers(model, lambda: [np.full((2, 1, 8, 8), np.inf, np.float32)])


def test_neighbours_are_found_through_what_cannot_be_chosen(chain, batches):
    model = chain()
    beside = MixedGraphs(model, quantize_onnx(model, batches()), SETTINGS).beside
    assert beside == {  # Relu stands between the convolutions, Reshape before the Gemm
        "c0": {"c1"}, "c1": {"c0", "c2"}, "c2": {"c1", "p0"}, "p0": {"c2", "logits"}, "logits": {"p0"},
    }  # fmt: skip


def test_samples_by_input(chain, batches):
    named = lambda: ({"image": batch} for batch in batches())  # noqa: E731
    np.testing.assert_array_equal(answers(chain(), named), answers(chain(), batches))
