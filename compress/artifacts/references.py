"""What people call artifacts and runs on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from compress.artifacts import runs, tags
from compress.artifacts.manifest import Artifact
from compress.artifacts.runs import RunRecord, StepRecord
from compress.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from compress.artifacts.store import Store

_KEY = re.compile(r"(?:([A-Za-z][\w-]*)/)?([0-9a-f]{4,64})(?:\.([1-9][0-9]*))?")


def artifact_of(store: Store, step: StepRecord) -> Artifact:
    """The artifact of a run's step; see `Store.artifact_of`."""
    if step.path is None:
        raise ArtifactError(f"step {step.name!r} of this run is {step.status} and has no artifact")
    found = store.inspect(store.root / step.path, step=step.name)
    if not isinstance(found, Artifact):
        raise ArtifactError(
            f"the artifact of step {step.name!r} is damaged or gone: {found.reason}",
            where=str(found.path),
            hint="run the recipe again: the step is repeated",
        )
    if found.manifest.digest != step.digest:
        raise ArtifactError(f"another artifact took the place of the one of step {step.name!r}", where=str(found.path))
    return found


def resolve(store: Store, ref: str) -> Artifact | RunRecord:
    """What `ref` names; see `Store.resolve`."""
    run_id, colon, step_name = ref.partition(":")
    known = [*tags.names(store.root), *runs.ids(store.root / "runs")]
    if colon:
        record = store.read_run(run_id)
        step = record.step(step_name)
        if step is None:
            names = ", ".join(step.name for step in record.steps)
            raise UsageError(f"run {run_id} has no step {step_name!r}; it has: {names}")
        return artifact_of(store, step)
    if ref in known:
        return store.read_run(ref)
    match = _KEY.fullmatch(ref)
    if match:
        return _artifact_by_key(store, ref, match)
    raise UsageError(
        f"nothing is called {ref!r}{tags.nearest(ref, known)}",
        where=str(store.root),
        hint="a reference is a key's first 4 or more digits, a run id, a tag, or RUN:STEP; compress ls lists them",
    )


def _artifact_by_key(store: Store, ref: str, match: re.Match[str]) -> Artifact:
    stage, prefix, number = match[1], match[2], match[3]
    newest: dict[tuple[str, str], Artifact] = {}
    damaged: list[str] = []
    for found in store.list():
        if stage is not None and found.path.parent.name != stage:
            continue
        if not isinstance(found, Artifact):
            if found.path.name.startswith(prefix[:12]):
                damaged.append(f"{found.stage}/{found.path.name}: {found.reason}")
            continue
        revision = found.manifest.revision
        if found.manifest.key.startswith(prefix) and (number is None or revision == int(number)):
            newest[(found.manifest.stage, found.manifest.key)] = found  # listed by revision, so the last is the newest
    if len(newest) > 1:
        names = ", ".join(f"{found.manifest.stage}/{found.path.name}" for found in newest.values())
        raise UsageError(f"{ref!r} names more than one artifact: {names}", hint="give more digits, or STAGE/KEY")
    if newest:
        return next(iter(newest.values()))
    if damaged:
        raise ArtifactError(f"{ref!r} names a damaged artifact", where="; ".join(damaged))
    raise UsageError(f"no artifact has the key {ref!r}", where=str(store.root), hint="compress ls lists them")
