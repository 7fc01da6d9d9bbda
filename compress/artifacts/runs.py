"""Run records: which step of which recipe produced which artifact."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from compress.artifacts.files import write_durably
from compress.artifacts.manifest import Record
from compress.errors import ArtifactError, UsageError
from compress.log import get_logger

RunStatus = Literal["running", "done", "failed", "interrupted"]
StepStatus = Literal["pending", "running", "hit", "done", "failed"]

RUN_SCHEMA_VERSION = 1


class StepRecord(Record):
    """One step of a run."""

    name: str
    stage: str
    status: StepStatus = "pending"
    key: str | None = None  # known once every input is
    revision: int | None = None
    digest: str | None = None  # of the artifact's payload
    path: str | None = None  # of the artifact, relative to the store
    seconds: float | None = None
    error: str | None = None


class RunRecord(Record):
    """`runs/<id>.json`: written when a run starts and rewritten after every step."""

    schema_version: int = RUN_SCHEMA_VERSION
    id: str  # <recipe>-<number>; the number grows with every run, whatever the clock does
    recipe: str  # its name
    recipe_path: str  # as the user gave it; for the record only
    seed: int
    status: RunStatus = "running"
    started_at: str  # ISO 8601, UTC; for the record only
    steps: tuple[StepRecord, ...]
    gates: tuple[dict[str, Any], ...] = ()  # verdicts, as the judge gave them
    exit_code: int | None = None  # None while the run goes on, and for ever if it was killed

    @property
    def number(self) -> int:
        """Place of this run among the runs of the store, from 1."""
        return int(self.id.rpartition("-")[2])

    def step(self, name: str) -> StepRecord | None:
        """The record of the step called `name`; None if the run has none."""
        return next((step for step in self.steps if step.name == name), None)


_FILE = re.compile(r"[^.].*-([0-9]+)\.json")


def create(folder: Path, record: RunRecord) -> RunRecord:
    """Write `record` under the next free number.

    Args:
        folder: `<store>/runs`, which exists.
        record: its `id` is the recipe's name.

    Returns:
        The record with its final id.

    Raises:
        OSError: the folder cannot be written.
    """
    known = ids(folder)
    number = int(known[0].rpartition("-")[2]) + 1 if known else 1
    while True:
        final = record.model_copy(update={"id": f"{record.id}-{number:04d}"})
        try:
            write(folder, final, exclusive=True)
        except FileExistsError:
            number += 1  # another run of the recipe started at the same moment
            continue
        return final


def write(folder: Path, record: RunRecord, *, exclusive: bool = False) -> None:
    """Replace the record's file in one step; `exclusive` refuses to replace one.

    Raises:
        FileExistsError: `exclusive`, and the file is there.
        OSError: the folder cannot be written.
    """
    write_durably(folder / f"{record.id}.json", record.model_dump_json(indent=1).encode() + b"\n", exclusive=exclusive)


def ids(folder: Path) -> list[str]:
    """Ids of all runs in `folder`, newest first; none if it does not exist."""
    if not folder.is_dir():
        return []
    matches = [_FILE.fullmatch(path.name) for path in folder.iterdir()]
    numbered = [(int(match[1]), match[0].removesuffix(".json")) for match in matches if match]
    return [run_id for _, run_id in sorted(numbered, reverse=True)]


def read(folder: Path, run_id: str) -> RunRecord:
    """Read one record.

    Raises:
        UsageError: there is no such run.
        ArtifactError: the record is damaged.
    """
    path = folder / f"{run_id}.json"
    if run_id not in ids(folder):
        raise UsageError(f"there is no run {run_id!r}", where=str(folder), hint="compress ls lists the runs")
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"the run record is damaged: {error.errors(include_url=False)[0]['msg']}",
            where=str(path),
            hint="delete this file: it only says which artifacts the run used, and they are not touched",
        ) from error


def records(folder: Path, recipe: str | None = None) -> Iterator[RunRecord]:
    """Read the runs, or those of the recipe called `recipe`, newest first; damaged records only warn."""
    for run_id in ids(folder):
        if recipe is not None and run_id.rpartition("-")[0] != recipe:
            continue
        try:
            yield read(folder, run_id)
        except ArtifactError as error:
            get_logger(__name__).warning("%s", error)
