"""Artifacts made through the store itself, without the pipeline."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact, Kind, Manifest, Source
from compress.artifacts.store import Store

Make = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def make(store) -> Make:
    """Commit a small checkpoint: `make({"weights": "abc"}, seed=1)`."""

    def make(files: Mapping[str, str], *, stage: str = "train", measured: bool = False, **document: Any) -> Artifact:
        document = {"stage": stage, **document}
        key = document_digest(document)
        with store.lock(stage, key), store.draft(stage, key) as draft:
            for name, text in files.items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            entries, digest = store.seal(draft)
            manifest = Manifest(
                kind=Kind.CHECKPOINT,
                stage=stage,
                stage_version=1,
                key=key,
                key_document=document,
                digest=digest,
                inputs={},
                config={},
                files=entries,
                environment={},
                source=Source(commit=None, dirty=None),
                created_at="2024-01-01T00:00:00+00:00",
                duration_s=0.0,
            )
            return store.commit(draft, manifest, new_revision=measured, step="s")

    return make
