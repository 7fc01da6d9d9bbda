"""What must be equal before two reports are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from compress.artifacts.manifest import Artifact, Kind, Metric
from compress.data.split import Split
from compress.stages.circumstances import curves_of, fingerprint

SURROUNDINGS = {
    "cpu": "Example", "threads": 2, "gpu": None, "driver": None, "session_threads": 2, "device": "cpu",
    "spinning": False, "libraries": {"onnxruntime": "1.24"}, "load_average": 0.3,
}  # fmt: skip
IMAGES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2)


def found(batches: tuple[int, ...] = (1, 2), slot_ms: float = 50, last: int = 2, **changes: Any) -> dict[str, Any]:
    test = Split("test", IMAGES, np.array([0, 1, last], np.int64), ("a", "b", "c"))
    fed = IMAGES.astype(np.float32) / np.float32(255)
    return fingerprint(SURROUNDINGS | changes, batches, test, fed, {"slot_ms": slot_ms})


def test_the_order_of_batches_is_no_condition() -> None:
    assert found((2, 1)) == found((1, 2))
    assert found()["batches"] == [1, 2]
    assert found((1, 3)) != found((1, 2))


def test_what_changes_a_figure_is_a_condition() -> None:
    assert found()["slots"] == {"slot_ms": 50}
    assert found(slot_ms=20) != found()
    assert found(last=1)["samples_digest"] != found()["samples_digest"]
    assert found(spinning=True) != found()
    assert found(load_average=3.0) == found(), "told in the environment only"


def test_every_training_has_its_curve_whatever_became_of_it(make: Callable[..., Artifact]) -> None:
    record = {"epoch": 1, "loss": 0.5, "parts": {"soft": 0.5}, "validation_top1": 0.75, "validation_loss": 0.25}
    kept = Metric(name="best_epoch", value=1.0, unit="epoch")
    trained, brought = make("student", Kind.CHECKPOINT, metrics=(kept,)), make("teacher", Kind.CHECKPOINT)
    trained.path.mkdir()
    (trained.path / "history.json").write_text(json.dumps([record]))
    curves = curves_of([brought, trained, make("onnx", Kind.ONNX_MODEL)])
    assert [curve.step for curve in curves] == ["teacher", "student"]
    assert (curves[0].epochs, curves[0].kept) == ([], None)
    assert curves[1].kept == 1
    (epoch,) = curves[1].epochs
    assert (epoch.epoch, epoch.values) == (1, {"loss": 0.5, "validation_top1": 0.75, "validation_loss": 0.25})
