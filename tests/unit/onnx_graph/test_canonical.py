from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonical_bytes, canonicalize, strip_metadata
from compress.onnx_graph.graph import GraphIndex


def test_names_follow_the_computation(residual):
    model = canonicalize(residual)
    names = [node.name for node in model.graph.node]
    assert " ".join(names) == ("conv_0 relu_0 conv_1 relu_1 conv_2 add_0 relu_2 globalaveragepool_0 reshape_0 gemm_0")
    assert model.graph.node[-1].output[0] == "logits"
    constants = set(GraphIndex(model).constants)
    assert {"conv_0.weight", "conv_0.bias", "gemm_0.weight", "reshape_0.1"} <= constants
    onnx.checker.check_model(model, full_check=True)


def test_other_names_order_and_metadata_give_the_same_bytes(residual):
    other = onnx.ModelProto()
    other.CopyFrom(residual)
    other.producer_name, other.producer_version, other.doc_string = "torch", "9", "/home/someone/model.py"
    other.metadata_props.add(key="path", value="/home/someone")
    for number, node in enumerate(other.graph.node):
        node.name = f"n{number}"
        node.doc_string = "stack trace"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/someone/model.py")
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                field[position] = name if name in ("image", "logits") else f"x_{name}"
    for tensor in other.graph.initializer:
        tensor.name = f"x_{tensor.name}"
    assert canonical_bytes(canonicalize(other)) == canonical_bytes(canonicalize(residual))
    assert b"someone" not in canonical_bytes(other)


def test_another_weight_gives_other_bytes(residual):
    before = canonical_bytes(canonicalize(residual))
    weight = onnx.numpy_helper.to_array(residual.graph.initializer[1]).copy()
    weight.flat[0] += 1e-6
    residual.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight, residual.graph.initializer[1].name))
    assert canonical_bytes(canonicalize(residual)) != before


def test_canonicalizing_twice_changes_nothing(residual, depthwise, mlp):
    for model in (residual, depthwise, mlp):
        once = canonicalize(model)
        assert canonical_bytes(canonicalize(once)) == canonical_bytes(once)


def test_computation_is_untouched(residual, images, infer):
    np.testing.assert_array_equal(infer(canonicalize(residual), images), infer(residual, images))


def test_storage_form_of_weights_does_not_matter(mlp):
    expected = canonical_bytes(canonicalize(mlp))
    for tensor in mlp.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist()))
    assert canonical_bytes(canonicalize(mlp)) == expected


def test_attributes_with_default_values_go_away(build):
    spelled = build(
        "logits = Gemm <transB = 1, alpha = 1.0, beta = 1.0, transA = 0> (x, w)",
        w=np.ones((10, 64), np.float32),
        x=np.ones((1, 64), np.float32),
        outputs="float[1, 10] logits",
    )
    assert [a.name for a in canonicalize(spelled).graph.node[0].attribute] == ["transB"]


def test_a_tensor_cannot_take_the_name_of_an_output(build):
    model = build("a = Relu (image) relu_0 = Neg (a)", outputs="float[batch, 1, 8, 8] relu_0")
    names = [output for node in canonicalize(model).graph.node for output in node.output]
    assert sorted(names) == ["relu_0", "relu_0.1"]


def test_foreign_domains_are_refused(mlp):
    mlp.graph.node[2].domain = "com.microsoft"
    mlp.graph.node[2].op_type = "Gelu"
    with pytest.raises(ModelError, match=r"outside the ONNX standard: com\.microsoft::Gelu") as caught:
        canonicalize(mlp)
    assert caught.value.exit_code == 5


def test_strip_metadata_works_in_place(mlp):
    mlp.producer_name = "torch"
    assert strip_metadata(mlp) is mlp
    assert not mlp.producer_name
