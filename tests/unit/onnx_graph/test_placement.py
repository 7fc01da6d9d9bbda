from __future__ import annotations

import numpy as np
import pytest

from compress.onnx_graph.graph import tidy
from compress.onnx_graph.placement import float_notes, placements, quantizable_tensors, shared_scales


def spots(model):
    return [(spot.node.name, spot.tensor, spot.axis) for spot in placements(model)]


def test_a_residual_net(residual):
    assert spots(residual) == [
        ("c0", "image", None),
        ("c0", "w0", 0),
        ("c1", "r0", None),
        ("c1", "w1", 0),
        ("c2", "r1", None),
        ("c2", "w2", 0),
        ("a0", "c2", None),
        ("a0", "r0", None),
        ("p0", "r2", None),
        ("logits", "f0", None),
        ("logits", "w3", 0),
    ]
    assert quantizable_tensors(residual) == ["image", "r0", "r1", "c2", "r2", "f0"]


def test_depthwise_convs_have_a_scale_per_channel_too(depthwise):
    assert ("c1", "w1", 0) in spots(depthwise)


def test_biases_and_position_tables_are_no_residuals(build):
    model = build("a = Add (image, table) logits = Add (a, a)", outputs="float[batch, 1, 8, 8] logits",
                  table=np.ones((1, 1, 8, 8), np.float32))  # fmt: skip
    assert [node for node, *_ in spots(model)] == ["logits", "logits"]


def test_adds_that_broadcast_are_no_residuals(build):
    model = build("p = GlobalMaxPool (image) logits = Add (image, p)", outputs="float[batch, 1, 8, 8] logits")
    assert spots(model) == []


def test_attention_scores_plus_mask_are_no_residual(build):
    body = "m = Neg (image) a = Add (image, m) logits = Softmax (a)"
    assert spots(build(body, outputs="float[batch, 1, 8, 8] logits")) == []


def test_matrix_products(build):
    weight = np.ones((8, 10), np.float32)
    body = "t = Transpose <perm = [0, 1, 3, 2]> (image) s = MatMul (image, t) logits = MatMul (s, w)"
    model = build(body, outputs="float[batch, 1, 8, 10] logits", w=weight)
    assert spots(model) == [("s", "image", None), ("s", "t", None), ("logits", "s", None), ("logits", "w", 1)]


def test_gemms_by_the_layout_of_their_weight(build):
    body = "f = Flatten (image) logits = Gemm (f, w)"
    assert spots(build(body, w=np.ones((64, 10), np.float32)))[1] == ("logits", "w", 1)
    scaled = "f = Flatten (image) logits = Gemm <alpha = 0.5> (f, w)"
    assert spots(build(scaled, w=np.ones((64, 10), np.float32))) == []


def test_a_conv_with_computed_weights_stays_float(build):
    model = build("w = Relu (k) logits = Conv (image, w)", outputs="float[batch, 1, 8, 8] logits",
                  k=np.ones((1, 1, 1, 1), np.float32))  # fmt: skip
    assert spots(model) == []


ENCODER = [
    ("m0", "t0", None), ("m0", "w0", 1),
    ("m1", "n0", None), ("m1", "w1", 1), ("m2", "n0", None), ("m2", "w2", 1), ("m3", "n0", None), ("m3", "w3", 1),
    ("s0", "q0", None), ("s0", "k0", None), ("o0", "p0", None), ("o0", "v0", None),
    ("m4", "o2", None), ("m4", "w4", 1), ("m5", "n1", None), ("m5", "w5", 1), ("m6", "r5", None), ("m6", "w6", 1),
    ("logits", "g0", None), ("logits", "w7", 0),
]  # fmt: skip


def test_a_transformer(transformer):
    """Every product, both operands of those of attention; sums that a LayerNormalization reads stay float."""
    assert sorted(spots(transformer)) == sorted(ENCODER)


def test_a_sum_without_a_normalization_behind_it_is_a_residual(transformer):
    for node in transformer.graph.node:
        if node.op_type == "ReduceMean":
            node.input[0] = "x2"  # what n2 normalized
    tidy(transformer)
    assert [spot for spot in spots(transformer) if spot[0] in ("x1", "x2")] == [("x2", "x1", None), ("x2", "a6", None)]


CARRIED = """
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = Relu (c0)
    m0 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r0)
    u0 = Resize <mode = "nearest"> (m0, none, twice)
    k0 = Concat <axis = 1> (u0, r0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (k0, w1, b1)
    p0 = GlobalAveragePool (c1)
    f0 = Reshape (p0, shape)
    logits = Gemm <transB = 1> (f0, w2, b2)
"""


def carried(build, random_weights, body=CARRIED):
    parts = {"none": np.array([], np.float32), "twice": np.array([1, 1, 2, 2], np.float32)}
    weights = random_weights((8, 1, 3, 3), (16, 16, 3, 3), (10, 16))
    return build(body, shape=np.array([-1, 16]), **parts, **weights)


def test_codes_are_carried_through_pools_resizes_and_concatenations(build, random_weights):
    model = carried(build, random_weights)
    inputs = [
        (node, tensor) for node, tensor, axis in spots(model) if node in ("m0", "u0", "k0", "c1") and axis is None
    ]
    assert inputs == [("m0", "r0"), ("u0", "m0"), ("k0", "u0"), ("k0", "r0"), ("c1", "k0")]
    assert shared_scales(model) == [("r0", "m0", "u0", "k0")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (k0, w1, b1)", "c1 = Neg (k0)"),  # a float reader
        ('mode = "nearest"', 'mode = "cubic"'),  # overshoots
    ],
)
def test_what_cannot_carry_codes_stays_float(build, random_weights, old, new):
    model = carried(build, random_weights, CARRIED.replace(old, new))
    assert not [node for node, *_ in spots(model) if node in ("m0", "u0")]


def test_float_layers_have_no_spots(residual, build, random_weights):
    left = placements(residual, ["c1", "logits"])
    assert {spot.node.name for spot in left} == {"c0", "c2", "a0", "p0"}
    assert "r0" in {spot.tensor for spot in left}  # the residual add reads it too
    model = carried(build, random_weights)
    assert shared_scales(model, ["c1"]) == []
    assert {spot.node.name for spot in placements(model, ["c1"])} == {"c0", "p0", "logits"}


def test_layers_that_stay_float_are_named(build):
    model = build(
        "t = ConvTranspose (image, w) logits = Relu (t)",
        outputs="float[batch, 2, 8, 8] logits",
        w=np.ones((1, 2, 1, 1), np.float32),
    )
    assert spots(model) == []
    assert float_notes(model) == ["t: ConvTranspose stays float, TensorRT builds it from int8 but computes in float"]
    assert float_notes(build("logits = Relu (image)", outputs="float[batch, 1, 8, 8] logits")) == []


@pytest.mark.parametrize(
    ("between", "quantized"),
    [
        ("t = Reshape (c, rows)", True),
        ("r = Relu (c) t = Reshape (r, rows)", True),
        ("s = Sigmoid (c) t = Reshape (s, rows)", False),  # the convolution is not what is quantized
        ("t = Relu (c)", False),  # a bias that stands apart
    ],
)
def test_patches_are_quantized_where_positions_are_added(build, between, quantized):
    body = f"c = Conv <kernel_shape = [1, 1]> (image, w) {between} logits = Add (table, t)"
    shape = "float[batch, 4, 8, 8] logits" if "Reshape" not in between else "float[batch, 4, 64] logits"
    arrays = {"w": np.ones((4, 1, 1, 1), np.float32), "table": np.ones((1, 4, 1, 1), np.float32)}
    if "Reshape" in between:
        arrays |= {"rows": np.array([0, 4, 64]), "table": np.ones((1, 4, 64), np.float32)}
    found = [spot for spot in spots(build(body, outputs=shape, **arrays)) if spot[0] == "logits"]
    assert found == ([("logits", "t", None)] if quantized else [])
