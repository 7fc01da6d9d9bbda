from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from compress.errors import ModelError
from compress.onnx_graph.inspect import FLOAT_KERNELS, INTEGER_KERNELS, kernels, summarize
from compress.onnx_graph.qdq import remove_qdq_pair
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

MINMAX = QuantizeSettings(method="minmax")


def test_a_float_graph(residual):
    got = summarize(residual)
    assert got["opset"] == 20
    assert got["operators"] == {"Add": 1, "Conv": 3, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 3, "Reshape": 1}
    assert got["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert got["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert got["parameters"] == 16 * 9 + 16 + 2 * (16 * 16 * 9 + 16) + 160 + 10
    assert got["size_bytes"] == len(residual.SerializeToString())
    assert got["qdq"]["convs"] == 3
    assert got["qdq"]["convs_quantized"] == 0
    assert got["qdq"]["float_layers"] == ["c0", "c1", "c2", "logits"]
    assert json.loads(json.dumps(got)) == got


def test_both_int8_graphs(residual, images):
    result = quantize_onnx(residual, [images], QuantizeSettings(method="minmax"))
    signed, unsigned = summarize(result.signed), summarize(result.unsigned)
    for got, dtype in ((signed, "int8"), (unsigned, "uint8")):
        assert (got["qdq"]["convs_quantized"], got["qdq"]["gemms_quantized"]) == (3, 1)
        assert got["qdq"]["activation_dtypes"] == [dtype]
        assert got["qdq"]["float_layers"] == []
        assert got["parameters"] == summarize(residual)["parameters"]
    assert signed["qdq"]["quantize_nodes"] == 6


def test_a_layer_left_float_is_named(residual, images):
    signed = quantize_onnx(residual, [images], QuantizeSettings(method="minmax")).signed
    assert summarize(remove_qdq_pair(signed, "c1"))["qdq"]["float_layers"] == ["c1"]


def saved(model, path):
    onnx.save(model, path)
    return path


def test_the_kernels_that_really_run(residual, images, tmp_path):
    result = quantize_onnx(residual, [images], MINMAX)
    got = kernels(saved(result.unsigned, tmp_path / "model.ort.onnx"))
    assert got["operators"]["QLinearConv"] == 3
    assert (got["integer_layers"], got["float_layers"]) == (4, [])
    assert json.loads(json.dumps(got)) == got
    floats = kernels(saved(residual, tmp_path / "float.onnx"))
    assert floats["integer_layers"] == 0
    assert len(floats["float_layers"]) == 4


def test_a_layer_without_an_integer_kernel_is_named(residual, images, tmp_path):
    settings = QuantizeSettings(method="minmax", float_layers=("c1",))
    got = kernels(saved(quantize_onnx(residual, [images], settings).unsigned, tmp_path / "model.ort.onnx"))
    # c0 too: ONNX Runtime's integer convolution writes codes, and c1 wants floats
    assert got["integer_layers"] == 2
    assert [name for layer in ("c0", "c1", "c2") for name in got["float_layers"] if layer in name] == got[
        "float_layers"
    ]
    assert len(got["float_layers"]) == 2


def test_a_file_that_onnx_runtime_refuses(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime refuses the file") as caught:
        kernels(path)
    assert (caught.value.exit_code, caught.value.where) == (5, str(path))


def test_fused_attention_is_a_float_layer(build, tmp_path):
    tokens = np.array([0, 8, 8])
    model = build("t = Reshape (image, tokens) logits = Relu (t)", "float[batch, 8, 8] logits", tokens=tokens)
    node = model.graph.node[1]
    node.op_type, node.domain = "MultiHeadAttention", "com.microsoft"
    node.input.extend(["t", "t"])
    node.attribute.append(helper.make_attribute("num_heads", 2))
    model.opset_import.add(domain="com.microsoft", version=1)
    got = kernels(saved(model, tmp_path / "model.onnx"))
    assert (got["integer_layers"], got["float_layers"]) == (0, ["logits"])


def test_a_kernel_is_of_one_kind():
    assert not INTEGER_KERNELS & FLOAT_KERNELS
