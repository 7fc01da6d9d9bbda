from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from compress.errors import DataError, ModelError
from compress.quantization.samples import InputSpec, chunks

IMAGE = InputSpec("image", "float32", ("batch", 1, 4, 4))
TOKENS = InputSpec("tokens", "int64", ("batch", "length"))
PIXELS = (0.0, 1.0)


def images(samples, seed=0):
    return np.random.default_rng(seed).random((samples, 1, 4, 4), np.float32)


def cut(data, sizes):
    starts = np.cumsum([0, *sizes])
    return [data[low:high] for low, high in pairwise(starts)]


@pytest.mark.parametrize("sizes", [[70], [1] * 70, [0, 33, 37, 0], [5, 60, 5], [16, 48, 6]])
def test_chunks_do_not_depend_on_batches(sizes):
    data = images(70)
    got = [chunk["image"] for chunk in chunks(cut(data, sizes), [IMAGE], PIXELS)]
    assert [len(array) for array in got] == [16, 16, 16, 16, 6]
    np.testing.assert_array_equal(np.concatenate(got), data)


def test_chunks_are_copies():
    data = images(40)
    for chunk in chunks([data], [IMAGE], PIXELS):
        assert not np.shares_memory(chunk["image"], data)
        assert chunk["image"].flags["C_CONTIGUOUS"]


def test_large_samples_come_in_smaller_chunks():
    large = InputSpec("image", "float32", ("batch", 3, 400, 400))
    data = np.zeros((5, 3, 400, 400), np.float32)
    assert [len(chunk["image"]) for chunk in chunks([data], [large], PIXELS)] == [2, 2, 1]


def test_a_fixed_batch_axis_is_filled():
    fixed = InputSpec("image", "float32", (8, 1, 4, 4))
    assert [len(chunk["image"]) for chunk in chunks([images(3), images(13)], [fixed], PIXELS)] == [8, 8]
    with pytest.raises(DataError, match="13 calibration samples do not fill batches of 8, which input image is fixed"):
        list(chunks([images(13)], [fixed], PIXELS))


def test_lengths_that_differ_are_not_joined():
    batches = [{"tokens": np.zeros((3, 5), np.int64)}, {"tokens": np.zeros((2, 7), np.int64)}]
    assert [chunk["tokens"].shape for chunk in chunks(batches, [TOKENS], None)] == [(3, 5), (2, 7)]


def both(samples, tokens):
    return {"image": images(samples), "tokens": np.zeros((tokens, 3), np.int64)}


def test_several_inputs_stay_together():
    got = list(chunks([both(20, 20), both(20, 20)], [IMAGE, TOKENS], PIXELS))
    assert [(len(chunk["image"]), len(chunk["tokens"])) for chunk in got] == [(16, 16), (16, 16), (8, 8)]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": images(2)}, "has arrays for image; the graph's inputs are image, tokens"),
        ({}, "has arrays for nothing; the graph's inputs are image, tokens"),
        (both(3, 2), "different numbers of samples: image 3, tokens 2"),
        (both(2, 2) | {"tokens": np.zeros((2, 3), np.int32)}, "is int32; expected a int64 numpy array"),
        (both(2, 2) | {"tokens": np.zeros(2, np.int64)}, r"has shape \(2,\); input tokens expects"),
        (both(2, 2) | {"tokens": np.zeros((2, 0), np.int64)}, r"\(2, 0\) for input tokens: its samples"),
        (both(2, 2) | {"image": np.float32(1)}, "is float32; expected a float32 numpy array"),
        (both(2, 2) | {"image": np.array(1, np.float32)}, r"has shape \(\); input image expects"),
        (both(2, 2) | {"image": images(2) * 2}, r"expected \[0, 1\]"),
    ],
)
def test_malformed_batches(batch, words):
    with pytest.raises(DataError, match=words) as caught:
        list(chunks([both(2, 2), batch], [IMAGE, TOKENS], PIXELS))
    assert caught.value.exit_code == 5
    assert caught.value.where == "calibration samples from 2"


def test_one_array_for_several_inputs():
    with pytest.raises(ModelError, match=r"has 2 inputs \(image, tokens\)"):
        list(chunks([images(2)], [IMAGE, TOKENS], PIXELS))


def test_no_samples():
    for batches in ([], [images(0)]):
        with pytest.raises(DataError, match="There are no calibration samples"):
            list(chunks(batches, [IMAGE], PIXELS))


def test_types_that_numpy_does_not_have():
    class Strange:
        name, type, shape = "x", "tensor(string)", ["batch"]

    with pytest.raises(ModelError, match=r"Input x is a tensor\(string\)"):
        InputSpec.of(Strange())


@pytest.mark.parametrize("samples", [8, 0])
def test_samples_without_values(samples):
    sequence = InputSpec("sequence", "float32", ("n", "t", 4))
    with pytest.raises(DataError, match=r"has shape \(\d, 0, 4\) for input sequence: its samples hold no") as caught:
        list(chunks([np.zeros((samples, 0, 4), np.float32)], [sequence], None))
    assert caught.value.exit_code == 5
    assert list(chunks([np.zeros((0, 5, 4), np.float32), np.zeros((1, 5, 4), np.float32)], [sequence], None))
