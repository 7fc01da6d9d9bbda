"""`compress ls` and `compress tag`: the runs, tags and artifacts of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.artifacts import tags
from compress.artifacts.manifest import Artifact
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Damage, Store
from compress.artifacts.tags import Tag
from compress.cli.places import shown, store_root
from compress.cli.render import headline, print_document, print_tables, short_key
from compress.report.tables import ABSENT, Table, size_text


def list_contents(store_option: Path | None, *, as_json: bool) -> None:
    """Print the runs, tags and artifacts of a store, the newest run first; a store that does not exist yet is empty.

    Args:
        store_option: what `--store` said.
        as_json: print `{store, runs, tags, artifacts, damaged}` as one document.
    """
    store = Store(store_root(store_option))
    runs, found = store.list_runs(), store.list()
    named = list(tags.records(store.root))
    artifacts = [one for one in found if isinstance(one, Artifact)]
    damaged = [one for one in found if isinstance(one, Damage)]
    if as_json:
        print_document(
            {
                "store": str(store.root),
                "runs": [run_row(run) for run in runs],
                "tags": [tag_row(tag) for tag in named],
                "artifacts": [artifact_row(artifact) for artifact in artifacts],
                "damaged": [{"path": str(one.path), "reason": one.reason} for one in damaged],
            }
        )
        return
    if not runs and not found:
        print(f"{shown(store.root)} is empty; compress run RECIPE fills it")
        return
    print_tables([_run_table(runs), *([_tag_table(named)] if named else []), _artifact_table(artifacts)])
    for one in damaged:
        print(f"damaged: {shown(one.path)}: {one.reason}")


def tag_run(name: str, run: str, store_option: Path | None, *, as_json: bool) -> None:
    """Give a run a name, or move the name to it.

    Args:
        name: the tag.
        run: id of a run, or another tag of it.
        store_option: what `--store` said.
        as_json: print `{tag, run, before}` as one document.

    Raises:
        UsageError: the name is malformed, or there is no such run.
        TryAgainError: the store cannot be written.
    """
    store = Store(store_root(store_option))
    tags.check_name(name)
    record = store.read_run(run)
    before = tags.read(store.root, name).run if name in tags.names(store.root) else None
    tag = tags.write(store.root, name, record.id)
    if as_json:
        print_document({"tag": tag.name, "run": tag.run, "before": before})
        return
    moved = f" (before: {before})" if before not in (None, tag.run) else ""
    print(f"{tag.name} names {tag.run}{moved}")


def run_row(run: RunRecord) -> dict[str, Any]:
    """What `ls --json` says of a run."""
    finished = sum(step.status in ("hit", "done") for step in run.steps)
    return {
        "run": run.id,
        "recipe": run.recipe,
        "recipe_path": run.recipe_path,
        "seed": run.seed,
        "status": run.status,
        "started_at": run.started_at,
        "steps": len(run.steps),
        "steps_finished": finished,
        "exit_code": run.exit_code,
    }


def tag_row(tag: Tag) -> dict[str, Any]:
    """What `ls --json` says of a tag."""
    return {"tag": tag.name, "run": tag.run, "created_at": tag.created_at}


def artifact_row(artifact: Artifact) -> dict[str, Any]:
    """What `ls --json` says of an artifact."""
    manifest = artifact.manifest
    return {
        "key": manifest.key,
        "revision": manifest.revision,
        "kind": manifest.kind.value,
        "stage": manifest.stage,
        "digest": manifest.digest,
        "path": str(artifact.path),
        "size_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "created_at": manifest.created_at,
        "metrics": [metric.model_dump(mode="json") for metric in manifest.metrics],
    }


def _run_table(runs: list[RunRecord]) -> Table:
    rows = tuple(
        (
            str(row["run"]),
            str(row["recipe"]),
            str(row["seed"]),
            str(row["status"]),
            f"{row['steps_finished']} of {row['steps']}",
            ABSENT if row["exit_code"] is None else str(row["exit_code"]),
            _moment(str(row["started_at"])),
        )
        for row in map(run_row, runs)
    )
    header = ("run", "recipe", "seed", "status", "steps", "exit code", "started (UTC)")
    return Table(f"Runs: {len(runs)}", header, rows, frozenset({2, 5}))


def _tag_table(named: list[Tag]) -> Table:
    rows = tuple((tag.name, tag.run, _moment(tag.created_at)) for tag in named)
    return Table(f"Tags: {len(named)}", ("tag", "run", "created (UTC)"), rows)


def _artifact_table(artifacts: list[Artifact]) -> Table:
    rows = tuple(
        (
            short_key(row["key"], row["revision"]),
            row["stage"],
            row["kind"],
            size_text(row["size_bytes"]),
            _moment(row["created_at"]),
            headline(artifact.manifest),
        )
        for artifact, row in ((artifact, artifact_row(artifact)) for artifact in artifacts)
    )
    header = ("key", "stage", "kind", "size", "created (UTC)", "metric")
    return Table(f"Artifacts: {len(artifacts)}", header, rows, frozenset({3}))


def _moment(iso: str) -> str:
    return iso[:19].replace("T", " ")
