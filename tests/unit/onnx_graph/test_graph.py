from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.graph import (
    GraphIndex,
    opset_of,
    refuse_control_flow,
    shapes_of,
    tensor_from,
    tidy,
    unique_name,
)


def test_index_knows_makers_readers_and_constants(residual):
    index = GraphIndex(residual)
    assert index.inputs == ["image"]
    assert index.outputs == ["logits"]
    assert index.producer("r0", "Relu") is index.producers["r0"]
    assert index.producer("r0", "Conv") is None
    assert index.producer("image") is None
    assert [(use.node.name, use.position) for use in index.uses("r0")] == [("c1", 0), ("a0", 1)]
    assert index.only_reader("r0") is None
    assert index.only_reader("c0") is index.producers["r0"]
    assert index.required("w0", "weight").shape == (16, 1, 3, 3)
    assert index.constant("r0") is None


def test_required_names_what_must_be_constant(residual):
    with pytest.raises(ModelError, match=r"The scale \(r0\) is computed in the graph; expected a constant") as caught:
        GraphIndex(residual).required("r0", "scale")
    assert caught.value.exit_code == 5


def test_shapes_name_the_dynamic_axis(residual):
    shapes = shapes_of(residual)
    assert shapes["r0"] == ("batch", 16, 8, 8)
    assert shapes["logits"] == ("batch", 10)
    assert shapes["w3"] == (10, 16)


def test_contradicting_shapes_are_refused(mlp):
    (weight,) = [tensor for tensor in mlp.graph.initializer if tensor.name == "w0"]
    weight.CopyFrom(numpy_helper.from_array(np.zeros((32, 63), np.float32), "w0"))
    with pytest.raises(ModelError, match="Shape inference fails"):
        shapes_of(mlp)


def test_tensor_from_keeps_zero_dimensions():
    assert list(tensor_from(np.float32(0.5), "s").dims) == []
    assert list(tensor_from(np.zeros((2, 3)).T, "t").dims) == [3, 2]


def test_unique_name_counts_up():
    taken = {"a", "a.1"}
    assert unique_name("a", taken) == "a.2"
    assert unique_name("b", taken) == "b"
    assert {"a.2", "b"} <= taken


def test_tidy_drops_dead_parts_and_orders_by_need(residual):
    expected = [node.name for node in tidy(residual).graph.node]
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(residual)
    nodes = list(shuffled.graph.node)[::-1]
    nodes.append(helper.make_node("Neg", ["image"], ["dead"], name="dead"))
    shuffled.graph.initializer.append(tensor_from(np.zeros(3), "unused"))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(copies)
    tidy(shuffled)
    assert [node.name for node in shuffled.graph.node] == expected
    assert "unused" not in {tensor.name for tensor in shuffled.graph.initializer}


def test_control_flow_is_refused():
    body = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["condition"], ["logits"], then_branch=body, else_branch=body)
    model = helper.make_model(helper.make_graph([node], "net", [], []))
    with pytest.raises(ModelError, match="The graph uses If; expected plain operators only") as caught:
        refuse_control_flow(model)
    assert caught.value.exit_code == 5


def test_opset_of_a_model_without_imports_is_zero(residual):
    assert opset_of(residual) == 20
    del residual.opset_import[:]
    assert opset_of(residual) == 0
