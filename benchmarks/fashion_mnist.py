"""Run `pipelines/fashion_mnist.yaml` whole in a fresh store and hold the figures against what it promises.

    python benchmarks/fashion_mnist.py [--store DIR] [--output benchmarks/results/fashion_mnist.json]

The result holds the wall time of the whole command and of every step, the report of the run, and one
line a promise: value, limit, met or not. Exits 3 if one is not met. Nothing is reused unless --store is
given, so the time is that of a first run; nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from promises import RESULTS, ROOT, compress, promise, write_result

RECIPE = ROOT / "pipelines" / "fashion_mnist.yaml"
MINUTES = 40.0


def promises(report: dict[str, Any], wall_s: float, exit_code: int) -> list[dict[str, Any]]:
    """What the recipe promises, each with its figure; top-1 on the test split, latency in ONNX Runtime."""
    variants = {variant["name"]: variant for variant in report["variants"]}
    teacher, float_twin, int8 = variants[report["reference"]], variants[report["float_twin"]], variants["int8"]
    # ratio_to_float is latency(int8) / latency(float twin): its upper end is the speed-up's lower end
    ratio = {row["batch"]: row for row in int8["ratio_to_float"]}
    rows = [
        ("wall time, minutes", wall_s / 60, "<=", MINUTES),
        ("exit code", exit_code, "<=", 0),
        ("teacher top-1", teacher["top1"], ">=", 0.935),
        ("int8 top-1", int8["top1"], ">=", 0.915),
        ("float twin top-1 minus int8 top-1", float_twin["top1"] - int8["top1"], "<=", 0.005),
        ("teacher parameters over student parameters", teacher["parameters"] / int8["parameters"], ">=", 40),
        ("speed-up over the float twin at batch 32, lower end of the 95 % interval", 1 / ratio[32]["high"], ">", 1.3),
        ("speed-up over the float twin at batch 1", 1 / ratio[1]["ratio"], "reported", None),
    ]
    return [promise(*row) for row in rows]


def main() -> int:
    """Run, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "fashion_mnist.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = str(options.store or Path(scratch) / "artifacts")
        start = time.monotonic()
        run = compress("run", str(RECIPE), "--store", store, "--json")
        wall_s = time.monotonic() - start
        report = compress("report", run["run"], "--store", store, "--format", "json")
    result = {
        "recipe": RECIPE.relative_to(ROOT).as_posix(),
        "environment": report["environment"],
        "wall_s": round(wall_s, 1),
        "steps": [{key: step[key] for key in ("name", "stage", "status", "seconds")} for step in run["steps"]],
        "gates": run["gates"],
        "exit_code": run["exit_code"],
        "promises": promises(report, wall_s, run["exit_code"]),
        "report": report,
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
