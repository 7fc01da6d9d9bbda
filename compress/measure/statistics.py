"""When a difference is real: intervals and tests for accuracies and latencies, from counts and plain floats.

Gates read stored statistics, so everything they need works without any third-party library; Kendall's tau, which is
asked for only while a benchmark is measured, imports SciPy when called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from compress.measure.special import student_t_quantile

Decision = Literal["pass", "fail", "inconclusive"]

# Standard normal quantiles: P(Z <= z) = 0.975, 0.95 and 0.90.
Z_975 = 1.959963984540054
Z_950 = 1.6448536269514722
Z_900 = 1.2815515655446004

DRIFT_ALPHA = 0.01
DRIFT_LIMIT = 0.05


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of the quantity it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class Tango:
    """Outcome of a non-inferiority test on paired samples.

    `difference`, `low`, `high` are of accuracy(candidate) - accuracy(reference), as fractions; `p` belongs to
    H0: loss >= margin. `needed_n` is set only where inconclusive: the sample count that would pass (or, for a loss
    beyond the margin, fail) in 9 of 10 experiments, if `needed_if` holds; None where no sample count would.
    """

    difference: float
    low: float
    high: float
    z: float
    p: float
    decision: Decision
    needed_n: int | None = None
    needed_if: str = ""


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio of latencies with its 95 % t interval, and the statistics of the log differences it comes from."""

    ratio: float
    low: float
    high: float
    blocks: int
    mean_log: float
    sd_log: float


@dataclass(frozen=True)
class Drift:
    """Trend of the block medians over a run.

    `change` is relative, e.g. 0.05 for medians that end 5 % above where they started; `p` is Kendall's.
    """

    change: float
    p: float
    unstable: bool


def wilson(correct: int, n: int) -> Interval:
    """95 % score interval of a proportion (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        correct: successes, 0 <= correct <= n.
        n: samples, > 0.

    Returns:
        Bounds within [0, 1], as fractions.

    Raises:
        ValueError: n <= 0, or correct outside [0, n].
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"expected 0 <= correct <= n and n > 0, got correct {correct}, n {n}")
    z2 = Z_975 * Z_975
    share = correct / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_975 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the bound is exact; rounding would leave it a hair away.
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def normal_sf(z: float) -> float:
    """P(Z > z) of the standard normal, within [0, 1]."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def tango_score(gained: int, lost: int, n: int, margin: float) -> float:
    """Tango's score statistic for H0: accuracy(reference) - accuracy(candidate) = margin.

    Tango, 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.

    Args:
        gained: samples that the candidate has right and the reference wrong (b).
        lost: the reverse (c).
        n: all samples.
        margin: as a fraction, within [-1, 1].

    Returns:
        Z, no unit: positive where the loss is below the margin; infinite where H0 is impossible.

    Raises:
        ValueError: the counts are no counts of n samples, or the margin is outside [-1, 1].
    """
    _check_counts(gained, lost, n)
    if not -1 <= margin <= 1:
        raise ValueError(f"expected a margin within [-1, 1], got {margin}")
    a = 2 * n
    b = -(gained + lost) + (2 * n + gained - lost) * margin
    c = -gained * margin * (1 - margin)
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    # The larger root of a q^2 + b q + c, in the form that does not cancel.
    q = (-b + root) / (2 * a) if b <= 0 else -2 * c / (b + root)
    variance = n * (2 * q + margin * (1 - margin))
    distance = gained - lost + n * margin
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_interval(gained: int, lost: int, n: int) -> Interval:
    """95 % score interval of accuracy(candidate) - accuracy(reference), paired by sample (Tango, 1998).

    Args:
        gained: samples that the candidate has right and the reference wrong.
        lost: the reverse.
        n: all samples.

    Returns:
        Bounds within [-1, 1], as fractions, each found by bisection to 1e-12.

    Raises:
        ValueError: the counts are no counts of n samples.
    """
    _check_counts(gained, lost, n)
    difference = (gained - lost) / n

    def bound(outside: float) -> float:
        inside = difference
        if abs(tango_score(gained, lost, n, -outside)) <= Z_975:
            return outside
        while abs(outside - inside) > 1e-12:
            middle = (inside + outside) / 2
            if abs(tango_score(gained, lost, n, -middle)) <= Z_975:
                inside = middle
            else:
                outside = middle
        return inside

    return Interval(bound(-1.0), bound(1.0))


def tango_noninferiority(gained: int, lost: int, n: int, margin: float) -> Tango:
    """Is the candidate's loss of accuracy below the margin? A one-sided test at 5 %, paired by sample (Tango, 1998).

    Pass: P(Z) < .05 under H0: loss >= margin. Fail: the 95 % interval of the difference lies below -margin.
    Otherwise inconclusive, which is its own answer and not a pass.

    Args:
        gained: samples that the candidate has right and the reference wrong.
        lost: the reverse.
        n: all samples.
        margin: allowed loss, as a fraction, within (0, 1).

    Returns:
        The decision with its numbers.

    Raises:
        ValueError: the counts are no counts of n samples, or the margin is outside (0, 1).
    """
    if not 0 < margin < 1:
        raise ValueError(f"expected a margin within (0, 1), got {margin}")
    z = tango_score(gained, lost, n, margin)
    p = normal_sf(z)
    interval = tango_interval(gained, lost, n)
    difference = (gained - lost) / n
    if p < 0.05:
        return Tango(difference, interval.low, interval.high, z, p, "pass")
    if interval.high < -margin:
        return Tango(difference, interval.low, interval.high, z, p, "fail")
    needed, condition = _needed_n(gained, lost, n, margin)
    return Tango(difference, interval.low, interval.high, z, p, "inconclusive", needed, condition)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value: information only, since a large p does not show that nothing was lost.

    Args:
        gained: samples that only the candidate has right, >= 0.
        lost: samples that only the reference has right, >= 0.

    Returns:
        Probability within [0, 1].

    Raises:
        ValueError: a negative count.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"expected counts >= 0, got gained {gained}, lost {lost}")
    pairs = gained + lost
    tail, term = 0, 1
    for k in range(min(gained, lost) + 1):
        tail += term
        term = term * (pairs - k) // (k + 1)
    # Integers until the last step: 2**pairs overflows a float from 1,024 discordant pairs on.
    return min(1.0, 2 * tail / (1 << pairs))


def ratio_interval(log_differences: Sequence[float]) -> RatioEstimate:
    """Geometric mean ratio with its 95 % t interval from paired log differences, one a block.

    Args:
        log_differences: per block, ln latency(A) - ln latency(B); at least 2, finite.

    Returns:
        latency(A) / latency(B): below 1, A is faster.

    Raises:
        ValueError: fewer than 2 values, or one that is not finite.
    """
    blocks = len(log_differences)
    if blocks < 2:
        raise ValueError(f"expected log differences of at least 2 blocks, got {blocks}")
    if not all(math.isfinite(d) for d in log_differences):
        raise ValueError("expected finite log differences; a latency of 0 has no logarithm")
    mean = math.fsum(log_differences) / blocks
    sd = math.sqrt(math.fsum((d - mean) ** 2 for d in log_differences) / (blocks - 1))
    half = student_t_quantile(0.975, blocks - 1) * sd / math.sqrt(blocks)
    return RatioEstimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), blocks, mean, sd)


def ratio_decision(low: float, high: float, limit: float) -> Decision:
    """Is a latency ratio within its limit? Decided by the 95 % interval, so that noise alone cannot decide.

    For a limit 1 + d this is the t test of the log differences against ln(1 + d), one-sided at 2.5 %.

    Args:
        low: lower end of the ratio's interval, > 0.
        high: upper end, >= low.
        limit: largest ratio allowed, > 0.

    Returns:
        pass iff high <= limit, fail iff low > limit, else inconclusive.

    Raises:
        ValueError: the ends are in the wrong order or not positive, or the limit is not positive.
    """
    if not 0 < low <= high or limit <= 0:
        raise ValueError(f"expected 0 < low <= high and limit > 0, got {low}, {high}, {limit}")
    if high <= limit:
        return "pass"
    return "fail" if low > limit else "inconclusive"


def needed_blocks(mean_log: float, sd_log: float, limit: float) -> int | None:
    """Blocks after which a ratio's interval would leave its limit in 9 of 10 runs, at the observed mean and spread.

    Args:
        mean_log: mean log difference.
        sd_log: standard deviation of the log differences, >= 0.
        limit: the ratio's limit, > 0.

    Returns:
        At least 2; None where the observed ratio is exactly at the limit, so that no count would do.
    """
    gap = abs(mean_log - math.log(limit))
    # The last term makes up for Student's t at small counts (Guenther, 1981, doi:10.1080/00031305.1981.10479370).
    return None if gap == 0 else max(2, math.ceil(((Z_975 + Z_900) * sd_log / gap) ** 2 + Z_975**2 / 2))


def needed_samples(correct: int, n: int, minimum: float) -> int | None:
    """Samples after which `proportion_decision` would decide in 9 of 10 cases, at the observed proportion.

    Args:
        correct: successes, 0 <= correct <= n.
        n: samples, > 0.
        minimum: as a fraction, within [0, 1).

    Returns:
        At least n; None where the observed proportion is the minimum itself, so that no count would do.
    """
    share = correct / n
    if share == minimum:
        return None
    spread = Z_975 * math.sqrt(minimum * (1 - minimum)) + Z_900 * math.sqrt(share * (1 - share))
    return max(n, math.ceil((spread / (share - minimum)) ** 2))


def proportion_decision(correct: int, n: int, minimum: float) -> Decision:
    """Does a proportion reach its minimum? Decided by its Wilson interval.

    Args:
        correct: successes, 0 <= correct <= n.
        n: samples, > 0.
        minimum: as a fraction, within [0, 1].

    Returns:
        pass iff the lower end >= minimum, fail iff the upper end < minimum, else inconclusive.
    """
    interval = wilson(correct, n)
    if interval.low >= minimum:
        return "pass"
    return "fail" if interval.high < minimum else "inconclusive"


def drift(block_medians: Sequence[float]) -> Drift:
    """Did the latency trend over the run? Kendall's tau of time against the block medians.

    Imports SciPy when called.

    Args:
        block_medians: one a block in time order, > 0, any unit.

    Returns:
        Change over the run by the Theil-Sen slope of the logarithms; unstable iff p < .01 and |change| > 5 %.
        Below 3 blocks nothing can be said: p is 1.

    Raises:
        ValueError: no block, or a median <= 0.
    """
    if not block_medians or min(block_medians) <= 0:
        raise ValueError("expected at least one block median, all > 0")
    logs = [math.log(m) for m in block_medians]
    count = len(logs)
    if count < 3 or min(logs) == max(logs):
        return Drift(0.0, 1.0, False)
    slopes = sorted((logs[j] - logs[i]) / (j - i) for i in range(count) for j in range(i + 1, count))
    change = math.expm1(percentile(slopes, 50) * (count - 1))
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    p = float(cast(Any, stats).kendalltau(range(count), logs).pvalue)
    return Drift(change, p, p < DRIFT_ALPHA and abs(change) > DRIFT_LIMIT)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Percentile with linear interpolation between the two nearest ranks.

    Args:
        ordered: ascending, at least one.
        percent: within [0, 100].

    Returns:
        A value within the data's range, in its unit.

    Raises:
        ValueError: no data, or percent out of range.
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"expected data and 0 <= percent <= 100, got {len(ordered)} values, percent {percent}")
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _check_counts(gained: int, lost: int, n: int) -> None:
    if n <= 0 or gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"expected counts >= 0 with gained + lost <= n and n > 0, got {gained}, {lost}, {n}")


def _needed_n(gained: int, lost: int, n: int, margin: float) -> tuple[int | None, str]:
    """Samples for a power of 90 %: if nothing is lost (8.6 psi / margin^2), else at the loss that was observed."""
    discordant = (gained + lost) / n
    # Without discordant pairs Z is sqrt(n margin / (1 - margin)): below this count nothing can pass.
    floor = math.ceil(Z_950**2 * (1 - margin) / margin) + 1
    needed = max(floor, math.ceil((Z_950 + Z_900) ** 2 * discordant / margin**2))
    if needed > n:
        return needed, "if nothing is lost"
    difference = (gained - lost) / n
    gap = difference + margin
    if gap == 0:
        return None, "at the observed loss"
    z = Z_950 if gap > 0 else Z_975
    at_observed = math.ceil((z + Z_900) ** 2 * (discordant - difference**2) / gap**2)
    return max(at_observed, n + 1), "at the observed loss"
