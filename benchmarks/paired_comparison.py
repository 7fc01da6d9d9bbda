"""How long does it take to compare two models on 100,000 samples, every figure of a report included?

    python benchmarks/paired_comparison.py [--output benchmarks/results/paired_comparison.json]

Synthetic logits of 10 and of 100 classes. Takes seconds; exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from promises import RESULTS, promise, write_result

from compress.measure.comparison import paired_counts
from compress.measure.fidelity import compare_logits, correct_bits, parity
from compress.measure.statistics import tango_noninferiority, wilson
from compress.pipeline.machine import FACTS, library_version, machine_state
from compress.report.build import detail_of

SAMPLES = 100_000
REPEATS = 5


def seconds(classes: int) -> float:
    """Fastest of several whole comparisons; what shares the machine only ever adds time."""
    chance = np.random.default_rng(0)
    labels = chance.integers(0, classes, SAMPLES)
    reference = chance.normal(0, 2, (SAMPLES, classes)).astype(np.float32)
    reference[np.arange(SAMPLES), labels] += 6
    candidate = reference + chance.normal(0, 0.5, reference.shape).astype(np.float32)
    names, ids = [f"class {i}" for i in range(classes)], [str(i) for i in range(SAMPLES)]
    taken: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = compare_logits(candidate, reference, labels)
        detail = detail_of(candidate, reference, labels, classes=names, ids=ids)
        parity(candidate, reference)
        wilson(found.correct, found.n)
        gained, lost = paired_counts(correct_bits(reference, labels), detail.correct, SAMPLES)
        tango_noninferiority(gained, lost, SAMPLES, 0.01)
        taken.append(time.perf_counter() - start)
        assert (gained, lost) == (found.gained, found.lost)
    return min(taken)


def main() -> int:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "paired_comparison.json")
    options = parser.parse_args()
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **machine_state(),
            "libraries": {"numpy": library_version("numpy")},
        },
        "promises": [
            promise(f"{SAMPLES:,} samples, {classes} classes, seconds", seconds(classes), "<=", 2)
            for classes in (10, 100)
        ],
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
