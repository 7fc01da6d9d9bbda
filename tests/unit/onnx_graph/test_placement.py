from __future__ import annotations

import numpy as np

from compress.onnx_graph.placement import placements, quantizable_tensors


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
