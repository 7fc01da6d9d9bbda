"""From a histogram of |x| to the range that int8 covers: one function for each method of calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compress.quantization.histogram import Histogram
from compress.quantization.settings import Method

QUANTIZED_LEVELS = 128  # of |x| in int8
LARGEST_CODE = 127
CLIPPED_LIMIT = 0.05  # of the values; see entropy_threshold
ENTROPY_CANDIDATES = 256  # ranges tried, so that they lie less than 0.4 % of the largest |x| apart
MSE_CANDIDATES = 2.0 ** -np.arange(0, 8, 1 / 32)  # parts of the largest |x|, 2.2 % apart, down to a 250th
CANDIDATES_AT_ONCE = 32  # of one of the searches: tables stay in the processor's cache


def threshold(histogram: Histogram, method: Method, percentile: float = 99.99) -> float:
    """The range [-t, t] of a tensor.

    Args:
        histogram: of |x|.
        method: see `QuantizeSettings`.
        percentile: of |x|, in %, for the method "percentile".

    Returns:
        t, in the tensor's unit, 0 < t <= the largest |x|; 0 for a tensor of zeros.
    """
    if histogram.amax == 0:
        return 0.0
    if method == "percentile":
        return percentile_threshold(histogram, percentile)
    return _METHODS[method](histogram)


def percentile_threshold(histogram: Histogram, percentile: float) -> float:
    """The |x| that `percentile` % of all values do not exceed, interpolated within its bin.

    Where it falls into the first bin, nearly everything is zero, which every scale represents: then the range is the
    largest |x|.
    """
    if percentile >= 100:
        return histogram.amax
    sums = np.cumsum(histogram.counts)
    wanted = sums[-1] * (percentile / 100)
    position = int(np.searchsorted(sums, wanted))
    if position == 0:
        return histogram.amax
    part = (wanted - sums[position - 1]) / histogram.counts[position]
    return min((position + float(part)) * histogram.width, histogram.amax)


def mse_threshold(histogram: Histogram) -> float:
    """The range whose 127 codes on each side have the least expected squared error, clipping included.

    Values are taken as spread evenly within their bin; then the error of a range is an exact integral, see
    `squared_errors`. The first bin is left out: what lies in it is zero, or so small that every range loses the same.
    """
    counts = histogram.counts[: histogram.used].astype(np.float64)
    counts[0] = 0
    candidates = histogram.amax * MSE_CANDIDATES
    return float(candidates[np.argmin(squared_errors(counts, candidates / histogram.width))])


def squared_errors(counts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Sum over all values of (x - quantized x)^2, in squared bins, for every candidate range.

    With u = x / step and n = the code of x (at most 127), the integral of (u - n)^2 from 0 to u is
    n / 12 + (u - n)^3 / 3: each whole code contributes 1 / 12.

    Args:
        counts: of |x| in equal bins from 0, (bins,), float.
        candidates: ranges in bins, (n,), > 0.

    Returns:
        (n,), float.
    """
    edges = np.arange(counts.size + 1)
    errors = []
    for some in _blocks(candidates):
        steps = some[:, None] / LARGEST_CODE
        real = edges / steps
        codes = np.minimum(np.rint(real), LARGEST_CODE)
        off = real - codes
        integral = codes / 12 + off * off * off / 3
        errors.append((np.diff(integral, axis=1) @ counts) * steps[:, 0] ** 3)
    return np.concatenate(errors)


def entropy_threshold(histogram: Histogram) -> float:
    """The range [0, t] whose 128-level quantization loses the least information (Migacz, 2017, GTC talk S7310).

    t minimizes `kl_divergences`. Three repairs, all for shapes on which the plain method fails: the first bin is set
    to its neighbour's count, because the many exact zeros behind a Relu are represented by any scale and would
    otherwise drown the rest; a range below a sixteenth of the largest |x| is not considered (128 of 2,048 bins, as in
    the talk); nor is one that clips more than 5 % of the values, because the divergence sees the shape of what is
    left and not how far clipped values move.

    Returns:
        t, in the tensor's unit, 0 < t <= the largest |x|; that itself where every counted value is in the first bin, as
        nothing tells ranges apart then; 0 for a tensor of zeros.
    """
    used = histogram.used
    if used <= QUANTIZED_LEVELS:  # only for values too small for a bin width of their own
        return histogram.amax
    counts = histogram.counts[:used].astype(np.float64)
    counts[0] = counts[1]
    if not counts.any():  # the largest values are not among those counted, and the others fill the first bin
        return histogram.amax
    first = max(QUANTIZED_LEVELS, used // 16)
    candidates = np.unique(np.linspace(first, used, ENTROPY_CANDIDATES).astype(np.intp))
    kept = np.cumsum(counts)[candidates - 1] / max(counts.sum(), 1)
    candidates = candidates[kept >= 1 - CLIPPED_LIMIT]
    best = int(candidates[np.argmin(kl_divergences(counts, candidates))])
    return min((best + 0.5) * histogram.width, histogram.amax)


def kl_divergences(counts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """KL(P || Q) for every candidate range, in nats, from cumulative sums instead of loops.

    P is the distribution of |x| with everything beyond the range counted in its last bin. Q is P without that clipped
    mass, averaged within each of 128 levels over the bins that are not empty in P. Where only clipped mass is in the
    last level, Q counts one sample there: an infinite divergence would let a single outlier forbid all clipping.

    Args:
        counts: of |x| in equal bins from 0, (bins,), float.
        candidates: ranges in bins, (n,), each from 128 to `len(counts)`, with values below each of them.

    Returns:
        (n,), float.
    """
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    nonempty = np.concatenate([[0.0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    return np.concatenate([_divergences(counts, sums, nonempty, entropy, some) for some in _blocks(candidates)])


def _divergences(
    counts: np.ndarray, sums: np.ndarray, nonempty: np.ndarray, entropy: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    total = sums[-1]
    clipped = total - sums[candidates]
    last = counts[candidates - 1]
    edges = candidates[:, None] * np.arange(QUANTIZED_LEVELS + 1) // QUANTIZED_LEVELS
    mass = np.diff(sums[edges], axis=1)  # of Q, per level
    bins = np.diff(nonempty[edges], axis=1)
    reference = mass.copy()  # of P, per level
    reference[:, -1] += clipped
    bins[:, -1] += (last == 0) & (clipped > 0)  # the clipped mass fills the last bin of P
    mass[:, -1] = np.where((mass[:, -1] == 0) & (clipped > 0), 1.0, mass[:, -1])
    filled = reference > 0
    log_q = np.log(np.where(filled, mass, 1.0) / np.where(filled, bins, 1))
    own = entropy[candidates - 1] + _x_log_x(last + clipped)
    return (own - (reference * log_q).sum(axis=1)) / total - np.log(total) + np.log(sums[candidates])


def _x_log_x(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1.0))


def _blocks(candidates: np.ndarray) -> list[np.ndarray]:
    return [candidates[start : start + CANDIDATES_AT_ONCE] for start in range(0, candidates.size, CANDIDATES_AT_ONCE)]


_METHODS: dict[str, Callable[[Histogram], float]] = {
    "minmax": lambda histogram: histogram.amax,
    "moving_average": lambda histogram: histogram.average,
    "entropy": entropy_threshold,
    "mse": mse_threshold,
}
