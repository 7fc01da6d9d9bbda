"""Run records: which step of which recipe produced which artifact."""

from typing import Any, Literal

from compress.artifacts.manifest import Record

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
    id: str  # <recipe>-<number>; numbers grow with every run of the store, whatever the clock does
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
        """Place of this run among all runs of the store, from 1."""
        return int(self.id.rpartition("-")[2])

    def step(self, name: str) -> StepRecord | None:
        """The record of the step called `name`; None if the run has none."""
        return next((step for step in self.steps if step.name == name), None)
