from __future__ import annotations

import numpy as np
import pytest

from compress.engines.session import TensorSpec, check_inputs
from compress.errors import DataError

IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 8))


def test_fitting_inputs_pass():
    check_inputs({"image": np.zeros((5, 3, 8, 8), np.float32)}, [IMAGE])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'image' is missing"),
        ({"picture": np.zeros((1, 3, 8, 8), np.float32)}, "unknown input 'picture'; the model has image"),
        ({"image": np.zeros((1, 3, 8, 8))}, "has type float64, expected float32"),
        ({"image": np.zeros((1, 3, 8, 9), np.float32)}, r"has shape \(1, 3, 8, 9\), expected \(batch, 3, 8, 8\)"),
        ({"image": np.zeros((3, 8, 8), np.float32)}, r"has shape \(3, 8, 8\)"),
        ({"image": np.zeros((0, 3, 8, 8), np.float32)}, r"has shape \(0, 3, 8, 8\)"),
    ],
)
def test_each_difference_is_named(inputs, message):
    with pytest.raises(DataError, match=message) as caught:
        check_inputs(inputs, [IMAGE])
    assert caught.value.exit_code == 5


def test_all_differences_are_listed_at_once():
    with pytest.raises(DataError) as caught:
        check_inputs({"image": np.zeros((1, 1, 8, 8), np.float64), "mask": np.zeros(1)}, [IMAGE])
    assert all(word in str(caught.value) for word in ("unknown input 'mask'", "float64", "(1, 1, 8, 8)"))
