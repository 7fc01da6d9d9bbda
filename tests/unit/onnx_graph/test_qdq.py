from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonical_bytes, canonicalize
from compress.onnx_graph.graph import GraphIndex, attributes
from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.placement import placements, quantizable_tensors
from compress.onnx_graph.qdq import (
    dequantize_weight,
    insert_qdq,
    quantize_weight,
    remove_qdq_pair,
    scales_of,
    strip_qdq,
)
from compress.onnx_graph.scales import Scale


def table_for(model, step=0.05):
    """The same step for every activation, max |w| / 127 for every output channel."""
    index = GraphIndex(model)
    table = {}
    for spot in placements(model):
        if spot.axis is None:
            table[spot.tensor] = Scale(float(np.float32(step)), "qat")
        else:
            weight = index.required(spot.tensor, "weight")
            other = tuple(axis for axis in range(weight.ndim) if axis != spot.axis)
            steps = (np.abs(weight).max(axis=other) / 127).astype(np.float32)
            table[spot.tensor] = Scale(tuple(map(float, steps)), "qat", spot.axis)
    return table


def test_form_of_an_inserted_graph(residual):
    signed = insert_qdq(residual, table_for(residual))
    onnx.checker.check_model(signed, full_check=True)
    index = GraphIndex(signed)
    operators = Counter(node.op_type for node in signed.graph.node)
    # one Q and one DQ for each of the six tensors, shared by their readers, and a DQ for each of the four weights
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (6, 10)
    for node in signed.graph.node:
        if node.op_type == "QuantizeLinear":
            assert index.required(node.input[1], "scale").shape == ()
            zero = index.required(node.input[2], "zero point")
            assert (zero.dtype, zero.shape, int(zero)) == (np.int8, (), 0)
        elif node.op_type == "DequantizeLinear" and node.input[0] in index.constants:
            assert index.required(node.input[0], "codes").dtype == np.int8
            assert attributes(node)["axis"] == 0
        elif node.op_type in ("Conv", "Gemm"):
            assert index.required(node.input[2], "bias").dtype == np.float32


def test_what_is_inserted_is_found_again(residual, depthwise, mlp):
    for model in (residual, depthwise, mlp):
        table = table_for(model)
        assert scales_of(insert_qdq(model, table)) == table
        assert scales_of(model) == {}


def test_insert_and_strip_are_inverse_on_quantized_weights(residual, images, infer):
    signed = insert_qdq(residual, table_for(residual))
    twin = strip_qdq(signed)
    assert summarize(twin)["qdq"]["quantize_nodes"] == 0
    assert [n.name for n in twin.graph.node] == [n.name for n in residual.graph.node]
    assert canonical_bytes(insert_qdq(twin, scales_of(signed))) == canonical_bytes(signed)
    assert np.abs(infer(twin, images) - infer(residual, images)).max() < 0.05


def test_insertion_is_idempotent(residual):
    signed = insert_qdq(residual, table_for(residual))
    assert canonical_bytes(insert_qdq(signed, {})) == canonical_bytes(signed)


def test_canonical_graphs_stay_canonical(residual):
    model = canonicalize(residual)
    signed = insert_qdq(model, table_for(model))
    assert canonical_bytes(canonicalize(signed)) == canonical_bytes(signed)


def test_a_partly_quantized_graph_is_completed(residual):
    table = table_for(residual)
    whole = insert_qdq(residual, table)
    part = remove_qdq_pair(whole, "c1")
    assert canonical_bytes(insert_qdq(part, table)) == canonical_bytes(whole)


def test_missing_scales_are_all_named(residual):
    table = table_for(residual)
    del table["r1"], table["w2"]
    with pytest.raises(ModelError, match=r"No scale for 2 tensor\(s\): r1, w2") as caught:
        insert_qdq(residual, table)
    assert caught.value.exit_code == 5


def test_scales_must_fit_the_channels(residual):
    table = table_for(residual) | {"w1": Scale((0.1, 0.2), "qat", 0)}
    with pytest.raises(ModelError, match="16 output channels but 2 scales"):
        insert_qdq(residual, table)
    table = table_for(residual) | {"w1": Scale((0.1,) * 16, "qat", 1)}
    with pytest.raises(ModelError, match="Weight w1 has scales along axis 1; expected 0, of output channels"):
        insert_qdq(residual, table)
    table = table_for(residual) | {"r1": Scale((0.1, 0.2), "qat")}
    with pytest.raises(ModelError, match="Activation r1 has 2 scales; expected one"):
        insert_qdq(residual, table)


def test_an_axis_may_be_counted_from_the_end(residual):
    table = table_for(residual)
    from_the_end = table | {"w1": Scale(table["w1"].scale, "qat", -4)}
    assert canonical_bytes(insert_qdq(residual, from_the_end)) == canonical_bytes(insert_qdq(residual, table))


def test_an_old_opset_is_refused(residual):
    residual.opset_import[0].version = 12
    with pytest.raises(ModelError, match="opset 12; expected at least 13"):
        insert_qdq(residual, {})


def test_weight_codes_by_hand():
    weight = np.array([[1.0, -0.5], [0.2, 0.1]], np.float32)
    steps = np.array([1 / 127, 0.2 / 127], np.float32)
    np.testing.assert_array_equal(quantize_weight(weight, steps, 0), [[127, -64], [127, 64]])
    assert quantize_weight(np.full((1, 1), -5.0, np.float32), np.full(1, 0.01, np.float32), 0)[0, 0] == -127
    codes = np.array([[2, -3]], np.int8)
    np.testing.assert_array_equal(dequantize_weight(codes, np.full(1, 0.5, np.float32), 0), [[1.0, -1.5]])


def test_weight_error_is_at_most_half_a_step():
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    steps = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    error = np.abs(dequantize_weight(quantize_weight(weight, steps, 0), steps, 0) - weight)
    assert (error <= steps.reshape(-1, 1, 1, 1) * 0.5001).all()


def test_a_weight_with_a_float_reader_keeps_its_float_form(build):
    body = """
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w)
        m = ReduceMax (w)
        logits = Mul (y, m)
    """
    weight = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    model = build(body, outputs="float[batch, 4, 8, 8] logits", w=weight)
    index = GraphIndex(insert_qdq(model, table_for(model)))
    assert index.required("w", "weight").dtype == np.float32
    assert index.required("w.int8", "weight").dtype == np.int8


def test_removing_one_pair_makes_one_layer_float(residual, images, infer):
    signed = insert_qdq(residual, table_for(residual))
    for name, kind in (("c0", "convs"), ("c1", "convs"), ("c2", "convs"), ("logits", "gemms")):
        before, after = summarize(signed)["qdq"], summarize(remove_qdq_pair(signed, name))["qdq"]
        assert after[f"{kind}_quantized"] == before[f"{kind}_quantized"] - 1
        assert after["float_layers"] == [name]
        infer(remove_qdq_pair(signed, name), images)


def test_other_readers_keep_the_pair(residual):
    control = remove_qdq_pair(insert_qdq(residual, table_for(residual)), "c1")
    index = GraphIndex(control)
    (add,) = [node for node in control.graph.node if node.op_type == "Add"]
    assert index.producer(add.input[1], "DequantizeLinear") is not None
    assert "r0" in quantizable_tensors(control)


def test_removing_needs_a_quantized_layer(residual):
    signed = insert_qdq(residual, table_for(residual))
    with pytest.raises(ModelError, match=r"No Conv, Gemm or MatMul is named 'c9'; there are c0, c1, c2, logits"):
        remove_qdq_pair(signed, "c9")
    with pytest.raises(ModelError, match="is not quantized"):
        remove_qdq_pair(residual, "c1")
    with pytest.raises(ModelError, match="is not quantized"):
        remove_qdq_pair(remove_qdq_pair(signed, "c1"), "c1")


def test_scales_of_refuses_what_a_table_cannot_say(build):
    pair = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z) "
    zero = np.array(0, np.int8)
    shape = "float[batch, 1, 8, 8] logits"
    twice = build(
        pair + "q2 = QuantizeLinear (image, s2, z) d2 = DequantizeLinear (q2, s2, z) logits = Add (d, d2)",
        outputs=shape, s=np.float32(0.1), s2=np.float32(0.2), z=zero,
    )  # fmt: skip
    with pytest.raises(ModelError, match="image is quantized twice"):
        scales_of(twice)
    bare = build(
        "logits = QuantizeLinear (image, s, z)", outputs="int8[batch, 1, 8, 8] logits", s=np.float32(1), z=zero
    )
    with pytest.raises(ModelError, match="has no DequantizeLinear behind it"):
        scales_of(bare)
    negative = build(pair + "logits = Relu (d)", outputs=shape, s=np.float32(-1), z=zero)
    with pytest.raises(ModelError, match="positive and finite"):
        scales_of(negative)
