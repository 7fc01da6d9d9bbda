from __future__ import annotations

import time

import numpy as np
import pytest

from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.engines.session import Session, TensorSpec, check_inputs, wall_timed
from compress.engines.tensorrt_session import TensorRTSession
from compress.engines.torch_session import TorchSession
from compress.errors import DataError

SESSIONS: list[type[Session]] = [OnnxRuntimeSession, TorchSession, TensorRTSession]  # the type checker's business
IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 8))


@pytest.mark.parametrize("session", SESSIONS)
def test_every_session_has_the_five_methods(session):
    assert all(callable(getattr(session, name)) for name in ("load", "run", "timed", "describe", "close"))


def test_wall_time_is_that_of_the_call():
    assert 5.0 <= wall_timed(lambda: time.sleep(0.005))() < 500.0


def test_fitting_inputs_pass():
    assert check_inputs({"image": np.zeros((5, 3, 8, 8), np.float32)}, [IMAGE]) is None  # nothing is raised


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
