"""Runs one step's stage in a draft and commits what it wrote."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from compress.artifacts.files import disk_is_full, store_refused, try_again_error
from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact, InputRef, Manifest, Metric
from compress.artifacts.store import Store
from compress.errors import CompressError, InputError, TryAgainError
from compress.pipeline import machine
from compress.pipeline.keys import EARLIER
from compress.pipeline.recipe import Recipe
from compress.pipeline.roles import ANCESTORS, roles_of, wants_ancestors
from compress.pipeline.source import package_source
from compress.pipeline.stage import StageConfig, Watch, Workspace
from compress.pipeline.steps import Step

_UNWATCHED = Watch()


def execute(
    step: Step,
    config: StageConfig,
    document: dict[str, Any],
    artifacts: Mapping[str, Artifact],
    recipe: Recipe,
    store: Store,
    watch: Watch = _UNWATCHED,
) -> Artifact:
    """Run the step's stage; on any error, an interrupt included, the draft is gone and nothing is published.

    Args:
        step: the step; the caller holds the lock of its key.
        config: its resolved config.
        document: its key document.
        artifacts: by step name, at least everything upstream, verified.
        recipe: the recipe.
        store: where the artifact goes.
        watch: what is left and told meanwhile.

    Raises:
        TryAgainError: the disk is full, or the store cannot be written.
        CompressError: the stage failed for a reason that it explains, or broke its contract.
    """
    stage, key = step.stage, document_digest(document)
    started = time.monotonic()
    with store.draft(stage.name, key) as draft:
        workspace = Workspace(
            path=draft,
            step=step.name,
            # What is not in the key is not handed out, so that it cannot shape the artifact.
            seed=recipe.seed if stage.seeded else 0,
            data=recipe.data if stage.splits else None,
            base=recipe.base,
            watch=watch,
            earlier=_earlier(step, config, document, store),
        )
        metrics = _run_stage(step, config, artifacts, recipe, workspace, store)
        files, digest = store.seal(draft)
        manifest = Manifest(
            kind=stage.output.kind,
            stage=stage.name,
            stage_version=stage.version,
            key=key,
            key_document=document,
            digest=digest,
            inputs=_references(step, artifacts, recipe),
            config=document["config"],
            files=files,
            tensors=tuple(workspace.tensors),
            quantization=workspace.quantization,
            metrics=tuple(metrics),
            notes=tuple(workspace.notes),
            environment=environment(step),
            source=package_source(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - started, 3),
        )
        return store.commit(draft, manifest, new_revision=stage.measured, step=step.name)


def environment(step: Step) -> dict[str, Any]:
    """The software and machine that an artifact is made with; names no host, user or folder."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: machine.library_version(name) for name in step.stage.libraries},
        **{name: fact() for name, fact in machine.FACTS.items()},
    }


def _earlier(step: Step, config: StageConfig, document: Mapping[str, Any], store: Store) -> Artifact | None:
    """The artifact that the step stands for, whole and the one that is in its key."""
    if step.stage.earlier is None:
        return None
    found = store.verify(step.stage.earlier(config, store))
    if [found.manifest.digest] != document["inputs"][EARLIER]:
        raise TryAgainError("another artifact is meant by now", where=f"step {step.name}", hint="run the recipe again")
    return found


def _run_stage(
    step: Step,
    config: StageConfig,
    artifacts: Mapping[str, Artifact],
    recipe: Recipe,
    workspace: Workspace,
    store: Store,
) -> list[Metric]:
    try:
        metrics = list(step.stage.run(config, _inputs(step, artifacts, recipe), workspace))
    except SystemExit as end:  # of a user's code, somewhere inside: it would end the run as if nothing were wrong
        raise InputError(
            f"code that the step runs called sys.exit({end.code!r}), expected it to return or raise",
            where=f"step {step.name}",
            hint="look for sys.exit in the recipe's module:callable",
        ) from end
    except Exception as error:
        if disk_is_full(error) or store_refused(error, store.root):
            raise try_again_error(error, store.root).at(f"step {step.name}") from error
        if isinstance(error, CompressError):
            error.at(f"step {step.name}")
        else:
            error.add_note(f"in step {step.name} (stage {step.stage.name})")
        raise
    for metric in metrics:
        if not math.isfinite(metric.value):
            raise CompressError(f"the metric {metric.name} is {metric.value}", where=f"step {step.name}")
    return metrics


def _inputs(step: Step, artifacts: Mapping[str, Artifact], recipe: Recipe) -> Any:
    given: dict[str, Any] = {}
    for role in roles_of(step.stage).values():
        found = tuple(artifacts[name] for name in step.roles.get(role.name, ()))
        if found:
            given[role.name] = found if role.many else found[0]
    if wants_ancestors(step.stage):
        given[ANCESTORS] = {name: artifacts[name] for name in recipe.upstream(*step.inputs)}
    return step.stage.inputs(**given)


def _references(step: Step, artifacts: Mapping[str, Artifact], recipe: Recipe) -> dict[str, tuple[InputRef, ...]]:
    roles = dict(step.roles)
    if wants_ancestors(step.stage):
        roles[ANCESTORS] = recipe.upstream(*step.inputs)
    return {role: tuple(_reference(artifacts[name]) for name in names) for role, names in roles.items()}


def _reference(artifact: Artifact) -> InputRef:
    manifest = artifact.manifest
    return InputRef(
        step=artifact.step,
        stage=manifest.stage,
        key=manifest.key,
        digest=manifest.digest,
        revision=manifest.revision,
    )
