from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from compress.quantization.histogram import Histogram
from compress.quantization.thresholds import (
    entropy_threshold,
    kl_divergences,
    mse_threshold,
    percentile_threshold,
    squared_errors,
    threshold,
)

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
SHAPES = ("relu", "laplace", "outliers")


def histogram_of(values):
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def drawn(shape, size=4000):
    rng = np.random.default_rng(0)
    return {
        "relu": np.maximum(rng.normal(size=size), 0),
        "laplace": rng.laplace(size=size),
        "outliers": np.concatenate([rng.normal(size=size), [60.0, 80.0]]),
    }[shape]


def kl_by_loops(counts, size):
    """Migacz's procedure as his slides spell it, for one range of `size` bins, one level at a time."""
    reference = counts[:size].copy()
    reference[-1] += counts[size:].sum()
    candidate = np.zeros(size)
    for low, high in pairwise(size * level // 128 for level in range(129)):
        filled = reference[low:high] > 0
        if filled.any():
            candidate[low:high][filled] = max(counts[low:high].sum(), 1) / filled.sum()
    p, q = reference / reference.sum(), candidate / counts[:size].sum()
    mass = p > 0
    return (p[mass] * np.log(p[mass] / q[mass])).sum()


def error_of(values, top):
    """Squared error of quantizing the values themselves to 127 codes on each side."""
    step = top / 127
    return ((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2).sum()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stays_within_the_data(method):
    for shape in SHAPES:
        histogram = histogram_of(drawn(shape))
        assert 0 < threshold(histogram, method) <= histogram.amax
    assert threshold(histogram_of(np.zeros(10)), method) == 0
    assert threshold(histogram_of(np.full(10, 3.0)), method) == pytest.approx(3.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30])
def test_extreme_magnitudes(method, scale):
    histogram = histogram_of(np.array([0.5, 1.0]) * scale)
    assert 0 < threshold(histogram, method) <= histogram.amax


def test_minmax_and_moving_average_by_hand():
    histogram = histogram_of([1.0, -4.0])
    histogram.add(np.array([2.0], np.float32))
    assert threshold(histogram, "minmax") == 4.0
    assert threshold(histogram, "moving_average") == 3.0


@pytest.mark.parametrize("percentile", [90, 99, 99.9])
def test_percentile_is_that_of_the_values(percentile):
    values = drawn("laplace", 50_000)
    expected = np.percentile(np.abs(values), percentile)
    assert percentile_threshold(histogram_of(values), percentile) == pytest.approx(expected, rel=2e-3)


def test_percentile_of_degenerate_tensors():
    histogram = histogram_of(drawn("laplace"))
    assert percentile_threshold(histogram, 100) == histogram.amax
    mostly_zero = histogram_of([0.0] * 99_999 + [5.0])
    assert percentile_threshold(mostly_zero, 99.9) == 5.0  # not 0, and no range of almost nothing


@pytest.mark.parametrize("shape", SHAPES)
def test_expected_squared_errors_are_those_of_the_values(shape):
    values = drawn(shape, 200_000)
    histogram = histogram_of(values)
    counts = histogram.counts[: histogram.used].astype(np.float64)
    counts[0] = 0
    tops = histogram.amax * np.array([1.0, 0.7, 0.4, 0.2])
    got = squared_errors(counts, tops / histogram.width) * histogram.width**2
    beyond = values[np.abs(values) >= histogram.width]
    np.testing.assert_allclose(got, [error_of(beyond, top) for top in tops], rtol=0.02)


def test_squared_errors_by_hand():
    # all mass evenly in the bin [1, 2), range 127 bins, so codes are whole numbers: errors up to 1/2, mean 1/12
    np.testing.assert_allclose(squared_errors(np.array([0.0, 6.0]), np.array([127.0])), [0.5])
    # range 1: everything is clipped to 1, the integral of (u - 1)^2 from 1 to 2 is 1/3
    np.testing.assert_allclose(squared_errors(np.array([0.0, 6.0]), np.array([1.0])), [2.0])


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_finds_the_best_range(shape):
    values = drawn(shape, 100_000)
    got = error_of(values, mse_threshold(histogram_of(values)))
    best = min(error_of(values, top) for top in np.linspace(0.02, 1, 99) * np.abs(values).max())
    assert got <= best * 1.03


def test_mse_is_far_better_than_minmax_with_outliers():
    values = np.concatenate([np.random.default_rng(0).normal(size=100_000), [100.0]])
    histogram = histogram_of(values)
    assert error_of(values, mse_threshold(histogram)) < 0.9 * error_of(values, histogram.amax)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_are_those_of_migaczs_procedure(shape):
    histogram = histogram_of(drawn(shape))
    counts = histogram.counts[: histogram.used].astype(np.float64)
    candidates = np.unique(np.append(np.arange(200, counts.size, 97), counts.size))
    expected = [kl_by_loops(counts, size) for size in candidates]
    np.testing.assert_allclose(kl_divergences(counts, candidates), expected, atol=1e-9)
    assert min(expected) > 0


def test_nothing_is_lost_where_every_bin_has_a_level_of_its_own():
    counts = np.random.default_rng(0).integers(1, 100, 128).astype(np.float64)
    np.testing.assert_allclose(kl_divergences(counts, np.array([128])), 0, atol=1e-12)


def test_entropy_cuts_outliers_and_keeps_what_is_spread_evenly():
    rng = np.random.default_rng(0)
    tailed = histogram_of(np.concatenate([rng.normal(size=100_000), [100.0]]))
    assert entropy_threshold(tailed) < 20
    even = histogram_of(rng.uniform(-1, 1, 100_000))
    assert entropy_threshold(even) > 0.9 * even.amax


def test_entropy_ignores_how_many_zeros_there_are():
    values = np.abs(np.random.default_rng(0).normal(size=20_000))
    dense, sparse = histogram_of(values), histogram_of(np.concatenate([values, np.zeros(1_000_000)]))
    assert entropy_threshold(sparse) == pytest.approx(entropy_threshold(dense), rel=0.02)


def test_entropy_of_degenerate_tensors():
    assert entropy_threshold(histogram_of(np.zeros(10))) == 0
    assert entropy_threshold(histogram_of(np.full(10, 3.0))) == 3.0
    assert entropy_threshold(histogram_of([0.2] + [3.0] * 9)) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_a_range_that_only_a_value_which_is_not_counted_shows(method, spread):
    values = np.random.default_rng(0).normal(0, spread, 30_000)
    values[1] = 50
    histogram = Histogram.of(values, stride=3)
    assert histogram.counts[0] == histogram.counts.sum() == 10_000
    assert threshold(histogram, method) == 50


@pytest.mark.parametrize("stride", [1, 3, 33])
def test_entropy_with_values_in_two_bins(stride):
    values = np.zeros(30_000)
    values[:66] = 50
    histogram = Histogram.of(values, stride)
    assert entropy_threshold(histogram) == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_searches_are_fast(method):
    histogram = histogram_of(np.random.default_rng(0).normal(size=100_000))
    start = time.process_time()
    threshold(histogram, method)
    assert time.process_time() - start < 0.5
