"""`compress report` and `compress schema`: documents on standard output or in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compress.artifacts.files import store_writes, write_durably
from compress.artifacts.manifest import Report
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.cli.gating import check_answered, gates_from_options
from compress.cli.places import shown, store_root
from compress.cli.render import table_lines
from compress.errors import EXIT_OK, UsageError
from compress.pipeline.runner import exit_code
from compress.pipeline.stage import GateVerdict
from compress.report.document import ReportDocument, joined_report, report_from_json, report_json
from compress.report.gates import judge, not_evaluated
from compress.report.markdown import markdown
from compress.report.tables import fact_lines, report_tables


def print_report(
    reference: str, form: str, output: Path | None, store_option: Path | None, *, gates: Sequence[str] = ()
) -> int:
    """Print the benchmark of a run, joined with the verdicts of the run's gates or of others.

    Args:
        reference: run id or tag, or RUN:STEP where a run has several benchmarks.
        form: `table`, `json`, `md` or `html`.
        output: file to write instead of standard output.
        store_option: what `--store` said.
        gates: what each `--gate` said; where there are any, they are judged and the stored verdicts left out.

    Returns:
        What the gates of `gates` deserve; 0 without them.

    Raises:
        UsageError: the run has no finished benchmark, or several and no step is named; a gate that does not exist.
        ArtifactError: there is no such run, or its report is damaged.
    """
    store = Store(store_root(store_option))
    run_id, _, step = reference.partition(":")
    run = store.read_run(run_id)
    document = load_report(store, find_report(store, run, step)).model_copy(update={"run": run.id})
    verdicts = judged_now(gates, document) if gates else verdicts_of(run)
    if form == "json":
        text = report_json(joined_report(document, run.id, verdicts)).decode()
    elif form == "md":
        text = markdown(document, verdicts)
    elif form == "html":
        from compress.report.html import report_html

        text = report_html(document, verdicts)
    else:
        text = report_text(document, verdicts)
    write_text(text, output)
    return exit_code(verdicts) if gates else EXIT_OK


def write_pages(store: Store, run: RunRecord) -> dict[str, Path]:
    """Write the HTML page of every benchmark of a run beside the run's record.

    Args:
        store: where the run is.
        run: its record, whose steps have ended.

    Returns:
        Step -> page: `runs/<run id>.html`, or `runs/<run id>.<step>.html` where the run has several benchmarks.

    Raises:
        ArtifactError: a report is damaged.
        TryAgainError: the store cannot be written to.
    """
    from compress.report.html import report_html

    reports, verdicts = reports_of(store, run), verdicts_of(run)
    pages: dict[str, Path] = {}
    for report in reports:
        document = load_report(store, report).model_copy(update={"run": run.id})
        name = f"{run.id}.html" if len(reports) == 1 else f"{run.id}.{report.step}.html"
        pages[report.step] = store.root / "runs" / name
        with store_writes(store.root):
            write_durably(pages[report.step], report_html(document, verdicts).encode())
    return pages


def judged_now(options: Sequence[str], document: ReportDocument) -> list[GateVerdict]:
    """Judge a stored report by gates from the command line.

    Raises:
        UsageError: a gate that does not exist, or that this report has nothing for.
    """
    gates = gates_from_options(options)
    verdicts = judge(gates, document)
    check_answered(gates, verdicts, document)
    return [GateVerdict.model_validate(verdict.model_dump()) for verdict in verdicts]


def verdicts_of(run: RunRecord) -> list[GateVerdict]:
    """Return the verdicts that a run record holds."""
    return [GateVerdict.model_validate(gate) for gate in run.gates]


def find_report(store: Store, run: RunRecord, step: str = "") -> Report:
    """Return the report artifact of a run.

    Args:
        store: where the run is.
        run: its record.
        step: which of its steps; empty if it has one benchmark only.

    Raises:
        UsageError: the run has no finished benchmark, or several and no step is named.
    """
    reports = {report.step: report for report in reports_of(store, run)}
    if step and step in reports:
        return reports[step]
    hint = f"compress show {run.id} lists its steps"
    if step:
        raise UsageError(
            f"step {step!r} of run {run.id} wrote no report; reports: {', '.join(reports) or 'none'}", hint=hint
        )
    if not reports:
        raise UsageError(f"run {run.id} has no finished benchmark", hint=f"compress run {run.recipe_path}")
    if len(reports) > 1:
        choices = ", ".join(f"{run.id}:{name}" for name in reports)
        raise UsageError(f"run {run.id} has {len(reports)} reports", hint=f"name one: {choices}")
    return next(iter(reports.values()))


def reports_of(store: Store, run: RunRecord) -> list[Report]:
    """Return the reports that the steps of a run wrote or found."""
    from compress.stages import STAGES

    wanted = {name for name, stage in STAGES.items() if stage.output is Report}
    finished = [step for step in run.steps if step.stage in wanted and step.status in ("done", "hit")]
    artifacts = [store.artifact_of(step) for step in finished]
    return [artifact for artifact in artifacts if isinstance(artifact, Report)]


def load_report(store: Store, artifact: Report) -> ReportDocument:
    """Verify an artifact's hashes, then parse its report.

    Raises:
        ArtifactError: damaged.
    """
    store.verify(artifact)
    path = artifact.path / "report.json"
    return report_from_json(path.read_bytes(), shown(path))


def report_text(document: ReportDocument, verdicts: Sequence[GateVerdict]) -> str:
    """Return all tables of a report, what is known besides, and which gates were not evaluated."""
    parts = ["\n".join(table_lines(table)) for table in report_tables(document, verdicts)]
    parts += filter(None, ["\n".join(fact_lines(document)), not_evaluated(verdicts)])
    return "\n\n".join(parts)


def print_schema(output: Path | None) -> None:
    """Print the JSON schema of recipes."""
    write_text(schema_text(), output)


def schema_text() -> str:
    """Return the JSON schema of recipes, as the package ships it."""
    from compress.pipeline.recipe import recipe_schema
    from compress.stages import CATALOGUE

    return json.dumps(recipe_schema(CATALOGUE), indent=2, ensure_ascii=False)


def write_text(text: str, output: Path | None) -> None:
    """Print a text, or write it to a file, with one newline at its end.

    Raises:
        UsageError: the file cannot be written.
    """
    text = text.rstrip("\n") + "\n"
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", hint="name another file with -o") from error
