from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.engines.onnx_check import axis_names, check_quantization, compute_nodes, model_from_bytes
from compress.errors import ModelError


def replace_initializer(model: onnx.ModelProto, name: str, value: np.generic) -> onnx.ModelProto:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return model


def test_the_nets_facts(net):
    model = model_from_bytes(net().SerializeToString())
    assert compute_nodes(model) == {"c1": "convolution", "c2": "convolution", "c3": "convolution", "head": "gemm"}
    assert axis_names(model) == {"image": ["batch", "", "", ""], "logits": ["batch", ""]}


def test_a_nameless_node_gets_the_parsers_name(net):
    model = net()
    for node in model.graph.node:
        node.name = ""
    assert list(compute_nodes(model)) == ["node_of_c1", "node_of_c2", "node_of_c3", "node_of_logits"]


def test_signed_symmetric_passes(net, all_activations):
    assert check_quantization(net(quantized=all_activations)) is None  # nothing is raised


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"garbage" * 10, "does not decode"), (b"", "has no nodes"), (bytes(100), "does not decode|has no nodes")],
)
def test_bytes_that_are_no_model(data, message):
    with pytest.raises(ModelError, match=message) as caught:
        model_from_bytes(data)
    assert caught.value.exit_code == 5


def test_an_invalid_graph(net):
    model = net()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"The ONNX model is invalid: .*nowhere"):
        model_from_bytes(model.SerializeToString())


def test_two_nodes_of_one_name(net):
    model = net()
    for node in model.graph.node[:2]:
        node.name = "same"
    with pytest.raises(ModelError, match=r"1 node names are used more than once.*: same") as caught:
        model_from_bytes(model.SerializeToString())
    assert caught.value.exit_code == 5


def test_tensors_outside_the_file(net):
    model = net()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="1 tensors lie outside the ONNX file: c1_weight"):
        model_from_bytes(model.SerializeToString())


def test_every_uint8_node_is_listed(net):
    with pytest.raises(ModelError) as caught:
        check_quantization(net(quantized=("image", "flat"), zero_point=np.uint8(0)))
    message = str(caught.value)
    assert "4 nodes differ" in message
    assert "image_codes (QuantizeLinear): uint8" in message
    assert "flat_dequantized (DequantizeLinear): uint8" in message
    assert caught.value.exit_code == 5
    assert "model.ort.onnx" in caught.value.hint


def test_a_zero_point_other_than_zero(net, all_activations):
    model = replace_initializer(net(quantized=all_activations), "c1_relu_zero", np.int8(3))
    with pytest.raises(ModelError, match=r"c1_relu_codes \(QuantizeLinear\): zero point is not 0"):
        check_quantization(model)


def test_a_zero_point_from_a_constant_node(net):
    model = net(quantized=("image",))
    constant = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.asarray(np.uint8(0))))
    model.graph.node.insert(0, constant)
    model.graph.node[1].input[2] = "zero"
    with pytest.raises(ModelError, match="uint8"):
        check_quantization(model)


def test_quantize_without_a_zero_point_means_uint8(net):
    model = net(quantized=("image",))
    del model.graph.node[0].input[2]
    with pytest.raises(ModelError, match=r"image_codes \(QuantizeLinear\): uint8"):
        check_quantization(model)
    model.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    check_quantization(model)


def test_a_quantized_bias(net, all_activations):
    model = net(quantized=all_activations)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int32), "bias_codes"))
    node = helper.make_node("DequantizeLinear", ["bias_codes", "image_scale"], ["bias"], name="bias")
    model.graph.node.insert(0, node)
    with pytest.raises(ModelError, match=r"bias \(DequantizeLinear\): int32 codes.*biases stay float"):
        check_quantization(model)
