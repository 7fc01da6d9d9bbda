from __future__ import annotations

import json

from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.qdq import remove_qdq_pair
from compress.quantization.quantize import quantize_onnx


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
    result = quantize_onnx(residual, [images], "minmax")
    signed, unsigned = summarize(result.signed), summarize(result.unsigned)
    for got, dtype in ((signed, "int8"), (unsigned, "uint8")):
        assert (got["qdq"]["convs_quantized"], got["qdq"]["gemms_quantized"]) == (3, 1)
        assert got["qdq"]["activation_dtypes"] == [dtype]
        assert got["qdq"]["float_layers"] == []
        assert got["parameters"] == summarize(residual)["parameters"]
    assert signed["qdq"]["quantize_nodes"] == 6


def test_a_layer_left_float_is_named(residual, images):
    signed = quantize_onnx(residual, [images], "minmax").signed
    assert summarize(remove_qdq_pair(signed, "c1"))["qdq"]["float_layers"] == ["c1"]
