from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from compress.errors import DataError, ModelError, UsageError
from compress.onnx_graph.canonical import canonical_bytes
from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.qdq import remove_qdq_pair, scales_of
from compress.onnx_graph.scales import ScaleTable
from compress.quantization.quantize import quantize_onnx

BODY = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 8, 8] image) => (float[batch, 10] logits) {
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = Relu (c0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1, b1)
    a0 = Add (c1, r0)
    p0 = GlobalAveragePool (a0)
    f0 = Reshape (p0, shape)
    logits = Gemm <transB = 1> (f0, w2, b2)
}
"""
ACTIVATIONS = {"image", "r0", "c1", "a0", "f0"}
WEIGHTS = {"w0", "w1", "w2"}


@pytest.fixture
def model():
    model = onnx.parser.parse_model(BODY)
    rng = np.random.default_rng(0)
    arrays = {"shape": np.array([-1, 16])}
    for number, shape in enumerate([(16, 1, 3, 3), (16, 16, 3, 3), (10, 16)]):
        arrays[f"w{number}"] = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        arrays[f"b{number}"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def images(samples=64, seed=0):
    return np.random.default_rng(seed).random((samples, 1, 8, 8), np.float32)


def infer(model, data):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": data})[0])


def never_read():
    raise AssertionError("calibration samples were read")
    yield


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_a_float_graph_is_calibrated(model, method):
    result = quantize_onnx(model, (images(16, seed) for seed in range(4)), method)
    assert (result.calibrated, result.kept, result.notes) == (5, 0, [])
    assert set(result.scales) == ACTIVATIONS | WEIGHTS
    assert {result.scales[name].source for name in ACTIVATIONS} == {method}
    assert {result.scales[name].source for name in WEIGHTS} == {"weights"}
    found = scales_of(result.signed)
    assert {name: scale.scale for name, scale in found.items()} == {n: s.scale for n, s in result.scales.items()}
    for graph in (result.signed, result.unsigned):
        onnx.checker.check_model(graph, full_check=True)
        coverage = summarize(graph)["qdq"]
        assert (coverage["convs_quantized"], coverage["gemms_quantized"]) == (2, 1)


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_little_is_lost(model, method):
    result = quantize_onnx(model, [images()], method)
    data = images(256, seed=9)
    expected = infer(model, data)
    for graph in (result.signed, result.unsigned):
        got = infer(graph, data)
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) > 25
        assert (got.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_a_finished_graph_is_kept_and_no_sample_is_read(model):
    first = quantize_onnx(model, [images()])
    again = quantize_onnx(first.signed, never_read())
    assert (again.calibrated, again.kept) == (0, 8)
    assert {scale.source for scale in again.scales.values()} == {"qat"}
    assert canonical_bytes(again.signed) == canonical_bytes(first.signed)
    assert canonical_bytes(again.unsigned) == canonical_bytes(first.unsigned)


def test_a_partly_quantized_graph_keeps_what_it_has(model):
    first = quantize_onnx(model, [images()], "minmax")
    part = remove_qdq_pair(first.signed, "c0")  # image loses its scale
    result = quantize_onnx(part, [images()], "minmax")
    assert (result.calibrated, result.kept) == (1, 7)
    assert Counter(scale.source for scale in result.scales.values()) == {"qat": 7, "minmax": 1}
    assert result.scales["image"].source == "minmax"
    assert result.scales["r0"].scale == first.scales["r0"].scale
    assert canonical_bytes(result.signed) == canonical_bytes(first.signed)


def test_the_same_input_gives_the_same_bytes(model):
    one, two = (quantize_onnx(model, [images()]) for _ in range(2))
    other = quantize_onnx(model, (images()[i : i + 10] for i in range(0, 64, 10)))
    for result in (two, other):
        assert canonical_bytes(result.signed) == canonical_bytes(one.signed)
        assert canonical_bytes(result.unsigned) == canonical_bytes(one.unsigned)
        assert result.scales.to_json() == one.scales.to_json()


def test_the_table_reads_back(model):
    scales = quantize_onnx(model, [images()]).scales
    assert ScaleTable.from_json(scales.to_json()) == scales


def test_notes_name_what_is_odd(model):
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            array = numpy_helper.to_array(tensor).copy()
            array[2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "w1"))
    result = quantize_onnx(model, [images()])
    assert result.notes == ["weight w1: 1 of 16 output channels are zero"]


def test_a_static_batch_is_refused(model):
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    with pytest.raises(ModelError, match=r"static-batch.*the batch axis of input image is 8") as caught:
        quantize_onnx(model, never_read())
    assert caught.value.exit_code == 5


def test_unsigned_input_is_refused(model):
    unsigned = quantize_onnx(model, [images()]).unsigned
    with pytest.raises(ModelError, match=r"not fit for tensorrt.*unsigned-codes"):
        quantize_onnx(unsigned, never_read())


def test_weights_that_are_not_finite_are_refused(model):
    for tensor in model.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, np.nan, np.float32), "b1"))
    with pytest.raises(ModelError, match=r"NaN or infinite: b1 \(16 of 16\)"):
        quantize_onnx(model, never_read())


def test_a_graph_without_anything_to_quantize():
    text = BODY[: BODY.index("{")].replace("10] logits", "1, 8, 8] logits") + "{ logits = Relu (image) }"
    with pytest.raises(ModelError, match="no Conv, Gemm, MatMul, residual add or average pool to quantize"):
        quantize_onnx(onnx.parser.parse_model(text), never_read())


def test_malformed_samples_and_methods_are_refused(model):
    with pytest.raises(DataError, match=r"expected \[0, 1\]") as caught:
        quantize_onnx(model, [images() * 255])
    assert caught.value.exit_code == 5
    with pytest.raises(DataError, match="no calibration samples"):
        quantize_onnx(model, [])
    with pytest.raises(UsageError, match="Unknown calibration method 'kl'"):
        quantize_onnx(model, [images()], "kl")  # pyright: ignore[reportArgumentType]
