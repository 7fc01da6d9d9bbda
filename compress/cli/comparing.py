"""`compress compare`: two reports, from files, runs or tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.artifacts import runs, tags
from compress.artifacts.manifest import Report
from compress.artifacts.store import Store
from compress.cli.gating import check_answered, gates_from_options
from compress.cli.places import store_root
from compress.cli.render import table_lines
from compress.cli.reporting import find_report, load_report, write_text
from compress.errors import ArtifactError, UsageError
from compress.pipeline.runner import exit_code
from compress.pipeline.stage import GateVerdict
from compress.report.compare import compare_reports, judge_comparison
from compress.report.comparison import Comparison
from compress.report.comparison_text import (
    comparison_junit,
    comparison_markdown,
    comparison_tables,
    headline,
    remarks,
)
from compress.report.document import ReportDocument, report_from_json

_EXPECTED = "give a report.json, a run, RUN:STEP or a tag; compress ls lists runs and tags"


def print_comparison(
    base: str,
    new: str,
    form: str,
    output: Path | None,
    store_option: Path | None,
    *,
    gates: Sequence[str] = (),
    informational: bool = False,
) -> int:
    """Compare two reports and print what changed.

    Args:
        base: what the other is held against: a file, a run, RUN:STEP or a tag.
        new: the other, named in the same way.
        form: `table`, `json`, `md`, `junit` or `html`.
        output: file to write instead of standard output.
        store_option: what `--store` said.
        gates: what each `--gate` said; where there are any, they alone decide.
        informational: figures without verdicts.

    Returns:
        The exit code that the changes, or the gates, deserve.

    Raises:
        UsageError: a side or a gate that does not exist.
        ArtifactError: a damaged report, or one of another schema version.
        NotComparableError: the two were measured under different conditions.
    """
    if informational and gates:
        raise UsageError("--informational gives no verdict and --gate asks for one", hint="give one of them")
    asked = gates_from_options(gates) if gates else None
    store = Store(store_root(store_option))
    before, after = load_side(base, store), load_side(new, store)
    comparison = compare_reports(before, after, base_name=base, new_name=new, informational=informational)
    if asked is not None:
        verdicts = judge_comparison(asked, before, after)
        check_answered(asked, verdicts, after)
        code = exit_code([GateVerdict.model_validate(verdict.model_dump()) for verdict in verdicts])
        comparison = comparison.model_copy(update={"gates": verdicts, "exit_code": code})
    write_text(comparison_text(comparison, form), output)
    return comparison.exit_code


def load_side(name: str, store: Store) -> ReportDocument:
    """Read one of the two reports.

    Args:
        name: a run, RUN:STEP, a tag, or else a file.
        store: where runs and tags are.

    Raises:
        UsageError: nothing goes by that name.
        ArtifactError: the report is damaged or of another schema version.
    """
    run, _, step = name.partition(":")
    known = run in runs.ids(store.root / "runs") or run in tags.names(store.root)
    path = Path(name)
    if not known and (path.suffix == ".json" or path.exists()):
        return _report_from_file(path)
    if not known:
        found = store.resolve(name)  # a key, or nothing: then it names what is nearest
        if not isinstance(found, Report):
            raise UsageError(f"{name!r} is not a report", hint=_EXPECTED)
        return load_report(store, found)
    record = store.read_run(run)
    return load_report(store, find_report(store, record, step)).model_copy(update={"run": record.id})


def comparison_text(comparison: Comparison, form: str) -> str:
    """Render a comparison as `table`, `json`, `md`, `junit` or `html`."""
    if form == "json":
        return comparison.model_dump_json(indent=2)
    if form == "md":
        return comparison_markdown(comparison)
    if form == "junit":
        return comparison_junit(comparison)
    if form == "html":
        from compress.report.html import comparison_html

        return comparison_html(comparison)
    parts = ["\n".join(table_lines(table)) for table in comparison_tables(comparison)]
    return "\n\n".join([*parts, "\n".join([*remarks(comparison), headline(comparison)])])


def _report_from_file(path: Path) -> ReportDocument:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", hint=_EXPECTED) from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder", hint=f"name the report in it, e.g. {path / 'report.json'}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=_EXPECTED) from error
    if not content.strip():
        raise ArtifactError(
            "the report is empty", where=str(path), hint="write it again: compress report RUN --format json -o FILE"
        )
    try:
        return report_from_json(content, str(path))
    except RecursionError as error:
        raise ArtifactError("the report is nested too deeply to be one", where=str(path), hint=_EXPECTED) from error
