"""`compress run` and `compress plan`: what is done, line by line, and what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifacts.manifest import Artifact, Checkpoint, Engine, QuantizedOnnx, Report
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.cli.gating import overrides_from_gates
from compress.cli.places import shown, store_root
from compress.cli.render import duration_text, headline, print_document, print_tables, short_key
from compress.cli.reporting import load_report, verdicts_of, write_pages
from compress.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_UNAVAILABLE, TryAgainError, UsageError
from compress.log import get_logger
from compress.pipeline import plan as planning
from compress.pipeline import runner
from compress.pipeline.recipe import Recipe, load_recipe
from compress.pipeline.runner import StepEvent
from compress.report.gates import not_evaluated
from compress.report.tables import Table, fact_lines, gate_table, report_tables
from compress.training.traces import OPERATORS, PROFILE

log = get_logger(__name__)

# What a record calls a step that ran to its end is a finished run of it to whoever reads the document.
_STATUS = {"done": "run"}
_FILES: dict[type[Artifact], tuple[tuple[str, str], ...]] = {
    QuantizedOnnx: (("int8 ONNX for TensorRT", "model.onnx"), ("int8 ONNX for ONNX Runtime", "model.ort.onnx")),
    Engine: (("engine", "model*.plan"),),  # one for all GPUs, or one for each
    Report: (("report", "report.json"),),
}
_ENDS = {
    EXIT_OK: "passed",
    EXIT_GATE_FAILED: "a gate failed",
    EXIT_INCONCLUSIVE: "a gate is inconclusive",
    EXIT_UNAVAILABLE: "a required variant was not run",
}


class Printer:
    """One line a step, as it ends; the artifacts and the run's id are kept for what comes after.

    Args:
        recipe: for the widths of the columns.
        silent: print no line; warnings still go to standard error.
        profiling: warn of what is not profiled.
    """

    def __init__(self, recipe: Recipe, *, silent: bool, profiling: bool = False) -> None:
        self.artifacts: dict[str, Artifact] = {}
        self.run = ""  # id of the run, once it has told something
        self._silent = silent
        self._profiling = profiling
        self._reasons: dict[str, str] = {}
        self._name_width = max(len(step.name) for step in recipe.steps)
        self._stage_width = max(len(step.stage.name) for step in recipe.steps)

    def on_event(self, event: StepEvent) -> None:
        """Take one event of the runner."""
        self.run = event.run
        if event.kind == "start":
            self._reasons[event.step] = event.message
        elif event.kind == "waiting":
            log.warning("%s: another run is making it; waiting for its result", event.step)
        elif event.kind == "repair":
            log.warning("%s: its artifact is damaged and is made again: %s", event.step, event.message)
        else:
            if event.artifact is not None:
                self.artifacts[event.step] = event.artifact
            if self._profiling and event.kind == "hit" and isinstance(event.artifact, Checkpoint):
                log.warning("%s: a hit, so it is not profiled; --force %s trains it again", event.step, event.step)
            if not self._silent:
                print(self._line(event), flush=True)

    def _line(self, event: StepEvent) -> str:
        manifest = event.artifact.manifest if event.artifact else None
        metric = headline(manifest) if manifest else ""
        reason = "" if event.kind == "hit" else self._reasons.get(event.step, "")
        parts = (
            event.step.ljust(self._name_width),
            event.stage.ljust(self._stage_width),
            _STATUS.get(event.kind, event.kind).ljust(len("failed")),
            short_key(manifest.key, manifest.revision) if manifest else "-" * 12,
            duration_text(event.seconds).rjust(len("3 min 05 s")),
            metric,
            f"({reason})" if reason else "",
        )
        return "  ".join(part for part in parts if part).rstrip()


@dataclass(frozen=True)
class RunOptions:
    """What the command line said about a run.

    `until` names the last step and `only` the single one; `force` repeats steps even on a hit; `lock_timeout_s` is how
    long to wait for another writer, seconds; `rehash` ignores remembered hashes of data files; `as_json` prints one
    document at the end instead of lines and tables, `quiet` gates and the last lines only; `profile` profiles every
    training that runs.
    """

    until: str | None
    only: str | None
    force: Sequence[str]
    lock_timeout_s: float
    rehash: bool
    as_json: bool
    quiet: bool
    profile: bool = False


def run_recipe(
    path: Path,
    overrides: Sequence[str],
    store_option: Path | None,
    options: RunOptions,
    *,
    gates: Sequence[str] = (),
) -> int:
    """Run a recipe and print what happened.

    Args:
        path: the recipe.
        overrides: what each `--set` said.
        store_option: what `--store` said.
        options: the rest.
        gates: what each `--gate` said; they take the place of the recipe's gates of the same name.

    Returns:
        The exit code that the gates deserve.

    Raises:
        CompressError: as `compress.pipeline.runner.run`; with `as_json` the document of the failed run comes first.
    """
    from compress.stages import CATALOGUE

    started = time.monotonic()
    recipe = load_recipe(path, [*overrides, *overrides_from_gates(gates)], CATALOGUE)
    store = Store(store_root(store_option, path))
    silent = options.as_json or options.quiet
    printer = Printer(recipe, silent=silent, profiling=options.profile)
    if not silent:
        print(f"{recipe.name}: {len(recipe.steps)} steps, seed {recipe.seed}, store {shown(store.root)}", flush=True)
    try:
        record = runner.run(
            recipe,
            store,
            CATALOGUE,
            until=options.until,
            only=options.only,
            force=options.force,
            lock_timeout_s=options.lock_timeout_s,
            rehash=options.rehash,
            profile=options.profile,
            on_event=printer.on_event,
        )
    except Exception:
        if options.as_json and printer.run:
            print_document(run_document(store.read_run(printer.run), store))
        raise
    assert record.exit_code is not None, "a run that ended has an exit code"
    pages = written_pages(store, record)
    if options.as_json:
        print_document(run_document(record, store, pages))
    else:
        print_outcome(record, store, printer.artifacts, pages, time.monotonic() - started, quiet=options.quiet)
    return record.exit_code


def written_pages(store: Store, record: RunRecord) -> dict[str, Path]:
    """Write the HTML pages of a run; where that fails there are none and a warning: the gates stand all the same."""
    try:
        return write_pages(store, record)
    except (TryAgainError, UsageError) as error:
        log.warning("the report for browsers could not be written: %s", error)
        return {}


def run_document(record: RunRecord, store: Store, pages: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """What `compress run --json` prints; `pages` are the HTML files that were written, by step.

    `traces` is the folder of what training left, null where every training was a hit.
    """
    steps = [
        {
            "name": step.name,
            "stage": step.stage,
            "status": _STATUS.get(step.status, step.status),
            "key": step.key,
            "revision": step.revision,
            "digest": step.digest,
            "path": str(store.root / step.path) if step.path else None,
            "seconds": step.seconds,
            "error": step.error,
        }
        for step in record.steps
    ]
    return {
        "run": record.id,
        "recipe": record.recipe,
        "seed": record.seed,
        "status": record.status,
        "steps": steps,
        "gates": list(record.gates),
        "pages": {step: str(path) for step, path in (pages or {}).items()},
        "traces": str(traces) if (traces := store.traces(record.id)).is_dir() else None,
        "exit_code": record.exit_code,
    }


def print_outcome(
    record: RunRecord,
    store: Store,
    artifacts: dict[str, Artifact],
    pages: Mapping[str, Path],
    seconds: float,
    *,
    quiet: bool,
) -> None:
    """Print what a run ended with: reports, gates, files, and the last line.

    Args:
        record: of the run, which has ended.
        store: where it is.
        artifacts: by step, those to tell of.
        pages: the HTML files that were written, by step.
        seconds: how long it took.
        quiet: no report, gates and the last lines only.
    """
    verdicts = verdicts_of(record)
    if not quiet:
        for report in artifacts.values():
            if isinstance(report, Report):
                document = load_report(store, report)
                print()
                print_tables(report_tables(document, []))
                print("\n".join(["", *fact_lines(document)]))
    if verdicts:
        print()
        print_tables([gate_table(verdicts)])
    files = [
        (f"  {step}", what, shown(path))
        for step, artifact in artifacts.items()
        for what, name in _FILES.get(type(artifact), ())
        for path in sorted(artifact.path.glob(name))
    ]
    files += [(f"  {step}", "report for browsers", shown(path)) for step, path in pages.items()]
    if files:
        print()
        print_tables([Table("", ("Files", "", ""), tuple(files))])
    if lines := list(trace_lines(store.traces(record.id))):
        print("\n" + "\n".join(lines))
    hits = sum(step.status == "hit" for step in record.steps)
    end = _ENDS.get(record.exit_code or EXIT_OK, f"exit code {record.exit_code}")
    print(f"\n{record.id}: {end}; {len(record.steps)} steps, {hits} hits, {duration_text(seconds)}")
    missing = not_evaluated(verdicts)
    if missing:
        print(missing)


def trace_lines(traces: Path) -> Iterator[str]:
    """Where what training left in a run lies, and what opens it; nothing where every training was a hit."""
    if any(traces.glob("*/events.*")):
        yield f"training, epoch by epoch: tensorboard --logdir {shown(traces)}"
    if any(traces.glob(f"*/{PROFILE}")):
        yield (
            f"profiles of training, for ui.perfetto.dev: {shown(traces)}/*/{PROFILE}; "
            f"slowest operators: {OPERATORS} beside them"
        )


def plan_recipe(
    path: Path,
    overrides: Sequence[str],
    store_option: Path | None,
    *,
    force: Sequence[str],
    rehash: bool,
    as_json: bool,
) -> None:
    """Print for every step whether it is a hit, runs and why, or depends on another.

    Args:
        path: the recipe.
        overrides: what each `--set` said.
        store_option: what `--store` said.
        force: steps that would run even on a hit.
        rehash: ignore remembered hashes of data files.
        as_json: print `{recipe, store, steps}` as one document.

    Raises:
        CompressError: as `load_recipe` and `compress.pipeline.plan.plan`.
    """
    from compress.stages import CATALOGUE

    recipe = load_recipe(path, overrides, CATALOGUE)
    store = Store(store_root(store_option, path))
    planned = planning.plan(recipe, store, CATALOGUE, force=force, rehash=rehash)
    if as_json:
        steps = [
            {
                "name": one.step,
                "stage": one.stage,
                "status": one.status,
                "reason": one.reason,
                "key": one.key,
                "path": str(one.path) if one.path else None,
            }
            for one in planned
        ]
        print_document({"recipe": recipe.name, "seed": recipe.seed, "store": str(store.root), "steps": steps})
        return
    rows = tuple((one.step, one.stage, one.status, short_key(one.key), one.reason) for one in planned)
    print_tables([Table("", ("step", "stage", "plan", "key", "reason"), rows)])
