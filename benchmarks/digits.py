"""Run `pipelines/digits.yaml` whole for seeds 0, 1 and 2 and hold the figures against what the README promises.

    python benchmarks/digits.py [--output benchmarks/results/digits.json]

Each seed runs in a fresh store, then once more from it; the two wall times are those of the whole command, as are those
of the commands that read its report. The accuracies of the three seeds are pooled for the non-inferiority test. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from promises import RESULTS, ROOT, compress, promise, seconds, write_result

from compress.measure.statistics import tango_noninferiority

RECIPE = ROOT / "pipelines" / "digits.yaml"
SEEDS = (0, 1, 2)
MARGIN = 0.03
COMMANDS = {"compress --help": 0.3, "compress report --format html": 3, "compress compare": 2.5}  # seconds


def run_seed(seed: int) -> dict[str, Any]:
    """Run one seed cold and warm; returns wall times, the step states of the warm run and the report."""
    with tempfile.TemporaryDirectory() as store:
        arguments = ("run", str(RECIPE), "--set", f"seed={seed}", "--store", store, "--json")
        times: list[float] = []
        codes: list[int] = []
        run: dict[str, Any] = {}
        for _ in range(2):
            start = time.monotonic()
            run = compress(*arguments)
            times.append(round(time.monotonic() - start, 2))
            codes.append(run["exit_code"])
        name, page = run["run"], str(Path(store) / "page.html")
        report = compress("report", name, "--store", store, "--format", "json")
        commands = {
            "compress --help": seconds("--help"),
            "compress report --format html": seconds("report", name, "--store", store, "--format", "html", "-o", page),
            "compress compare": seconds("compare", name, name, "--store", store, "--informational"),
        }
    return {
        "seed": seed,
        "cold_s": times[0],
        "warm_s": times[1],
        "warm_hits": sum(step["status"] == "hit" for step in run["steps"]),
        "steps": len(run["steps"]),
        "exit_code": max(codes),
        "seconds": commands,
        "report": report,
    }


def promises(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised of every seed, and of the three pooled; top-1 on the 450 test samples."""
    rows: list[dict[str, Any]] = []
    gained = lost = n = 0
    for run in runs:
        variants = {variant["name"]: variant for variant in run["report"]["variants"]}
        teacher, int8, seed = variants["teacher"], variants["int8"], f"seed {run['seed']}"
        pair = int8["paired_to_reference"]
        gained, lost, n = gained + pair["gained"], lost + pair["lost"], n + pair["n"]
        rows += [
            promise(f"{seed}: cold run, seconds", run["cold_s"], "<=", 90),
            promise(f"{seed}: warm run, seconds", run["warm_s"], "<=", 2),
            *(
                promise(f"{seed}: {what}, seconds", run["seconds"][what], "<=", limit)
                for what, limit in COMMANDS.items()
            ),
            promise(f"{seed}: exit code, the higher of the two", run["exit_code"], "<=", 0),
            promise(f"{seed}: warm run, share of hits", run["warm_hits"] / run["steps"], ">=", 1),
            promise(f"{seed}: teacher top-1", teacher["top1"], ">=", 0.98),
            promise(f"{seed}: teacher top-1 minus int8 top-1", teacher["top1"] - int8["top1"], "<=", MARGIN),
            promise(f"{seed}: teacher over student parameters", teacher["parameters"] / int8["parameters"], ">=", 10),
        ]
    pooled = tango_noninferiority(gained, lost, n, MARGIN)
    return [*rows, promise(f"pooled, n {n}: p of a loss of 3 pp or more (Tango)", pooled.p, "<=", 0.05)]


def main() -> int:
    """Run, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "digits.json")
    options = parser.parse_args()
    runs = [run_seed(seed) for seed in SEEDS]
    result = {
        "recipe": RECIPE.relative_to(ROOT).as_posix(),
        "environment": runs[0]["report"]["environment"],
        "promises": promises(runs),
        "runs": runs,
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
