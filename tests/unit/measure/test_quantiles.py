from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from compress.measure.quantiles import quantile_interval
from compress.measure.statistics import Interval


def evenly(values: list[float], blocks: int = 20) -> list[list[float]]:
    """Blocks with the same distribution, so that they say nothing against independence."""
    ordered = sorted(values)
    return [ordered[first::blocks] for first in range(blocks)]


@pytest.mark.parametrize("percent", [50, 90, 99])
@pytest.mark.parametrize("count", [5000, 12_345])
def test_quantile_interval_of_even_blocks_equals_scipy(percent: float, count: int) -> None:
    values = np.sort(np.random.default_rng(7).lognormal(0, 0.3, count))
    expected = stats.quantile_test(values, p=percent / 100).confidence_interval()
    found = quantile_interval(evenly(values.tolist()), percent)
    assert (found.low, found.high) == (expected.low, expected.high)


@pytest.mark.parametrize("share_of_slow_blocks", [0.0, 0.3])
def test_quantile_interval_covers_a_percentile_whose_values_come_in_bursts(share_of_slow_blocks: float) -> None:
    # Some blocks have 4 % calls that take twice as long, the others 0.5 %.
    random = np.random.default_rng(8)
    slow_share = share_of_slow_blocks * 0.04 + (1 - share_of_slow_blocks) * 0.005

    def below(value: float) -> float:
        return slow_share * NormalDist(2, 0.1).cdf(value) + (1 - slow_share) * NormalDist(1, 0.1).cdf(value)

    truth = next(value for value in (0.5 + step / 10_000 for step in range(25_000)) if below(value) >= 0.99)
    covered = 0
    for _ in range(200):
        shares = np.where(random.random(20) < share_of_slow_blocks, 0.04, 0.005)
        slow = random.random((20, 250)) < shares[:, None]
        interval = quantile_interval(
            np.where(slow, random.normal(2, 0.1, slow.shape), random.normal(1, 0.1, slow.shape)).tolist(), 99
        )
        covered += interval.low <= truth <= interval.high
    assert covered >= 184  # of 200; fewer than 184 have a chance of 2.5 % at a coverage of 95 %


def test_quantile_interval_has_no_end_where_too_few_values_lie_beyond() -> None:
    assert quantile_interval([[1.0], [2.0]], 50) == Interval(-math.inf, math.inf)
    assert quantile_interval(evenly([float(i) for i in range(100)]), 99).high == math.inf


@pytest.mark.parametrize(
    ("blocks", "percent"), [([], 50), ([[1.0]], 50), ([[1.0], []], 50), ([[1.0]] * 2, 0), ([[1.0]] * 2, 100)]
)
def test_quantile_interval_refuses(blocks: list[list[float]], percent: float) -> None:
    with pytest.raises(ValueError, match="expected 2 filled blocks and 0 < percent < 100"):
        quantile_interval(blocks, percent)
