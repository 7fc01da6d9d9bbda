from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from compress.measure.special import binomial_cdf, incomplete_beta, student_t_quantile, student_t_sf


def test_incomplete_beta_equals_scipy() -> None:
    chance = np.random.default_rng(0)
    for _ in range(300):
        a, b, x = 10 ** chance.uniform(-1, 4), 10 ** chance.uniform(-1, 4), chance.random()
        assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-10)
    # By hand: I_x(1, b) = 1 - (1 - x)^b, I_x(a, 1) = x^a.
    assert incomplete_beta(0.3, 1, 4) == pytest.approx(1 - 0.7**4, rel=1e-12)
    assert incomplete_beta(0.3, 4, 1) == pytest.approx(0.3**4, rel=1e-12)
    assert (incomplete_beta(0, 2, 3), incomplete_beta(1, 2, 3)) == (0, 1)


@pytest.mark.parametrize("degrees", [0.7, 1, 2, 4, 7.31, 19, 100, 10_000])
def test_student_t_equals_scipy(degrees: float) -> None:
    for t in (-40.0, -1.0, 0.0, 0.3, 2.0, 12.0, 1e4):
        assert student_t_sf(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-9)
    for probability in (1e-6, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999):
        assert student_t_quantile(probability, degrees) == pytest.approx(
            stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12
        )
    assert (student_t_sf(math.inf, degrees), student_t_sf(-math.inf, degrees)) == (0, 1)


def test_student_t_quantiles_are_those_of_the_printed_tables() -> None:
    # Fisher and Yates, Statistical Tables, table III: two-sided 5 %.
    for degrees, printed in ((1, 12.706), (4, 2.776), (8, 2.306), (19, 2.093), (120, 1.980)):
        assert student_t_quantile(0.975, degrees) == pytest.approx(printed, abs=5e-4)


def test_binomial_cdf_equals_scipy() -> None:
    for k in (-1, 0, 3, 4949, 4950, 5000, 5001):
        assert binomial_cdf(k, 5000, 0.99) == pytest.approx(stats.binom.cdf(k, 5000, 0.99), abs=1e-11)


@pytest.mark.parametrize(("x", "a", "b"), [(-0.1, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0)])
def test_incomplete_beta_refuses(x: float, a: float, b: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= x <= 1"):
        incomplete_beta(x, a, b)


def test_student_t_refuses() -> None:
    with pytest.raises(ValueError, match="expected degrees of freedom > 0"):
        student_t_sf(1.0, 0)
    for probability, degrees in ((0.0, 3), (1.0, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="expected 0 < probability < 1"):
            student_t_quantile(probability, degrees)
