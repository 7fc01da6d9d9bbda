"""What must be equal before two reports are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.data.split import Split
from compress.stages.circumstances import fingerprint

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
