"""How well a measurement knows a percentile. Plain Python, so that it starts at once."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from compress.measure.special import binomial_cdf, student_t_quantile
from compress.measure.statistics import Interval


def quantile_interval(blocks: Sequence[Sequence[float]], percent: float) -> Interval:
    """95 % interval of a percentile whose values come in blocks, e.g. calls that a busy moment slows together.

    The share of values below the percentile has a standard error between blocks; the interval of that share is read
    off the ordered values (Woodruff, 1952, doi:10.1080/01621459.1952.10483443, with the linearized error of clusters).
    It is at least as wide as the exact one for independent values, from the binomial distribution.

    Args:
        blocks: at least 2, none empty; in any order within.
        percent: within (0, 100).

    Returns:
        Two of the values; an end that too few values or blocks support is infinite.

    Raises:
        ValueError: fewer than 2 blocks, an empty one, or percent out of range.
    """
    if len(blocks) < 2 or not all(blocks) or not 0 < percent < 100:
        raise ValueError(
            f"expected 2 filled blocks and 0 < percent < 100, got {[len(block) for block in blocks]}, percent {percent}"
        )
    ordered = sorted(value for block in blocks for value in block)
    count, share = len(ordered), percent / 100
    middle = ordered[math.ceil(share * count) - 1]
    within = [sum(value <= middle for value in block) for block in blocks]
    mean = sum(within) / count
    spread = math.fsum((found - mean * len(block)) ** 2 for found, block in zip(within, blocks, strict=True))
    error = math.sqrt(spread * len(blocks) / (len(blocks) - 1)) / count
    half = student_t_quantile(0.975, len(blocks) - 1) * error * count
    ranks = range(count + 1)
    # The values below the true percentile are a binomial count; each end leaves out at most 2.5 % of it.
    below = bisect_right(ranks, 0.025, key=lambda rank: binomial_cdf(rank - 1, count, share)) - 1
    above = bisect_left(ranks, 0.975, key=lambda rank: binomial_cdf(rank, count, share))
    below, above = min(below, math.floor(share * count - half)), max(above, math.ceil(share * count + half))
    return Interval(ordered[below - 1] if below > 0 else -math.inf, ordered[above] if above < count else math.inf)
