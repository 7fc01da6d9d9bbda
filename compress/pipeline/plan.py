"""What a run would do, and why; nothing is written and no stage is imported further than its declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact
from compress.artifacts.store import Damage, Store
from compress.errors import UsageError
from compress.pipeline.keys import Keys, differences
from compress.pipeline.recipe import Recipe
from compress.pipeline.stage import Catalogue
from compress.pipeline.yaml_tree import nearest


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan."""

    step: str
    stage: str
    status: Literal["hit", "run", "depends"]
    reason: str  # empty for a hit
    key: str | None  # unknown while an input is
    path: Path | None  # of the artifact that a hit reuses


def plan(
    recipe: Recipe, store: Store, catalogue: Catalogue, *, force: Sequence[str] = (), rehash: bool = False
) -> list[PlannedStep]:
    """Say for every step whether a run would reuse, make or perhaps make its artifact.

    Args:
        recipe: the recipe.
        store: where artifacts are.
        catalogue: gives the digests of the data.
        force: steps that would be repeated.
        rehash: ignore remembered hashes of files.

    Returns:
        The steps in the order of execution. `depends` means that an input will be made first: if it
        turns out as it was, the step may still be a hit.

    Raises:
        UsageError: `force` names an unknown step.
        CompressError: data or sources cannot be read, or the machine lacks what a config demands.
    """
    check_steps(recipe, force, "--force")
    keys = Keys(recipe, catalogue, store.hashes(rehash=rehash), store)
    known: dict[str, Artifact] = {}
    planned: list[PlannedStep] = []
    for step in recipe.steps:
        waits = [name for name in step.inputs if name not in known]
        if waits:
            reason = f"depends on {', '.join(waits)}"
            planned.append(PlannedStep(step.name, step.stage.name, "depends", reason, None, None))
            continue
        document, _ = keys.document(step, known)
        key = document_digest(document)
        artifact, damaged = store.lookup(step.stage.name, key, document, step=step.name)
        if artifact is not None and step.name not in force:
            known[step.name] = artifact
            planned.append(PlannedStep(step.name, step.stage.name, "hit", "", key, artifact.path))
            continue
        reason = "forced" if step.name in force else why(recipe.name, step.name, document, key, damaged, store)
        planned.append(PlannedStep(step.name, step.stage.name, "run", reason, key, None))
    return planned


def check_steps(recipe: Recipe, names: Iterable[str], option: str) -> None:
    """Refuse names that are no steps of the recipe.

    Raises:
        UsageError: one is not; the nearest is named.
    """
    known = [step.name for step in recipe.steps]
    for name in names:
        if name not in known:
            raise UsageError(
                f"{option} {name}: the recipe has no such step{nearest(name, known)}", where=str(recipe.path)
            )


def why(recipe: str, step: str, document: Mapping[str, Any], key: str, damaged: Sequence[Damage], store: Store) -> str:
    """Why a step has to run: what differs from its last run in a recipe of this name.

    Args:
        recipe: the recipe's name.
        step: the step's name.
        document: its key document now.
        key: its key now.
        damaged: folders of this key that were found damaged.
        store: where runs and artifacts are.

    Returns:
        E.g. `config changed: temperature 2.0 -> 4.0`, or `first run`.
    """
    if damaged:
        return f"artifact damaged: {damaged[0].reason}"
    for run in store.runs_of(recipe):
        record = run.step(step)
        if record is None or record.key is None:
            continue
        if record.key == key:
            return "artifact missing" if record.path else f"{run.status} in {run.id}"
        if record.path is None:
            continue
        before = store.inspect(store.root / record.path)
        if isinstance(before, Artifact):
            return "; ".join(differences(before.manifest.key_document, document))
    return "first run"
