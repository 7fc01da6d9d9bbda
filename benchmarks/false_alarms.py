"""How often are verdicts wrong? Real latencies with known differences, real reports, simulated accuracies.

    python benchmarks/false_alarms.py [--output benchmarks/results/false_alarms.json]

In one run: a tiny ONNX model against itself while a neighbour process comes and goes on the same processors; then
against itself with a busy wait of 10 % and of 3 % of its own latency after each call, on a machine that is idle but for
this script. Every comparison loads two sessions of its own, because memory laid out differently is a part of the noise.

Report against report: fresh processes of two identical files in turns of five, as a report holds them. Each turn of the
one is compared with the next turn of the other; then every turn with every turn, which keeps what changes from turn to
turn; then five of each pool are drawn again and again; as they are and with the second slowed by a known factor.

Accuracy: Tango's test at a true loss of exactly the margin, at several shares of gained samples.

Takes about 13 minutes on 2 cores; nothing else may run meanwhile. Exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from promises import RESULTS, promise, write_result

from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.log import progress
from compress.measure.comparison import IN_RUN_TOLERANCE, REPORT_TOLERANCE, ratio_verdict, welch_ratio
from compress.measure.latency import TimedCall, latency_ratio, measure_stable
from compress.measure.statistics import normal_sf, tango_score
from compress.pipeline.machine import FACTS, library_version, machine_state, resolve_threads
from compress.stages.fresh_process import FreshVariant, measure_fresh

BATCH, WIDTH, SIZE = 4, 24, 20
FEED = {"image": np.random.default_rng(0).random((BATCH, 3, SIZE, SIZE), np.float32)}
MARGIN = 0.01
GAINED_SHARES = (0.0, 0.005, 0.01, 0.03, 0.1)
SAMPLES = (500, 2000, 10_000)
SLOWDOWNS = (1.0, REPORT_TOLERANCE + 1, 1.1, 1.15, 1.2)

# Shorter than a benchmark's, so that hundreds fit: fewer iterations behind a median, and so more noise, not less.
BLOCKS, SLOT_ITERATIONS, SLOT_MS, WARMUP_ITERATIONS, WARMUP_MS = 20, 30, 15.0, 20, 30.0

NEIGHBOUR = """
import random, time
while True:
    end = time.monotonic() + random.uniform(0.02, 0.6)
    while time.monotonic() < end:
        sum(range(1000))
    time.sleep(random.uniform(0.02, 0.6))
"""


@dataclass(frozen=True)
class Counts:
    """How much is measured; the defaults are what is committed."""

    same: int = 200
    slowed: int = 40
    slightly_slowed: int = 60
    reports: int = 30
    medians: int = 5
    draws: int = 5000
    simulations: int = 100_000


def write_model(path: Path) -> Path:
    """Two convolutions and a matrix product: a fraction of a millisecond for a batch of 4."""
    import onnx

    chance = np.random.default_rng(1)
    shapes = {"first": (WIDTH, 3, 3, 3), "second": (WIDTH, WIDTH, 3, 3), "head": (WIDTH, 10)}
    tensors = [
        onnx.numpy_helper.from_array((0.1 * chance.standard_normal(shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (float[batch,3,{SIZE},{SIZE}] image) => (float[batch,10] logits) {{
          a = Conv <pads = [1, 1, 1, 1]> (image, first)
          b = Relu (a)
          c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, second)
          d = Relu (c)
          e = GlobalAveragePool (d)
          f = Flatten (e)
          logits = MatMul (f, head)
        }}""")
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def slowed(timed: TimedCall, share: float) -> TimedCall:
    """The same call, followed by a busy wait of that share of what it took."""
    if share == 0:
        return timed

    def call() -> float:
        taken_ms = timed()
        start, waited_ms = time.perf_counter_ns(), 0.0
        while waited_ms < share * taken_ms:
            waited_ms = (time.perf_counter_ns() - start) / 1e6
        return taken_ms + waited_ms

    return call


@contextmanager
def neighbour(present: bool) -> Iterator[None]:
    """A process that is busy about half of the time, for as long as the block runs."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if present else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def compare_in_run(model: Path, threads: int, share: float, seed: int) -> dict[str, Any]:
    """One comparison of the model with itself, slowed by that share, in two fresh sessions."""
    sessions = [OnnxRuntimeSession.load(model, threads=threads) for _ in range(2)]
    base, new = (session.timed(FEED) for session in sessions)
    measured = measure_stable(
        {"base": base, "new": slowed(new, share)},
        blocks=BLOCKS,
        slot_iterations=SLOT_ITERATIONS,
        slot_ms=SLOT_MS,
        warmup_iterations=WARMUP_ITERATIONS,
        warmup_ms=WARMUP_MS,
        seed=seed,
    )
    for session in sessions:
        session.close()
    found = latency_ratio(measured.samples["new"], measured.samples["base"])
    unstable = any(trend.unstable for trend in measured.drift.values())
    verdict = "inconclusive" if unstable else ratio_verdict(found.low, found.high, IN_RUN_TOLERANCE)
    return {"ratio": found.ratio, "low": found.low, "high": found.high, "verdict": verdict, "unstable": unstable}


def in_run(model: Path, counts: Counts, threads: int) -> dict[str, Any]:
    """All comparisons within one run, by what was done to the second variant."""
    plan = {
        "same, busy neighbour": (counts.same, 0.0, True),
        "10 % slower": (counts.slowed, 0.1, False),
        "3 % slower": (counts.slightly_slowed, 0.03, False),
    }
    result: dict[str, Any] = {}
    for name, (count, share, busy) in plan.items():
        rows: list[dict[str, Any]] = []
        with neighbour(busy), progress(name, count, "comparisons") as bar:
            for seed in range(count):
                rows.append(compare_in_run(model, threads, share, seed))
                bar.advance()
        ratios = [row["ratio"] for row in rows]
        result[name] = {
            **summary([row["verdict"] for row in rows]),
            "unstable": sum(row["unstable"] for row in rows),
            "median_ratio": float(np.median(ratios)),
            "sd_log_ratio": float(np.std(np.log(ratios), ddof=1)) if count > 1 else None,
            "comparisons": [[round(row[end], 5) for end in ("ratio", "low", "high")] for row in rows],
        }
    return result


def fresh_turns(model: Path, counts: Counts, threads: int) -> dict[str, list[list[float]]]:
    """Medians of fresh processes of two identical files, in alternating turns of five."""
    turns: dict[str, list[list[float]]] = {"base": [], "new": []}
    files = {"base": model, "new": model.with_name("copy.onnx")}
    files["new"].write_bytes(model.read_bytes())
    with progress("fresh processes", 2 * counts.reports * counts.medians, "processes") as bar:
        for turn in range(counts.reports):
            for name, file in files.items():
                variant = FreshVariant(name, "onnxruntime", file, feeds={BATCH: FEED}, first=FEED, threads=threads)
                (row,) = measure_fresh([variant], processes=counts.medians, seed=turn)[name][0]
                turns[name].append(list(row.medians_ms))
                bar.advance(counts.medians)
    return turns


def report_verdict(base_ms: Sequence[float], new_ms: Sequence[float]) -> str:
    """The verdict on two reports with these medians."""
    found = welch_ratio(base_ms, new_ms)
    return ratio_verdict(found.low, found.high, REPORT_TOLERANCE)


def between_reports(model: Path, counts: Counts, threads: int) -> dict[str, Any]:
    """Real pairs of reports on the same model, and rates from drawing out of the pools."""
    turns = fresh_turns(model, counts, threads)
    pools = {name: [median for turn in of_name for median in turn] for name, of_name in turns.items()}
    chance = random.Random(0)
    drawn: dict[str, Any] = {}
    crossed: dict[str, Any] = {}
    for factor in SLOWDOWNS:
        crossed[f"{factor:.2f}"] = summary(
            [
                report_verdict(base, [factor * median for median in new])
                for base in turns["base"]
                for new in turns["new"]
            ]
        )
        verdicts = [
            report_verdict(
                chance.sample(pools["base"], counts.medians),
                [factor * median for median in chance.sample(pools["new"], counts.medians)],
            )
            for _ in range(counts.draws)
        ]
        drawn[f"{factor:.2f}"] = summary(verdicts)
    return {
        "medians_ms": turns,
        "sd_log": {name: float(np.std(np.log(pool), ddof=1)) for name, pool in pools.items()},
        "real": summary([report_verdict(*pair) for pair in zip(turns["base"], turns["new"], strict=True)]),
        "crossed": crossed,
        "drawn": drawn,
    }


def wrong_passes(n: int, gained: float, simulations: int) -> float:
    """Share of simulated test sets on which a model passes whose true loss is the margin itself."""
    shares = [gained, gained + MARGIN, 1 - 2 * gained - MARGIN]
    drawn = np.random.default_rng(n).multinomial(n, shares, simulations)[:, :2]
    pairs, times = np.unique(drawn, axis=0, return_counts=True)
    passes = [normal_sf(tango_score(int(b), int(c), n, MARGIN)) < 0.05 for b, c in pairs]
    return float(times[np.array(passes)].sum() / simulations)


def summary(verdicts: Sequence[str]) -> dict[str, Any]:
    """How many there are of each verdict."""
    return {"n": len(verdicts), "verdicts": dict(sorted(Counter(verdicts).items()))}


def share_of(part: dict[str, Any], verdict: str) -> float:
    """Share of comparisons that ended in this verdict."""
    return part["verdicts"].get(verdict, 0) / part["n"]


def promises(run: dict[str, Any], reports: dict[str, Any], accuracy: dict[str, Any]) -> list[dict[str, Any]]:
    """What is promised, each with its figure."""
    same, large, small = (run[name] for name in ("same, busy neighbour", "10 % slower", "3 % slower"))
    real, crossed, drawn = reports["real"], reports["crossed"], reports["drawn"]
    gates, better = (same["verdicts"].get(verdict, 0) for verdict in ("slower", "faster"))
    rows = [
        (f"in one run, same model, busy neighbour, n {same['n']}: false gates (slower)", gates, "<=", 1),
        (f"in one run, same model, busy neighbour, n {same['n']}: false 'faster'", better, "reported", None),
        (f"in one run, 10 % slower, n {large['n']}: share found slower", share_of(large, "slower"), ">=", 0.9),
        (
            f"in one run, 3 % slower, n {small['n']}: share 'no difference'",
            share_of(small, "no difference"),
            "<=",
            0.05,
        ),
        (f"two reports, same model, n {real['n']}: false gates (slower)", real["verdicts"].get("slower", 0), "<=", 1),
        (
            f"every turn against every turn, same model, n {crossed['1.00']['n']}: share of false gates (slower)",
            share_of(crossed["1.00"], "slower"),
            "<=",
            0.025,
        ),
        (
            "two reports drawn, same model: share of false gates (slower)",
            share_of(drawn["1.00"], "slower"),
            "<=",
            0.025,
        ),
        ("two reports drawn, exactly 5 % slower: share slower", share_of(drawn["1.05"], "slower"), "<=", 0.05),
        ("two reports drawn, 5 %: share 'no difference'", share_of(drawn["1.05"], "no difference"), "<=", 0.05),
    ]
    rows += [
        (
            f"{words}, {factor - 1:.0%} slower: share found",
            share_of(part[f"{factor:.2f}"], "slower"),
            "reported",
            None,
        )
        for words, part in (("every turn against every turn", crossed), ("two reports drawn", drawn))
        for factor in SLOWDOWNS[2:]
    ]
    rows += [
        (f"true loss at the margin, {n} samples: largest share of wrong passes", max(shares.values()), "<=", 0.055)
        for n, shares in accuracy.items()
    ]
    return [promise(*row) for row in rows]


def main() -> int:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "false_alarms.json")
    for name, count in asdict(Counts()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=count, help=f"default {count}")
    parser.add_argument("--threads", default="auto", help="of the sessions; default auto, as in a benchmark")
    options = parser.parse_args()
    counts = Counts(**{name: getattr(options, name) for name in asdict(Counts())})
    threads = resolve_threads(options.threads)
    environment = {
        **{name: FACTS[name]() for name in ("cpu", "threads")},
        **machine_state(),
        "session_threads": threads,
        "libraries": {name: library_version(name) for name in ("onnxruntime", "numpy")},
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        model = write_model(Path(scratch) / "tiny.onnx")
        run = in_run(model, counts, threads)
        reports = between_reports(model, counts, threads)
    accuracy = {
        str(n): {str(share): wrong_passes(n, share, counts.simulations) for share in GAINED_SHARES} for n in SAMPLES
    }
    result = {
        "environment": environment,
        "counts": asdict(counts),
        "slots": {"blocks": BLOCKS, "iterations": SLOT_ITERATIONS, "ms": SLOT_MS, "warmup_ms": WARMUP_MS},
        "wall_s": round(time.monotonic() - start, 1),
        "promises": promises(run, reports, accuracy),
        "in_run": run,
        "between_reports": reports,
        "accuracy": {"margin": MARGIN, "wrong_passes_by_samples_and_gained_share": accuracy},
    }
    return write_result(options.output, result)


if __name__ == "__main__":
    sys.exit(main())
