"""Streaming counts of |x|: what calibration keeps of a tensor, in memory that does not depend on how much it saw."""

from __future__ import annotations

import math

import numpy as np

BINS = 4096  # the range fills more than half of them, so at least the 2,048 of Migacz's method cover it
BLOCK = 1 << 15  # values counted at a time: the working memory stays in the processor's cache
COUNTED_PER_SAMPLE = 2048  # values of each tensor: neighbours in an image tell the same, and 512 samples give 1 million
SMALLEST_EXPONENT = -100  # of the limit; BINS / limit must be a float32
AVERAGING_CONSTANT = 0.01  # of the moving average, as in torch's MovingAverageMinMaxObserver


class Histogram:
    """Counts of |x| in equal bins, the largest |x|, and the moving average of the largest |x| of each batch.

    The bins cover [0, limit) with `limit` a power of two above the largest |x| seen. A larger value doubles the limit
    and merges bins in pairs, which is exact, so that the counts do not depend on how samples were batched. The
    average starts as the mean of the first 100 batches and forgets with the constant 0.01 from there on.
    """

    def __init__(self) -> None:
        self.amax = 0.0
        self.limit = 0.0  # 0 until a value differs from zero
        self.counts = np.zeros(BINS, np.int64)
        self.batches = 0
        self.average = 0.0

    @classmethod
    def of(cls, values: np.ndarray, stride: int = 1) -> Histogram:
        """Count one batch.

        Args:
            values: of any shape, float32.
            stride: count only every so many-th value, see `thinning`; the largest |x| is that of all.

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        flat = np.asarray(values, np.float32).reshape(-1)
        # two passes, neither of which needs memory; NaN passes through both
        top = max(float(flat.max(initial=0.0)), -float(flat.min(initial=0.0)))
        if not math.isfinite(top):
            raise FloatingPointError("a value is NaN or infinite")
        histogram = cls()
        histogram.amax = histogram.average = top
        histogram.batches = 1
        if top == 0:
            histogram.counts[0] = flat[::stride].size
            return histogram
        histogram.limit = math.ldexp(1.0, max(math.frexp(top)[1], SMALLEST_EXPONENT))
        histogram._count(flat[::stride])
        return histogram

    def _count(self, flat: np.ndarray) -> None:
        # the factor is a power of two, so the product is exact and truncation puts no value into a wrong bin
        factor = np.float32(BINS / self.limit)
        size = min(BLOCK, flat.size)
        scaled, narrow, positions = np.empty(size, np.float32), np.empty(size, np.int32), np.empty(size, np.intp)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            real, whole, wide = scaled[: block.size], narrow[: block.size], positions[: block.size]
            np.abs(block, out=real)
            np.multiply(real, factor, out=real)
            np.copyto(whole, real, casting="unsafe")
            np.copyto(wide, whole)  # in two steps, for which processors have vector instructions
            self.counts += np.bincount(wide, minlength=BINS)

    def add(self, values: np.ndarray) -> None:
        """Count one more batch, see `of`."""
        self.merge(Histogram.of(values))

    def merge(self, batch: Histogram) -> None:
        """Add the counts of the next batch; only the moving average depends on the order of batches."""
        self.amax = max(self.amax, batch.amax)
        if batch.limit > self.limit:
            self.counts = _widened(self.counts, self.limit, batch.limit)
            self.limit = batch.limit
        self.counts += _widened(batch.counts, batch.limit, self.limit)
        self.batches += 1
        self.average += max(1 / self.batches, AVERAGING_CONSTANT) * (batch.amax - self.average)

    @property
    def width(self) -> float:
        """Of one bin, in the tensor's unit."""
        return self.limit / BINS

    @property
    def used(self) -> int:
        """How many bins the range of the data covers; 0 for a tensor of zeros."""
        return int(self.amax / self.width) + 1 if self.amax > 0 else 0


def thinning(shape: tuple[int, ...]) -> int:
    """How far apart the values of a tensor are counted, so that about 2,048 of each sample are.

    Args:
        shape: samples first.

    Returns:
        A stride >= 1 without a common factor with the size of a sample: every row, column and channel gets its turn.
    """
    size = math.prod(shape[1:])
    stride = -(-size // COUNTED_PER_SAMPLE)
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return max(stride, 1)


def _widened(counts: np.ndarray, limit: float, wider: float) -> np.ndarray:
    """The same counts in bins of a larger limit, both powers of two; limit 0 means that all values are zero."""
    if limit in (0, wider):
        return counts
    factor = min(int(wider / limit), BINS)
    merged = counts.reshape(-1, factor).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - merged.size, np.int64)])
