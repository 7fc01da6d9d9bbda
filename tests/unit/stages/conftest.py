"""Artifacts as stages see them, without a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.artifacts.manifest import ARTIFACTS, Artifact, InputRef, Kind, Manifest, Metric, Quantization, Source
from compress.data.config import DataConfig
from compress.pipeline.stage import Kinds, Stage, Workspace

Make = Callable[..., Artifact]

_STAGES = {
    Kind.CHECKPOINT: "distill",
    Kind.ONNX_MODEL: "export",
    Kind.QUANTIZED_ONNX: "calibrate",
    Kind.ENGINE: "engine",
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make an artifact of a kind from its inputs by role; digest and key default to the step's name."""

    def artifact(
        step: str,
        kind: Kind,
        *,
        digest: str = "",
        key: str = "",
        quantized: bool = False,
        config: dict[str, Any] | None = None,
        metrics: tuple[Metric, ...] = (),
        **roles: Artifact,
    ) -> Artifact:
        refs = {
            role: (InputRef(step=a.step, stage=a.manifest.stage, key=a.manifest.key, digest=a.manifest.digest),)
            for role, a in roles.items()
        }
        manifest = Manifest(
            kind=kind,
            stage=_STAGES[kind],
            stage_version=1,
            key=key or f"key-{step}",
            key_document={},
            digest=digest or f"digest-{step}",
            inputs=refs,
            config=config or {},
            files={},
            quantization=Quantization(scheme="int8-symmetric") if quantized else None,
            metrics=metrics,
            environment={},
            source=Source(commit=None, dirty=None),
            created_at="2026-01-01T00:00:00+00:00",
            duration_s=0.0,
        )
        return ARTIFACTS[kind](step=step, path=tmp_path / step, manifest=manifest)

    return artifact


def kinds_of(inputs: Any) -> Kinds:
    """What `Stage.check` is told about them."""
    filled = {role: value for role, value in vars(inputs).items() if value and role != "ancestors"}
    return {role: [type(one) for one in (v if isinstance(v, tuple) else (v,))] for role, v in filled.items()}


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., Artifact]:
    """Run a stage on digits and return its artifact, as the runner would without storing it."""
    data = DataConfig(dataset="digits", train_samples=200, test_samples=60)

    def run(stage: Stage[Any, Any], step: str, inputs: Any = None, **config: Any) -> Artifact:
        folder = tmp_path / step
        folder.mkdir()
        workspace = Workspace(path=folder, step=step, seed=0, data=data, base=tmp_path)
        resolved = stage.resolve(stage.config.model_validate(config))
        inputs = inputs or stage.inputs()
        assert not list(stage.check(resolved, kinds_of(inputs))), "a recipe like this would be refused"
        metrics = stage.run(resolved, inputs, workspace)
        manifest = Manifest(
            kind=stage.output.kind,
            stage=stage.name,
            stage_version=stage.version,
            key=f"key-{step}",
            key_document={},
            digest=f"digest-{step}",
            inputs={},
            config=resolved.model_dump(mode="json"),
            files={},
            tensors=tuple(workspace.tensors),
            quantization=workspace.quantization,
            metrics=tuple(metrics),
            notes=tuple(workspace.notes),
            environment={},
            source=Source(commit=None, dirty=None),
            created_at="2026-01-01T00:00:00+00:00",
            duration_s=0.0,
        )
        return stage.output(step=step, path=folder, manifest=manifest)

    return run
