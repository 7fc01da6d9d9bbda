from __future__ import annotations

import re
from collections import Counter
from typing import get_args

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
from compress.onnx_graph.scales import Scale, ScaleTable
from compress.quantization.calibration import calibrate
from compress.quantization.quantize import quantize_onnx, resolve_float_layers
from compress.quantization.settings import Method, QuantizeSettings

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


@pytest.mark.parametrize("method", get_args(Method))
def test_a_float_graph_is_calibrated(model, method):
    result = quantize_onnx(model, (images(16, seed) for seed in range(4)), QuantizeSettings(method=method))
    assert (result.calibrated, result.kept, result.notes) == (5, 0, [])
    assert set(result.scales) == ACTIVATIONS | WEIGHTS
    assert {result.scales[name].source for name in ACTIVATIONS} == {method}
    assert {result.scales[name].source for name in WEIGHTS} == {"max"}
    found = scales_of(result.signed)
    assert {name: scale.scale for name, scale in found.items()} == {n: s.scale for n, s in result.scales.items()}
    for graph in (result.signed, result.unsigned):
        onnx.checker.check_model(graph, full_check=True)
        coverage = summarize(graph)["qdq"]
        assert (coverage["convs_quantized"], coverage["gemms_quantized"]) == (2, 1)


@pytest.mark.parametrize("method", get_args(Method))
def test_little_is_lost(model, method):
    result = quantize_onnx(model, [images()], QuantizeSettings(method=method))
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
    first = quantize_onnx(model, [images()], QuantizeSettings(method="minmax"))
    part = remove_qdq_pair(first.signed, "c0")  # image loses its scale
    result = quantize_onnx(part, [images()], QuantizeSettings(method="minmax"))
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
    with pytest.raises(DataError, match=r"expected \[-2, 2\]"):
        quantize_onnx(model, [images() * 255], value_range=(-2.0, 2.0))
    quantize_onnx(model, [images() * 255], value_range=None)


def inputs_of(model, name):
    """Operators in front of the inputs of a node."""
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == name)
    return [producers.get(tensor, "constant or input") for tensor in node.input]


@pytest.mark.parametrize("names", [("c1",), ("c[1]",), ("logits", "c1")])
def test_float_layers_stay_float(model, names):
    result = quantize_onnx(model, [images()], QuantizeSettings(float_layers=names))
    assert inputs_of(result.signed, "c1")[:2] == ["Relu", "constant or input"]
    assert inputs_of(result.signed, "c0")[:2] == ["DequantizeLinear", "DequantizeLinear"]
    assert inputs_of(result.signed, "a0") == ["DequantizeLinear", "DequantizeLinear"]  # reads c1, and is quantized
    assert "w1" not in result.scales
    assert result.notes == [f"left in float as asked: {', '.join(sorted(names)).replace('c[1]', 'c1')}"]
    data = images(256, seed=9)
    assert (infer(result.unsigned, data).argmax(1) == infer(model, data).argmax(1)).mean() > 0.95


def test_an_activation_that_only_float_layers_read_gets_no_scale(model):
    result = quantize_onnx(model, [images()], QuantizeSettings(float_layers=("c0",)))
    assert "image" not in result.scales
    assert result.calibrated == 4


def test_float_layers_lose_the_pairs_that_they_have(model):
    first = quantize_onnx(model, [images()])
    result = quantize_onnx(first.signed, never_read(), QuantizeSettings(float_layers=("c0",)))
    assert inputs_of(result.signed, "c0")[:2] == ["constant or input", "constant or input"]
    assert (result.calibrated, result.kept) == (0, 6)
    assert set(result.scales) == (ACTIVATIONS | WEIGHTS) - {"image", "w0"}


@pytest.mark.parametrize(("name", "near"), [("c3", "c[01]"), ("r0", r"\w+"), ("conv*", r"\w+"), ("", r"\w+")])
def test_unknown_float_layers_are_named(model, name, near):
    with pytest.raises(UsageError, match=rf"No layer that is quantized is named '{re.escape(name)}'; nearest: {near}"):
        quantize_onnx(model, never_read(), QuantizeSettings(float_layers=(name,)))


def test_patterns_mean_nodes_in_their_order(model):
    assert resolve_float_layers(model, ["logits", "c*"]) == ("c0", "c1", "logits")
    assert resolve_float_layers(model, []) == ()


def test_everything_in_float_is_refused(model):
    with pytest.raises(ModelError, match="All layers that could be quantized are to stay in float"):
        quantize_onnx(model, never_read(), QuantizeSettings(float_layers=("*",)))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weights", ["max", "mse"])
def test_weights_as_chosen(model, weights, granularity):
    result = quantize_onnx(model, [images()], QuantizeSettings(weights=weights, granularity=granularity))
    for name in WEIGHTS:
        assert result.scales[name].source == weights
        assert isinstance(result.scales[name].scale, float) == (granularity == "per_tensor")
    data = images(256, seed=9)
    for graph in (result.signed, result.unsigned):
        onnx.checker.check_model(graph, full_check=True)
        assert (infer(graph, data).argmax(1) == infer(model, data).argmax(1)).mean() > 0.95
    again = quantize_onnx(result.signed, never_read())
    assert {name: s.scale for name, s in again.scales.items()} == {n: s.scale for n, s in result.scales.items()}


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_unsigned_file_runs_on_integer_kernels(model, granularity, tmp_path):
    result = quantize_onnx(model, [images()], QuantizeSettings(granularity=granularity))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(result.unsigned.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kernels["QLinearConv"] == 2
    assert kernels["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(kernels)


def test_activations_are_the_table_without_weights(model):
    assert set(quantize_onnx(model, [images()]).activations) == ACTIVATIONS


JOINED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 8, 8] image) => (float[batch, 8, 8, 8] logits) {
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0)
    r0 = Relu (c0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1)
    both = Concat <axis = 1> (r0, c1)
    logits = Conv <kernel_shape = [1, 1]> (both, w2)
}
"""


def test_tensors_that_concat_joins_get_the_largest_scale():
    model = onnx.parser.parse_model(JOINED)
    rng = np.random.default_rng(0)
    shapes = {"w0": (4, 1, 3, 3), "w1": (4, 4, 3, 3), "w2": (8, 8, 1, 1)}
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    settings = QuantizeSettings(method="minmax")
    scales = quantize_onnx(model, [images()], settings).scales
    assert scales["r0"] == scales["c1"] == scales["both"]
    apart = calibrate(model, ["r0", "c1"], [images()], "minmax").scales
    assert scales["both"] == max(apart.values(), key=lambda scale: scale.scale)
    first = quantize_onnx(model, [images()], settings).signed
    again = quantize_onnx(remove_qdq_pair(first, "c1"), never_read(), settings)
    assert again.scales["r0"].scale == scales["both"].scale


TIED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 8, 8] image) => (float[batch, 64] logits) {
    f0 = Flatten (image)
    g0 = Gemm <transB = 1> (f0, w)
    r0 = Relu (g0)
    logits = Gemm (r0, w)
}
"""


@pytest.mark.parametrize("rows", [64, 48])
def test_a_weight_that_is_read_along_two_axes_keeps_its_accuracy(rows):
    model = onnx.parser.parse_model(TIED)
    weight = np.random.default_rng(0).normal(size=(rows, 64)) * np.geomspace(0.01, 1, rows)[:, None]
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    for node in model.graph.node:
        node.name = node.output[0]
    result = quantize_onnx(model, [images()])
    assert result.scales["w"] == Scale(result.scales["w"].scale, "max")
    assert any(note.startswith("weight w: its readers want scales along different axes") for note in result.notes)
    want = infer(model, images(seed=9))
    for graph in (result.signed, result.unsigned):
        noise = infer(graph, images(seed=9)) - want
        assert 10 * np.log10((want**2).sum() / (noise**2).sum()) > 20  # dB
