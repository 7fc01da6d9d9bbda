"""`tagged`: a checkpoint that an earlier run made, found by the run's tag."""

import shutil
from dataclasses import dataclass

from pydantic import Field

from compress.artifacts import runs, tags
from compress.artifacts.manifest import Artifact, Checkpoint
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
from compress.errors import UsageError
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace

MAKERS = ("train", "distill", "qat", "tagged")  # stages that make checkpoints


class TaggedConfig(StageConfig):
    """Which run, and which of its steps."""

    tag: str = Field(min_length=1, description="of a run in the same store, or the run's id")
    step: str | None = Field(default=None, description="of that run; may be left out if one alone made a checkpoint")


@dataclass(frozen=True)
class TaggedInputs:
    """Nothing: it starts from the store."""


def find_checkpoint(config: TaggedConfig, store: Store) -> Artifact:
    """The checkpoint that a tag stands for now.

    Raises:
        UsageError: there is no such tag or step, or the step made no checkpoint; the nearest or all are named.
        ArtifactError: the tag, the record or the artifact is damaged or gone.
    """
    known = [*tags.names(store.root), *runs.ids(store.root / "runs")]
    if config.tag not in known:
        raise UsageError(
            f"there is no tag {config.tag!r}{tags.nearest(config.tag, known)}",
            where=str(store.root),
            hint=f"compress ls lists the runs; compress tag {config.tag} RUN names one of them so",
        )
    record = store.read_run(config.tag)
    if config.step is None:
        found = _checkpoints(record, store)
        if len(found) == 1:
            return next(iter(found.values()))
        what = "more than one step" if found else "no step"
        raise UsageError(f"{what} of run {record.id} made a checkpoint{_listed(found)}", hint="step: NAME chooses one")
    step = record.step(config.step)
    if step is None:
        found = _checkpoints(record, store)
        near = tags.nearest(config.step, list(found))
        raise UsageError(f"run {record.id} has no step {config.step!r}{near}{_listed(found)}")
    artifact = store.artifact_of(step)
    if not isinstance(artifact, Checkpoint):
        found = _checkpoints(record, store)
        made = type(artifact).__name__
        raise UsageError(f"step {step.name!r} of run {record.id} made {made}, expected Checkpoint{_listed(found)}")
    return artifact


def _checkpoints(record: RunRecord, store: Store) -> dict[str, Artifact]:
    # what other stages made is not even read: it may be damaged, or gone, without harm to this
    makers = [step for step in record.steps if step.path is not None and step.stage in MAKERS]
    return {step.name: store.artifact_of(step) for step in makers}


def _listed(found: dict[str, Artifact]) -> str:
    return f"; checkpoints: {', '.join(found)}" if found else ""


def run(config: TaggedConfig, inputs: TaggedInputs, workspace: Workspace) -> Metrics:
    """Copy the payload, and prove that its network can be rebuilt here."""
    from compress.training.checkpoint import load_checkpoint

    earlier = workspace.earlier
    assert earlier is not None, "the runner finds it"
    for name in earlier.manifest.files:
        shutil.copyfile(earlier.path / name, workspace.path / name)
    load_checkpoint(workspace.path, workspace.base)
    workspace.tensors, workspace.quantization = earlier.manifest.tensors, earlier.manifest.quantization
    made = f"{earlier.manifest.stage}/{earlier.path.name}"
    workspace.notes.append(f"step {earlier.step!r} of the run tagged {config.tag!r}: {made}")
    return earlier.manifest.metrics


TAGGED = Stage(
    name="tagged",
    version=1,
    config=TaggedConfig,
    inputs=TaggedInputs,
    output=Checkpoint,
    libraries=("torch", "torchao", "safetensors", "numpy"),
    run=run,
    earlier=find_checkpoint,
)
