"""Which method of calibration loses least: every method on the networks that are held beside the peers.

    python benchmarks/calibration_methods.py [--models vit] [--seeds 0] [--work DIR] [--output FILE]

Both int8 files of each network are judged on validation images, beside the float network: the signed one node by node,
as ONNX defines it, which is what TensorRT computes but for rounding, the unsigned one as ONNX Runtime executes it.
Takes about 5 minutes on 2 cores after the networks are trained; exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from int8_peers import Bench, Plan
from peers.networks import RECIPES, data_of
from promises import RESULTS, ROOT, promise, write_result
from remembering import versions

from compress.data.calibration_set import calibration_set
from compress.data.split import Split
from compress.onnx_graph.loading import load_onnx
from compress.pipeline.machine import FACTS
from compress.quantization.quantize import DEFAULTS, quantize_onnx
from compress.quantization.sensitivity import Judge
from compress.quantization.settings import Method, QuantizeSettings
from compress.stages.contract import network_input

CALIBRATION_SAMPLES, JUDGED_SAMPLES, CHUNK = 512, 1000, 250
BEHIND_DB = 1.0  # by which the default may be behind the best method on one kind of network


def pieces(split: Split) -> Iterator[np.ndarray]:
    """The images in order, (n, 1, 28, 28), float32 in [0, 1]."""
    for start in range(0, len(split), CHUNK):
        yield network_input(split.images[start : start + CHUNK])


def measure(path: Path, train: Split, judged: Split) -> list[dict[str, Any]]:
    """Quantize one network with each method; `sqnr_db` of the logits and `loss_pp` of top-1 against float, per file."""
    model = load_onnx(path)
    chosen, _ = calibration_set(train, CALIBRATION_SAMPLES)
    judge = Judge(model, lambda: pieces(judged), judged.labels)
    rows = []
    for method in get_args(Method):
        quantized = quantize_onnx(model, pieces(chosen), QuantizeSettings(method=method))
        scores = {
            "signed": judge.score(quantized.signed, optimized=False),
            "unsigned": judge.score(quantized.unsigned),
        }
        rows += [
            {"method": method, "file": file, "sqnr_db": round(score.sqnr_db, 2), "loss_pp": score.loss_pp}
            for file, score in scores.items()
        ]
    return rows


def promises(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The default against the best method on each kind of network, both files and all seeds together."""
    found: list[dict[str, Any]] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        mean = {
            method: statistics.fmean(row["sqnr_db"] for row in mine if row["method"] == method)
            for method in get_args(Method)
        }
        best = max(mean, key=mean.__getitem__)
        what = f"{model}: SQNR of the logits with {DEFAULTS.method} minus that with {best}, the best method, dB"
        found.append(promise(what, mean[DEFAULTS.method] - mean[best], ">=", -BEHIND_DB))
        for method in get_args(Method):
            losses = [row["loss_pp"] for row in mine if row["method"] == method]
            what = f"{model}, {method}: mean SQNR {mean[method]:.1f} dB; largest loss of top-1, pp"
            found.append(promise(what, max(losses), "reported", None))
    return found


def main() -> int:
    """Train what is missing, quantize, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(RECIPES), help="names, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="numbers, separated by commas")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "int8_peers", help="trained networks")
    parser.add_argument("--output", type=Path, default=RESULTS / "calibration_methods.json")
    options = parser.parse_args()
    models, seeds = tuple(options.models.split(",")), tuple(map(int, options.seeds.split(",")))
    bench = Bench(Plan(models, seeds, JUDGED_SAMPLES, False, options.work))
    data = data_of()
    judged = data.validation.take(np.arange(JUDGED_SAMPLES))
    rows: list[dict[str, Any]] = []
    for model in models:
        for seed in seeds:
            path, _ = bench.float_file(model, seed)
            rows += [{"model": model, "seed": seed, **row} for row in measure(path, data.train, judged)]
            bench.say(f"{model} seed {seed}: quantized with each method")
    result = {
        "environment": {"cpu": FACTS["cpu"](), "libraries": versions("numpy", "onnx", "onnxruntime")},
        "samples": {"calibration": CALIBRATION_SAMPLES, "validation": JUDGED_SAMPLES},
        "promises": promises(rows),
        "rows": rows,
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
