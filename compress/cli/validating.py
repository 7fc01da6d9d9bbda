"""`compress validate`: a finished run's engine or int8 ONNX, measured on this machine against the run's reference."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.cli.gating import overrides_from_gates
from compress.cli.places import store_root
from compress.cli.render import print_document
from compress.cli.reporting import find_report, load_report, verdicts_of
from compress.cli.running import print_outcome, run_document, written_pages
from compress.errors import UsageError
from compress.log import get_logger
from compress.pipeline.recipe import load_recipe
from compress.report.document import joined_report, report_json

if TYPE_CHECKING:
    from compress.stages.validate import Device

log = get_logger(__name__)


@dataclass(frozen=True)
class ValidateOptions:
    """What the command line said; see `compress validate --help`."""

    device: Device
    step: str | None
    recipe: Path | None
    overrides: Sequence[str]
    gates: Sequence[str]
    as_json: bool


def validate_reference(reference: str, store_option: Path | None, options: ValidateOptions) -> int:
    """Measure a run's engines or int8 ONNX files again, here, and print what came of it.

    Args:
        reference: run id or tag, or RUN:STEP where a run has several benchmarks.
        store_option: what `--store` said.
        options: the rest.

    Returns:
        The exit code that the gates deserve; 7 where something could not run here.

    Raises:
        UsageError: no such run, no finished benchmark, or none that measured what runs on the device.
        CompressError: as `compress.stages.validate.validate_run`.
    """
    from compress.stages import CATALOGUE
    from compress.stages.validate import validate_run

    started = time.monotonic()
    store = Store(store_root(store_option))
    name, _, step = reference.partition(":")
    if step and options.step not in (None, step):
        raise UsageError(f"{reference} and --step {options.step} contradict each other", hint="give one of them")
    run = store.read_run(name)
    report = find_report(store, run, options.step or step)
    overrides = [*options.overrides, *overrides_from_gates(options.gates)]
    recipe = load_recipe(_recipe_path(run, options.recipe), overrides, CATALOGUE)
    if not options.as_json:
        print(f"{run.id}: {report.step} again on {options.device}", flush=True)
    done = validate_run(run, report, recipe, store, options.device)
    if not options.gates:
        _warn_of_other_gates(run, done.record)
    pages = written_pages(store, done.record)
    if options.as_json:
        document = joined_report(load_report(store, done.report), done.record.id, verdicts_of(done.record))
        print_document(
            {
                "validated": run.id,
                "device": options.device,
                "measured": list(done.measured),
                **run_document(done.record, store, pages),
                "report": json.loads(report_json(document)),
            }
        )
    else:
        seconds = time.monotonic() - started
        print_outcome(done.record, store, {done.report.step: done.report}, pages, seconds, quiet=False)
    assert done.record.exit_code is not None, "a run that ended has an exit code"
    return done.record.exit_code


def _recipe_path(run: RunRecord, given: Path | None) -> Path:
    path = given or Path(run.recipe_path)
    if given is None and not path.is_file():
        raise UsageError(
            f"the recipe of run {run.id} is not here: {path}",
            hint="--recipe FILE names it; its data and gates are read, nothing of it is run",
        )
    return path


def _warn_of_other_gates(run: RunRecord, record: RunRecord) -> None:
    """Say so where the recipe's gates are no longer those that the run was judged by."""
    before: dict[str, set[float | None]] = {}
    for verdict in verdicts_of(run):
        before.setdefault(verdict.gate, set()).add(verdict.limit)
    for verdict in verdicts_of(record):
        known = before.get(verdict.gate, set())
        if verdict.verdict == "not run" or verdict.limit is None:
            continue
        if verdict.limit not in known and None not in known:
            then = ", ".join(f"{limit:g}" for limit in sorted(filter(None, known))) or "no such gate"
            log.warning("gate %s is %g in the recipe, and was %s in %s", verdict.gate, verdict.limit, then, run.id)
