"""Distribution functions in plain Python: what compares two reports must start at once, and SciPy takes a second."""

from __future__ import annotations

import math

_TINY = 1e-300
_PRECISION = 1e-15


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularized incomplete beta function I_x(a, b), by Lentz's continued fraction (DLMF 8.17.22).

    Args:
        x: within [0, 1].
        a: > 0.
        b: > 0.

    Returns:
        Within [0, 1], to about 12 digits.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 <= x <= 1 or a <= 0 or b <= 0:
        raise ValueError(f"expected 0 <= x <= 1, a > 0 and b > 0, got {x}, {a}, {b}")
    if x in (0.0, 1.0):
        return x
    # The fraction converges fast on this side of the mean only.
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction, m = d, 0
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for coefficient in (even, odd):
            d = 1 / _not_zero(1 + coefficient * d)
            c = _not_zero(1 + coefficient / c)
            step *= c * d
        fraction *= step
        if abs(step - 1) < _PRECISION:
            return math.exp(log_front) * fraction / a


def student_t_sf(t: float, degrees: float) -> float:
    """P(T > t) of Student's t distribution.

    Args:
        t: any number, infinite included.
        degrees: of freedom, > 0; need not be whole (Welch).

    Returns:
        Within [0, 1].

    Raises:
        ValueError: degrees <= 0.
    """
    if degrees <= 0:
        raise ValueError(f"expected degrees of freedom > 0, got {degrees}")
    tail = 0.5 * incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)
    return tail if t >= 0 else 1 - tail


def student_t_quantile(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability, by Newton's method.

    Args:
        probability: within (0, 1).
        degrees: of freedom, > 0; need not be whole (Welch).

    Returns:
        The quantile, no unit.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 < probability < 1 or degrees <= 0:
        raise ValueError(f"expected 0 < probability < 1 and degrees > 0, got {probability}, {degrees}")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    t = 0.0
    while True:
        # The tail falls and is convex right of 0, so the steps approach the root from the left and only shrink.
        density = math.exp(scale - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = (student_t_sf(t, degrees) - (1 - probability)) / density
        t += max(step, 0.0)
        if step <= 1e-13 * max(t, 1.0):
            return t


def binomial_cdf(k: int, n: int, share: float) -> float:
    """P(X <= k) of n draws with that share of successes.

    Args:
        k: any integer.
        n: draws, > 0.
        share: within [0, 1].

    Returns:
        Within [0, 1].
    """
    if k < 0:
        return 0.0
    return 1.0 if k >= n else incomplete_beta(1 - share, n - k, k + 1)


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
