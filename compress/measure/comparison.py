"""Two latencies, or two sets of right answers: which differences are real. Plain Python, so that it starts at once."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from compress.errors import ArtifactError
from compress.measure.special import student_t_quantile, student_t_sf
from compress.measure.statistics import Z_900, Z_950, Z_975

RatioVerdict = Literal["faster", "slower", "no difference", "inconclusive"]

# What counts as a difference: interleaved in one process, and between processes of two reports.
IN_RUN_TOLERANCE = 0.03
REPORT_TOLERANCE = 0.05


@dataclass(frozen=True)
class RatioComparison:
    """latency(new) / latency(base) from independent medians, with its 95 % interval (Welch's t on the logarithms).

    `base_count`, `new_count` are the medians of each side, `base_sd_log`, `new_sd_log` the standard deviations of
    their logarithms; `mean_log` is the logarithm of the ratio, `error_log` its standard error, `degrees` of freedom.
    """

    ratio: float
    low: float
    high: float
    base_count: int
    new_count: int
    base_sd_log: float
    new_sd_log: float
    mean_log: float
    error_log: float
    degrees: float


def welch_ratio(base_ms: Sequence[float], new_ms: Sequence[float]) -> RatioComparison:
    """Compare the latencies of two reports by medians of fresh processes (Welch, 1947, doi:10.1093/biomet/34.1-2.28).

    Args:
        base_ms: at least 2 medians, milliseconds, > 0.
        new_ms: the same of the other side; the counts may differ.

    Returns:
        latency(new) / latency(base): below 1, the new one is faster.

    Raises:
        ValueError: fewer than 2 medians on a side, or one that is not positive and finite.
    """
    (base_mean, base_sd), (new_mean, new_sd) = _log_moments(base_ms), _log_moments(new_ms)
    base_share, new_share = base_sd**2 / len(base_ms), new_sd**2 / len(new_ms)
    mean, error = new_mean - base_mean, math.sqrt(base_share + new_share)
    degrees = float(len(base_ms) + len(new_ms) - 2)
    if error > 0:
        spread = base_share**2 / (len(base_ms) - 1) + new_share**2 / (len(new_ms) - 1)
        degrees = (base_share + new_share) ** 2 / spread
    half = student_t_quantile(0.975, degrees) * error
    return RatioComparison(
        ratio=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
        base_count=len(base_ms),
        new_count=len(new_ms),
        base_sd_log=base_sd,
        new_sd_log=new_sd,
        mean_log=mean,
        error_log=error,
        degrees=degrees,
    )


def ratio_verdict(low: float, high: float, tolerance: float) -> RatioVerdict:
    """Name the difference that a ratio's 95 % interval shows; noise alone names a wrong one in at most 2.5 %.

    A true ratio of exactly 1 + tolerance comes in as `slower`, and as `no difference`, in at most 2.5 % each.

    Args:
        low: lower end of latency(new) / latency(base), > 0.
        high: upper end, >= low.
        tolerance: relative change that does not count, > 0.

    Returns:
        slower iff low > 1 + tolerance, faster iff high < 1 / (1 + tolerance), no difference iff the interval lies
        between the two, else inconclusive.

    Raises:
        ValueError: the ends are in the wrong order or not positive, or the tolerance is not positive.
    """
    if not 0 < low <= high or tolerance <= 0:
        raise ValueError(f"expected 0 < low <= high and tolerance > 0, got {low}, {high}, {tolerance}")
    limit = 1 + tolerance
    if low > limit:
        return "slower"
    if high < 1 / limit:
        return "faster"
    return "no difference" if 1 / limit <= low and high <= limit else "inconclusive"


def slower_p(found: RatioComparison, limit: float) -> float:
    """One-sided p-value of H0: the ratio is at most the limit. Below .025 exactly where `low` exceeds the limit.

    Args:
        found: from `welch_ratio`.
        limit: of latency(new) / latency(base), e.g. 1 + REPORT_TOLERANCE, > 0.

    Returns:
        Within [0, 1]; for "faster" pass the comparison the other way round.
    """
    distance = found.mean_log - math.log(limit)
    if found.error_log == 0:
        return 0.0 if distance > 0 else 1.0
    return student_t_sf(distance / found.error_log, found.degrees)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several claims so that any false one among them is as rare as for one (Holm, 1979).

    Args:
        p_values: one a claim, within [0, 1].

    Returns:
        Adjusted p-values in the same order, to be held against the level of a single claim.
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def needed_medians(found: RatioComparison, tolerance: float) -> int | None:
    """Medians a side after which a comparison would be decided in 9 of 10 cases, at the observed ratio and spread.

    Args:
        found: from `welch_ratio`.
        tolerance: relative change that does not count, > 0.

    Returns:
        At least 2; None where the observed ratio lies exactly on a limit, so that no count would do.
    """
    distance = math.log1p(tolerance) - abs(found.mean_log)
    # "No difference" needs both ends of the interval on the right side, the others only one.
    return _medians(found, distance, Z_975, Z_950 if distance > 0 else Z_900)


def needed_medians_for_limit(found: RatioComparison, limit: float, claims: int = 1) -> int | None:
    """Medians a side after which a gate on the ratio would be decided in 9 of 10 cases, at the observed ratio.

    Args:
        found: from `welch_ratio`.
        limit: largest ratio allowed, > 0.
        claims: gates that share the risk of a false failure, >= 1 (Bonferroni's level, which Holm's never exceeds).

    Returns:
        At least 2; None where the observed ratio is the limit itself.
    """
    level = NormalDist().inv_cdf(1 - 0.025 / claims)
    return _medians(found, found.mean_log - math.log(limit), level, Z_900)


def _medians(found: RatioComparison, distance: float, level: float, power: float) -> int | None:
    if distance == 0:
        return None
    variance = found.base_sd_log**2 + found.new_sd_log**2
    # The last term makes up for Student's t at small counts (Guenther, 1981).
    return max(2, math.ceil(((level + power) / distance) ** 2 * variance + level**2 / 4))


def paired_counts(base_bits: str, new_bits: str, n: int) -> tuple[int, int]:
    """Count the samples that exactly one of two variants has right.

    Args:
        base_bits: `Variant.correct`: base64 of one bit a sample, first sample highest, filled up with zeros.
        new_bits: the same of the other variant on the same samples.
        n: samples, > 0.

    Returns:
        Gained (right only in new) and lost (right only in base).

    Raises:
        ArtifactError: a text that is not the base64 of n such bits.
    """
    base, new = _bits(base_bits, n), _bits(new_bits, n)
    return (new & ~base).bit_count(), (base & ~new).bit_count()


def _log_moments(values_ms: Sequence[float]) -> tuple[float, float]:
    if len(values_ms) < 2 or not all(0 < value < math.inf for value in values_ms):
        raise ValueError(f"expected at least 2 medians, positive and finite, got {list(values_ms)}")
    logs = [math.log(value) for value in values_ms]
    mean = math.fsum(logs) / len(logs)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in logs) / (len(logs) - 1))


def _bits(text: str, n: int) -> int:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtifactError(f"the bits of answers are not base64: {error}", hint=_RERUN) from error
    bits, padding = int.from_bytes(content, "big"), 8 * len(content) - n
    if not 0 <= padding < 8 or bits & ((1 << padding) - 1):
        raise ArtifactError(f"expected one bit for each of {n} samples, got {len(content)} bytes", hint=_RERUN)
    return bits >> padding


_RERUN = "run the benchmark again: compress run RECIPE --force STEP"
