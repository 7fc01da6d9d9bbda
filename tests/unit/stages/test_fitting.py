"""Training that is watched leaves files beside the artifact, and the same artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.artifacts.fingerprint import sha256_file
from compress.data.config import DataConfig
from compress.errors import ModelError
from compress.pipeline.stage import Watch, Workspace
from compress.stages import STAGES

DATA = DataConfig(dataset="digits", train_samples=200, test_samples=60)


def train(folder: Path, watch: Watch) -> dict[str, str]:
    """Hashes of the payload files of a small network's training."""
    stage = STAGES["train"]
    config = stage.resolve(
        stage.config.model_validate({"model": {"name": "mlp", "widths": [8]}, "epochs": 4, "batch_size": 32})
    )
    folder.mkdir()
    stage.run(config, stage.inputs(), Workspace(folder, "teacher", 0, DATA, folder, watch=watch))
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def test_a_watched_training_gives_the_same_bytes(tmp_path: Path) -> None:
    heard: list[Any] = []
    plain = train(tmp_path / "plain", Watch())
    assert [path.name for path in tmp_path.iterdir()] == ["plain"], "nothing is left where nobody asks"
    assert train(tmp_path / "watched", Watch(tmp_path / "traces", True, heard.append)) == plain
    assert heard == json.loads((tmp_path / "watched" / "history.json").read_text())
    names = sorted(path.name.partition(".")[0] for path in (tmp_path / "traces").iterdir())
    assert names == ["events", "operators", "profile"]


def test_an_epoch_is_written_before_a_listener_ends_the_training(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        raise ModelError("pruned")

    with pytest.raises(ModelError, match="pruned"):
        train(tmp_path / "student", Watch(tmp_path / "traces", on_epoch=stop))
    (file,) = (tmp_path / "traces").iterdir()
    assert file.read_bytes().count(b"validation_top1") == 1
