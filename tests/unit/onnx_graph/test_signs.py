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
