from __future__ import annotations

import numpy as np
import pytest

from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.signs import half_range_oracle, sign_oracle

BODY = """
    c = Conv (image, w)
    r = Relu (c)
    m = MaxPool <kernel_shape = [1, 1]> (r)
    s = Add (m, m)
    k = Clip (c, low, high)
    u = Clip (c, low)
    n = Clip (c, minus)
    logits = Sub (r, r)
"""


@pytest.fixture
def index(build):
    arrays = {
        "w": np.ones((1, 1, 1, 1), np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
        "minus": np.float32(-1),
    }
    return GraphIndex(build(BODY, "float[batch, 1, 8, 8] logits", **arrays))


def test_what_is_never_negative(index):
    non_negative = sign_oracle(index)
    names = ["image", "c", "r", "m", "s", "k", "u", "n", "logits"]
    assert [name for name in names if non_negative(name)] == ["r", "m", "s", "k", "u"]


def test_an_upper_bound_takes_all_codes(index):
    half_range = half_range_oracle(index)
    assert not half_range("k")
    assert half_range("u")
    assert half_range("r")
    assert not half_range("c")


def test_what_moves_codes_on_from_an_upper_bound_has_all_codes_too(build):
    body = """
        k = Clip (image, low, high)
        m = MaxPool <kernel_shape = [1, 1]> (k)
        u = Resize <mode = "nearest"> (m, none, ones)
        b = Concat <axis = 1> (u, k)
        r = Relu (image)
        c = Concat <axis = 1> (k, r)
        a = GlobalAveragePool (k)
        v = Resize <mode = "cubic"> (r, none, ones)
        f = ReduceMean <keepdims = 1> (r, axes)
        logits = Sub (r, r)
    """
    arrays = {"low": np.float32(0), "high": np.float32(6), "none": np.array([], np.float32)}
    ones, axes = np.ones(4, np.float32), np.array([2, 3])
    index = GraphIndex(build(body, "float[batch, 1, 8, 8] logits", ones=ones, axes=axes, **arrays))
    non_negative, half_range = sign_oracle(index), half_range_oracle(index)
    assert [name for name in "kmubrcavf" if not non_negative(name)] == ["v"]  # a cubic curve overshoots
    assert [name for name in "kmubrcavf" if half_range(name)] == ["r", "c", "a", "f"]
