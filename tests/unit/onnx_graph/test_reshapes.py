from __future__ import annotations

import numpy as np
import pytest

from compress.onnx_graph.graph import GraphIndex, tidy
from compress.onnx_graph.reshapes import merge_reshapes, reshape_from_flatten

PAIR = """
    y = Reshape (image, rows)
    q = QuantizeLinear (y, s, z)
    d = DequantizeLinear (q, s, z)
    m = Reshape (d, flat)
    p = QuantizeLinear (m, {behind}, z)
    logits = DequantizeLinear (p, {behind}, z)
"""


def sizes(model):
    """Stored shape of every Reshape, in order."""
    index = GraphIndex(model)
    nodes = [node for node in model.graph.node if node.op_type == "Reshape"]
    return [index.required(node.input[1], "shape").tolist() for node in nodes]


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_flatten_in_front_of_channels_is_a_reshape(build, images, infer):
    model = build("logits = Flatten (image)", outputs="float[batch, 64] logits")
    expected = infer(model, images)
    reshape_from_flatten(model)
    assert operators(model) == ["Reshape"]
    np.testing.assert_array_equal(infer(model, images), expected)
    other = build("logits = Flatten <axis = 2> (image)", outputs="float[rows, 64] logits")
    reshape_from_flatten(other)
    assert operators(other) == ["Flatten"]


def test_two_reshapes_are_one(build, images, infer):
    body = "y = Reshape (image, rows) z = Reshape (y, heads) logits = Relu (z)"
    arrays = {"rows": np.array([0, 16, 4]), "heads": np.array([0, 4, 4, 4])}
    model = build(body, outputs="float[batch, 4, 4, 4] logits", **arrays)
    expected = infer(model, images)
    merge_reshapes(tidy(model), {})
    assert operators(model) == ["Reshape", "Relu"]
    assert sizes(model) == [[-1, 4, 4, 4]]  # the 0 was the batch of y, not of the image
    np.testing.assert_array_equal(infer(model, images), expected)


def test_a_reshape_that_others_read_stays(build):
    body = """
        y = Reshape (image, rows)
        z = Reshape (y, heads)
        b = Relu (y)
        c = Reshape (b, heads)
        logits = Add (z, c)
    """
    arrays = {"rows": np.array([0, 16, 4]), "heads": np.array([0, 4, 4, 4])}
    model = build(body, outputs="float[batch, 4, 4, 4] logits", **arrays)
    merge_reshapes(tidy(model), {})
    assert operators(model).count("Reshape") == 3


@pytest.mark.parametrize(("behind", "left"), [("s", 1), ("t", 2)])
def test_a_pair_between_goes_if_another_of_its_scale_stands_behind(build, images, infer, behind, left):
    arrays = {"rows": np.array([0, 8, 8]), "flat": np.array([-1, 8]), "z": np.int8(0), "s": np.float32(0.01)}
    body = PAIR.format(behind=behind)
    model = build(body, outputs="float[rows, 8] logits", t=np.float32(0.02), **arrays)
    expected = infer(model, images, optimize=False)
    merge_reshapes(tidy(model), {})
    assert operators(model).count("Reshape") == left
    assert operators(model).count("QuantizeLinear") == left
    np.testing.assert_array_equal(infer(model, images, optimize=False), expected)


def test_a_reshape_to_what_was_a_matrix_before_goes_too(build, images, infer):
    body = """
        f = Flatten <axis = 3> (image)
        y = Reshape (f, rows)
        m = Reshape (y, flat)
        logits = Relu (m)
    """
    arrays = {"rows": np.array([-1, 8, 8]), "flat": np.array([-1, 8])}
    model = build(body, outputs="float[rows, 8] logits", **arrays)
    expected = infer(model, images)
    merge_reshapes(tidy(model), {"f": 8})
    assert operators(model) == ["Flatten", "Relu"]
    np.testing.assert_array_equal(infer(model, images), expected)
