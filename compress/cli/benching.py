"""`compress bench`: which of some model files is faster here, without a recipe."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifacts.fingerprint import sha256_file
from compress.cli.gating import LATENCY, latency_limit
from compress.cli.render import print_document, print_tables
from compress.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_UNAVAILABLE, UsageError
from compress.log import get_logger, progress
from compress.pipeline.machine import resolve_threads
from compress.report.tables import ABSENT, Table, size_text

if TYPE_CHECKING:
    from compress.engines.session import Arrays
    from compress.measure.bench import BenchFile
    from compress.measure.comparison import RatioVerdict
    from compress.measure.latency import Measurement
    from compress.measure.statistics import RatioEstimate
    from compress.report.document import ColdStart

_MOST_S = 86_400.0
_LEAST_S = 1.0  # left for measuring, however long loading took


@dataclass(frozen=True)
class BenchOptions:
    """What the command line said; see `compress bench --help`."""

    inputs: Path | None
    batches: str | None
    threads: int | None
    cuda_graphs: bool
    budget: str
    gates: Sequence[str]
    informational: bool
    seed: int
    as_json: bool


@dataclass(frozen=True)
class _Results:
    """All that was measured, by file name."""

    files: list[BenchFile]
    batches: tuple[int, ...]
    measured: Mapping[int, Measurement]
    cold: Mapping[str, ColdStart]
    environment: dict[str, Any]


@dataclass(frozen=True)
class _Pair:
    """A file against the first one, at one batch size; where either drifted, nothing is decided."""

    base: str
    new: str
    batch: int
    found: RatioEstimate
    drifted: bool
    verdict: RatioVerdict

    def as_json(self) -> dict[str, Any]:
        names = {"base": self.base, "new": self.new, "batch": self.batch}
        figures = {"ratio": self.found.ratio, "low": self.found.low, "high": self.found.high}
        return {**names, **figures, "verdict": self.verdict}


def bench_files(paths: Sequence[Path], options: BenchOptions) -> int:
    """Measure model files together and print what came of it.

    Args:
        paths: one or more; every other file is held against the first.
        options: of the command line.

    Returns:
        The exit code: 3 or 4 where a gate fails or cannot be decided, 7 where no file can run here, else 0.

    Raises:
        UsageError: an option makes no sense, or a suffix is unknown.
        DataError: the inputs do not fit.
        ModelError: a file cannot be loaded or run.
        NotComparableError: the files do different work.
        ArtifactError: an engine is damaged.
    """
    budget_s, wanted = parse_budget(options.budget), _parse_batches(options.batches)
    limit = latency_limit(options.gates)
    if limit is not None and len(paths) < 2:
        raise UsageError(f"--gate {LATENCY} needs two files", hint="compress bench BASE NEW --gate " + options.gates[0])
    results = _measure(paths, options, budget_s, wanted)
    pairs = _pairs(results)
    if options.as_json:
        variants = [_variant(file, results) for file in results.files]
        print_document(
            {"environment": results.environment, "variants": variants, "pairs": [pair.as_json() for pair in pairs]}
        )
    else:
        _print(results, pairs)
    return _exit_code(results, pairs, limit, options)


def parse_budget(text: str) -> float:
    """Return seconds from `30s`, `2m` or `1.5m`.

    Raises:
        UsageError: another text, or no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)", text.strip())
    seconds = float(found[1]) * (60 if found[2] == "m" else 1) if found else 0.0
    if not 0 < seconds <= _MOST_S:
        raise UsageError(f"--budget {text[:40]}: expected a time such as 30s, 2m or 10m, at most a day")
    return seconds


def _parse_batches(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,6}", part) and int(part) > 0 for part in parts):
        raise UsageError(f"--batch {text[:40]}: expected whole numbers from 1 to 999999, e.g. 1,32")
    return [int(part) for part in parts]


def _measure(paths: Sequence[Path], options: BenchOptions, budget_s: float, wanted: list[int] | None) -> _Results:
    from compress.measure.bench import choose_batches, make_feed, measure_files, open_files, read_inputs
    from compress.stages.circumstances import environment

    threads = resolve_threads("auto" if options.threads is None else options.threads)
    surroundings = environment("cpu", threads)  # before anything here loads the machine
    start = time.monotonic()
    given = None if options.inputs is None else read_inputs(options.inputs)
    files = open_files(paths, threads=threads, cuda_graphs=options.cuda_graphs)
    running = [file for file in files if file.session]
    batches = choose_batches(files, wanted) if running else ()
    feeds = {b: {file.name: make_feed(file, b, given, options.seed) for file in running} for b in batches}
    _check(running, feeds, informational=options.informational)
    cold = _cold_starts(running, feeds, threads, options) if running else {}
    left_s = max(_LEAST_S, budget_s - (time.monotonic() - start))
    measured: dict[int, Measurement] = {}
    if running:
        with progress("latency", left_s, "s") as bar:
            began = time.monotonic()
            planned: dict[int, int] = {}
            again: set[int] = set()  # batch sizes that drifted: each is measured twice

            def on_block(batch: int, done: int, total: int) -> None:
                if total > planned.setdefault(batch, total):
                    again.add(batch)
                bar.show(time.monotonic() - began, left_s * (1 + len(again) / len(feeds)))
                bar.update(batch=batch, block=f"{done}/{total}")

            measured = measure_files(running, feeds, budget_s=left_s, seed=options.seed, on_block=on_block)
    for file in running:
        assert file.session is not None
        file.session.close()
    return _Results(files, batches, measured, cold, _environment(surroundings, options, batches))


def _check(running: Sequence[BenchFile], feeds: Mapping[int, Mapping[str, Arrays]], *, informational: bool) -> None:
    """Run every file at every batch size once, before minutes are spent on measuring."""
    from compress.measure.bench import check_same_task, run_once

    for feed in feeds.values():
        if informational:
            for file in running:
                run_once(file, feed[file.name])
        else:
            check_same_task(running, feed)


def _cold_starts(
    running: Sequence[BenchFile], feeds: Mapping[int, Mapping[str, Arrays]], threads: int, options: BenchOptions
) -> dict[str, ColdStart]:
    from compress.stages.fresh_process import FreshSlot, FreshVariant, measure_fresh

    variants = [
        FreshVariant(
            name=file.name,
            runtime=file.runtime,  # type: ignore[arg-type]
            path=file.path,
            feeds={batch: feed[file.name] for batch, feed in feeds.items()},
            first=next(iter(feeds.values()))[file.name],
            device="cpu" if file.runtime == "onnxruntime" else "cuda",
            threads=threads,
            cuda_graphs=options.cuda_graphs,
        )
        for file in running
    ]
    # One call a batch size: what is compared comes from the interleaved blocks.
    once = FreshSlot(slot_iterations=1, slot_ms=0, warmup_iterations=0, warmup_ms=0)
    return {name: cold for name, (_, cold) in measure_fresh(variants, slot=once, seed=options.seed).items()}


def _environment(surroundings: dict[str, Any], options: BenchOptions, batches: Sequence[int]) -> dict[str, Any]:
    from compress.measure.latency import HARNESS_VERSION

    return {
        **surroundings,
        "harness": HARNESS_VERSION,
        "cuda_graphs": options.cuda_graphs,
        "budget": options.budget,
        "batches": list(batches),
        "inputs": "synthetic" if options.inputs is None else str(options.inputs),
        "seed": options.seed,
    }


def _pairs(results: _Results) -> list[_Pair]:
    """Every other file against the first, at every batch size; none where their timers differ."""
    from compress.measure.comparison import IN_RUN_TOLERANCE, ratio_verdict
    from compress.measure.latency import latency_ratio

    base, *others = results.files
    pairs: list[_Pair] = []
    for batch, measurement in results.measured.items():
        for new in others:
            if base.session is None or new.session is None or base.label != new.label:
                continue
            found = latency_ratio(measurement.samples[new.name], measurement.samples[base.name])
            drifted = any(measurement.drift[file.name].unstable for file in (base, new))
            verdict = "inconclusive" if drifted else ratio_verdict(found.low, found.high, IN_RUN_TOLERANCE)
            pairs.append(_Pair(base.name, new.name, batch, found, drifted, verdict))
    return pairs


def _variant(file: BenchFile, results: _Results) -> dict[str, Any]:
    from compress.engines.session import ran_as
    from compress.report.build import latency_rows

    rows = latency_rows(results.measured, file.name)
    cold = results.cold.get(file.name)
    return {
        "name": file.name,
        "file": str(file.path),
        "sha256": sha256_file(file.path),
        "kind": file.kind,
        "status": "measured" if file.session else "not run",
        "reason": file.reason,
        "session": ran_as(file.label, file.session),
        "size_bytes": file.path.stat().st_size,
        "inputs": [spec.as_json() for spec in file.inputs],
        "outputs": [spec.as_json() for spec in file.outputs],
        "latency": [row.model_dump(mode="json") for row in rows],
        "single_stream": _single_stream(file.name, results),
        "offline": _offline(file.name, results),
        "cold_start": None if cold is None else cold.model_dump(mode="json"),
    }


def _single_stream(name: str, results: _Results) -> dict[str, Any] | None:
    """One sample after the other, as for a person who waits: the 90th percentile; None where batch 1 was not run."""
    samples = results.measured[1].samples.get(name) if 1 in results.measured else None
    return None if samples is None else {"batch": 1, "p90_ms": samples.percentile_ms(90)}


def _offline(name: str, results: _Results) -> dict[str, Any] | None:
    """All samples at hand: the throughput of the largest batch."""
    if not results.measured:
        return None
    batch = max(results.measured)
    samples = results.measured[batch].samples.get(name)
    return None if samples is None else {"batch": batch, "samples_per_s": batch * samples.calls_per_s}


def _print(results: _Results, pairs: Sequence[_Pair]) -> None:
    tables = [_latency_table(results), _scenario_table(results), _pair_table(pairs)]
    print_tables(table for table in tables if table.rows)
    state = results.environment
    print(
        f"\n{state['cpu']}, {state['session_threads']} threads, governor {state['governor'] or 'unknown'}, "
        f"load {state['load_average'][0] if state['load_average'] else 'unknown'}, "
        f"idle threads {'spin' if state['spinning'] else 'sleep'}, inputs {state['inputs']}"
    )
    base, *others = results.files
    for file in results.files:
        if file.reason:
            print(f"{file.name} was not run: {file.reason}")
    if not others:
        print("one file: there is nothing to compare it with; compress bench BASE NEW compares two")
    for file in others:
        if base.session and file.session and base.label != file.label:
            print(f"{file.name} is not compared with {base.name}: {file.label} and {base.label} have different timers")


def _latency_table(results: _Results) -> Table:
    from compress.engines.session import ran_as
    from compress.report.build import latency_rows

    header = ("file", "session", "batch", "p50 ms", "p90 ms", "p99 ms", "n")
    rows = tuple(
        (
            file.name,
            ran_as(file.label, file.session),
            str(row.batch),
            f"{row.p50_ms:.3f}",
            f"{row.p90_ms:.3f}",
            ABSENT if row.p99_ms is None else f"{row.p99_ms:.3f}",
            f"{row.n:,}" + (" (drifted)" if row.unstable else ""),
        )
        for file in results.files
        for row in latency_rows(results.measured, file.name)
    )
    return Table("Latency per call", header, rows, frozenset(range(2, 7)))


def _scenario_table(results: _Results) -> Table:
    header = ("file", "single stream p90 ms", "offline samples/s", "load ms", "first call ms", "peak memory", "size")
    rows: list[tuple[str, ...]] = []
    for file in results.files:
        single, offline = _single_stream(file.name, results), _offline(file.name, results)
        cold = results.cold.get(file.name)
        rows.append(
            (
                file.name,
                ABSENT if single is None else f"{single['p90_ms']:.3f}",
                ABSENT if offline is None else f"{offline['samples_per_s']:,.0f} (batch {offline['batch']})",
                ABSENT if cold is None else f"{cold.load_ms:.1f}",
                ABSENT if cold is None else f"{cold.first_ms:.1f}",
                ABSENT if cold is None else size_text(cold.peak_bytes),
                size_text(file.path.stat().st_size),
            )
        )
    return Table("Scenarios, cold start and memory in a fresh process", header, tuple(rows), frozenset(range(1, 7)))


def _pair_table(pairs: Sequence[_Pair]) -> Table:
    header = ("new", "against", "batch", "latency ratio (95 %)", "verdict")
    rows = tuple((pair.new, pair.base, str(pair.batch), _ratio_text(pair.found), pair.verdict) for pair in pairs)
    return Table("Compared: below 1 the new file is faster, 3 % are no difference", header, rows, frozenset((2, 3)))


def _ratio_text(found: RatioEstimate) -> str:
    return f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"


def _without_pair(files: Sequence[BenchFile]) -> list[tuple[str, str]]:
    """Every file that is not compared with the first, and why."""
    base, *others = files
    found: list[tuple[str, str]] = []
    for file in others:
        if file.session is None:
            found.append((file.name, file.reason or ""))
        elif base.session is None:
            found.append((file.name, f"{base.name} was not run: {base.reason}"))
        elif base.label != file.label:
            found.append((file.name, f"{file.label} and {base.label} of {base.name} have different timers"))
    return found


def _exit_code(results: _Results, pairs: Sequence[_Pair], limit: float | None, options: BenchOptions) -> int:
    """Judge the gate; its lines go to standard error, so that a document stays whole."""
    from compress.measure.statistics import needed_blocks, ratio_decision

    logger = get_logger(__name__)
    for file, reason in _without_pair(results.files) if limit is not None else []:
        logger.warning(f"gate {LATENCY} not run: {file} ({reason})")
    if not results.measured:
        logger.error("no file can run here")
        return EXIT_UNAVAILABLE
    if limit is None:
        return EXIT_OK
    codes = {EXIT_INCONCLUSIVE} if not pairs else set[int]()
    for pair in pairs:
        found, advice = pair.found, ""
        decision = "inconclusive" if pair.drifted else ratio_decision(found.low, found.high, limit)
        if pair.drifted:
            advice = "; the machine drifts: measure when it is idle"
        elif decision == "inconclusive":
            blocks = needed_blocks(found.mean_log, found.sd_log, limit)
            advice = "; the ratio is the limit itself"
            if blocks is not None:
                advice = f"; about {blocks:,} blocks instead of {found.blocks} would decide: a longer --budget"
        logger.warning(
            f"gate {LATENCY} {decision}: {pair.new} at batch {pair.batch}: {_ratio_text(found)}, "
            f"limit {limit:g}{advice}"
        )
        codes.add({"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE}[decision])
    worst = next((code for code in (EXIT_GATE_FAILED, EXIT_INCONCLUSIVE) if code in codes), EXIT_OK)
    return EXIT_OK if options.informational else worst
