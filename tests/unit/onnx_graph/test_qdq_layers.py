"""Layers that stay float, tensors that share a scale, weights with one scale: what insertion makes of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonical_bytes
from compress.onnx_graph.graph import GraphIndex, attributes, tidy
from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.placement import placements
from compress.onnx_graph.qdq import insert_qdq, release_layers, scales_of, share_scales, strip_qdq
from compress.onnx_graph.scales import Scale

CARRIED = """
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = Relu (c0)
    m0 = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1, b1)
    k0 = Concat <axis = 1> (m0, c1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (k0, w2, b2)
    p0 = GlobalAveragePool (c2)
    f0 = Flatten (p0)
    logits = Gemm <transB = 1> (f0, w3, b3)
"""


@pytest.fixture
def carried(build, random_weights):
    return build(CARRIED, **random_weights((8, 1, 3, 3), (8, 8, 3, 3), (16, 16, 3, 3), (10, 16)))


def table_for(model, steps=None, per_tensor=False):
    """0.05 for every activation that `steps` does not name; max |w| / 127 for weights."""
    index, table = GraphIndex(model), {}
    for spot in placements(model):
        if spot.axis is None:
            step = (steps or {}).get(spot.tensor, 0.05)
            table[spot.tensor] = Scale(float(np.float32(step)), "qat")
            continue
        weight = index.required(spot.tensor, "weight")
        other = None if per_tensor else tuple(axis for axis in range(weight.ndim) if axis != spot.axis)
        largest = (np.abs(weight).max(axis=other) / 127).astype(np.float32)
        value = float(largest) if per_tensor else tuple(map(float, largest))
        table[spot.tensor] = Scale(value, "qat", None if per_tensor else spot.axis)
    return table


def layers(model):
    """Names of the nodes that read a dequantized tensor."""
    index = GraphIndex(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type != "QuantizeLinear" and any(index.producer(name, "DequantizeLinear") for name in node.input)
    }


# Layers that stay float


def test_float_layers_get_no_pairs_and_others_keep_theirs(residual, images, infer):
    table = table_for(residual)
    signed = insert_qdq(residual, table, ["c1", "logits"])
    onnx.checker.check_model(signed, full_check=True)
    assert summarize(signed)["qdq"]["float_layers"] == ["c1", "logits"]
    assert layers(signed) == {"c0", "c2", "a0", "p0"}
    # nothing but c1 and logits read w1, w3 and f0
    assert set(scales_of(signed)) == {"image", "w0", "r0", "r1", "w2", "c2", "r2"}
    assert np.abs(infer(signed, images) - infer(residual, images)).max() < 0.5


def test_releasing_is_leaving_out(residual):
    table = table_for(residual)
    whole = insert_qdq(residual, table)
    assert scales_of(release_layers(whole, ["c1", "a0"])) == scales_of(insert_qdq(residual, table, ["c1", "a0"]))
    # the weight comes back as what its codes stand for, under its own name
    released, twin = GraphIndex(release_layers(whole, ["c1"])), GraphIndex(strip_qdq(whole))
    np.testing.assert_array_equal(released.required("w1", "weight"), twin.required("w1", "weight"))
    assert canonical_bytes(insert_qdq(whole, {}, ["c1"])) == canonical_bytes(release_layers(whole, ["c1"]))


def test_releasing_nothing_changes_nothing(residual):
    whole = insert_qdq(residual, table_for(residual))
    assert canonical_bytes(release_layers(whole, [])) == canonical_bytes(whole)
    assert canonical_bytes(release_layers(residual, ["c1"])) == canonical_bytes(tidy(residual))


def test_a_weight_that_another_layer_reads_keeps_its_codes(build):
    body = """
        f0 = Flatten (image)
        g0 = Gemm <transB = 1> (f0, w)
        g1 = Gemm <transB = 1> (g0, w)
        logits = Relu (g1)
    """
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = build(body, outputs="float[batch, 64] logits", w=weight)
    index = GraphIndex(release_layers(insert_qdq(model, table_for(model)), ["g0"]))
    assert index.required("w", "codes").dtype == np.int8
    assert index.required("w.float", "weight").dtype == np.float32


# Shared scales


def test_a_group_takes_its_largest_scale(carried):
    table = table_for(carried, {"r0": 0.1, "m0": 0.2, "c1": 0.4, "k0": 0.3})
    shared = share_scales(carried, table)
    group = ("r0", "m0", "c1", "k0")
    assert {shared[name] for name in group} == {table["c1"]}
    assert {name: scale for name, scale in shared.items() if name not in group} == {
        name: scale for name, scale in table.items() if name not in group
    }
    signed = insert_qdq(carried, table)  # shares by itself
    assert {name: scale.scale for name, scale in scales_of(signed).items() if scale.axis is None} == pytest.approx(
        {"image": 0.05, "r0": 0.4, "m0": 0.4, "c1": 0.4, "k0": 0.4, "c2": 0.05, "f0": 0.05}
    )
    assert canonical_bytes(insert_qdq(signed, {})) == canonical_bytes(signed)


def test_a_trained_scale_goes_to_the_whole_group(carried, images, infer):
    """Only what reads the concatenation was trained: the pairs in front of it follow, and change nothing."""
    signed = insert_qdq(carried, table_for(carried))
    part = release_layers(signed, ["m0", "k0"])
    assert layers(part) == layers(signed) - {"m0", "k0"}
    again = insert_qdq(part, {})
    assert canonical_bytes(again) == canonical_bytes(signed)
    np.testing.assert_allclose(infer(again, images, optimize=False), infer(part, images, optimize=False), atol=1e-5)


def test_scales_that_training_made_different_are_not_merged(carried):
    signed = insert_qdq(carried, table_for(carried, {"k0": 0.02}), ["m0", "k0"])  # r0 keeps 0.05
    assert {spot.node.name for spot in placements(signed)} == {"c0", "c1", "c2", "p0", "logits"} | {"k0"}
    assert scales_of(insert_qdq(signed, {}))["m0"].scale == pytest.approx(0.02)  # k0 carries on its own


def test_nothing_is_invented_for_a_group_without_scales(carried):
    assert share_scales(carried, {}) == {}
    with pytest.raises(ModelError, match=r"No scale for .*: c1, c2, f0, image, k0, m0, r0") as caught:
        insert_qdq(carried, {})
    assert caught.value.exit_code == 5


# One scale for a whole weight


@pytest.mark.parametrize("name", ["residual", "mlp", "transformer"])
def test_a_weight_may_have_one_scale(name, request, images, infer):
    model = request.getfixturevalue(name)
    table = table_for(model, per_tensor=True)
    signed = insert_qdq(model, table)
    onnx.checker.check_model(signed, full_check=True)
    index = GraphIndex(signed)
    stored = [n for n in signed.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in index.constants]
    assert stored
    for node in stored:
        assert index.required(node.input[1], "scale").shape == index.required(node.input[2], "zero point").shape == ()
        assert "axis" not in attributes(node)
    assert scales_of(signed) == table
    assert canonical_bytes(insert_qdq(strip_qdq(signed), table)) == canonical_bytes(signed)
    assert np.abs(infer(signed, images) - infer(model, images)).max() < 1


def test_one_scale_serves_readers_along_two_axes(build, images, infer):
    body = """
        f0 = Flatten (image)
        g0 = Gemm <transB = 1> (f0, w)
        logits = Gemm (g0, w)
    """
    weight = np.random.default_rng(0).normal(0, 0.1, (48, 64)).astype(np.float32)
    model = build(body, outputs="float[batch, 64] logits", w=weight)
    table = table_for(model, per_tensor=True)
    signed = insert_qdq(model, table)
    onnx.checker.check_model(signed, full_check=True)
    assert scales_of(signed) == table, "the weight is stored once, under its own name"
    assert np.abs(infer(signed, images) - infer(model, images)).max() < 0.2
    with pytest.raises(ModelError, match="Weight w has scales along axis 1; expected 0, of output channels") as caught:
        insert_qdq(model, table_for(model))
    assert caught.value.where == "node g0"
    assert caught.value.exit_code == 5
