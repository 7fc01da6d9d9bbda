from __future__ import annotations

import numpy as np
import pytest

from compress.quantization.histogram import BINS, BLOCK, Histogram, thinning


def f32(*values):
    return np.array(values, np.float32)


def histogram_of(values, chunk=None):
    histogram = Histogram()
    values = np.asarray(values, np.float32)
    for start in range(0, values.size, chunk or values.size):
        histogram.add(values[start : start + (chunk or values.size)])
    return histogram


def test_by_hand():
    histogram = histogram_of([0.0, 0.5, -0.75, 0.75])
    assert (histogram.amax, histogram.limit) == (0.75, 1.0)
    assert histogram.counts.nonzero()[0].tolist() == [0, BINS // 2, BINS * 3 // 4]
    assert histogram.counts[BINS * 3 // 4] == 2
    assert (histogram.width, histogram.used) == (1 / BINS, BINS * 3 // 4 + 1)
    histogram.add(f32(3.0))
    assert (histogram.amax, histogram.limit) == (3.0, 4.0)
    assert histogram.counts.nonzero()[0].tolist() == [0, BINS // 8, BINS * 3 // 16, BINS * 3 // 4]
    histogram.add(f32(0.5))
    assert histogram.limit == 4.0
    assert histogram.counts[BINS // 8] == 2


@pytest.mark.parametrize("chunk", [1, 7, 100, 999])
def test_counts_do_not_depend_on_batching(chunk):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=1000) * 10.0 ** rng.integers(-4, 4, 1000)).astype(np.float32)
    values[:10] = [0, 0, 1, 2, 4, 0.5, 1024, -8, -0.25, 3]  # exact powers of two sit on bin edges
    whole, parts = histogram_of(np.sort(values)[::-1]), histogram_of(values, chunk)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.amax, whole.limit) == (parts.amax, parts.limit)
    assert whole.counts.sum() == 1000


def test_counts_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=2 * BLOCK + 5).astype(np.float32)
    histogram = histogram_of(values)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), BINS, (0, histogram.limit))
    np.testing.assert_array_equal(histogram.counts, expected)


def test_zeros_before_the_first_value_are_kept():
    histogram = histogram_of(np.zeros(50))
    assert (histogram.amax, histogram.limit, histogram.counts[0], histogram.used) == (0.0, 0.0, 50, 0)
    histogram.add(f32(1e-3))
    assert histogram.counts.sum() == 51
    histogram.add(f32(1e3))
    histogram.add(f32(0))
    assert histogram.counts.sum() == 53


def test_an_empty_batch_counts_nothing():
    histogram = Histogram()
    histogram.add(f32())
    assert (histogram.amax, histogram.counts.sum()) == (0.0, 0)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_extreme_magnitudes(scale):
    histogram = histogram_of(f32(0.5, 1.0, 0) * np.float32(scale))
    assert histogram.counts.sum() == 3
    assert 0 < histogram.amax < histogram.limit
    histogram.add(f32(3e38))
    assert histogram.counts.sum() == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    histogram = histogram_of([1.0])
    with pytest.raises(FloatingPointError):
        histogram.add(f32(0, value, 2))
    assert (histogram.amax, histogram.counts.sum()) == (1.0, 1)


def test_the_moving_average_starts_as_a_mean():
    histogram = Histogram()
    for top in (1.0, -2.0, 6.0):
        histogram.add(f32(0.5, top))
    assert histogram.average == pytest.approx(3.0)
    assert histogram.amax == 6.0


def test_the_moving_average_forgets_with_its_constant():
    histogram = Histogram()
    for _ in range(100):
        histogram.add(f32(1.0))
    assert histogram.average == pytest.approx(1.0)
    expected = 1.0
    for _ in range(50):
        histogram.add(f32(2.0))
        expected += 0.01 * (2.0 - expected)
    assert histogram.average == pytest.approx(expected)


def test_small_tensors_are_counted_whole():
    assert [thinning(shape) for shape in ((32,), (32, 0), (32, 2048), (7, 32, 8, 8))] == [1, 1, 1, 1]


@pytest.mark.parametrize("shape", [(32, 16, 28, 28), (6, 64, 112, 112), (32, 5, 40, 40), (1, 8193)])
def test_thinning_gives_every_position_its_turn(shape):
    stride, size = thinning(shape), int(np.prod(shape[1:]))
    assert size / stride <= 2048
    assert size / stride > 1000
    for factor in shape[1:]:
        assert np.gcd(stride, factor) == 1


def test_a_stride_keeps_the_largest_value_and_the_shape():
    values = np.random.default_rng(0).normal(size=(32, 16, 28, 28)).astype(np.float32)
    values[3, 0, 0, 1] = -9
    whole, thin = Histogram.of(values), Histogram.of(values, thinning(values.shape))
    assert (whole.amax, whole.average, whole.limit) == (thin.amax, thin.average, thin.limit)
    assert thin.counts.sum() == -(-values.size // thinning(values.shape))
    spread = np.abs(np.cumsum(whole.counts) / whole.counts.sum() - np.cumsum(thin.counts) / thin.counts.sum())
    assert spread.max() < 0.005
