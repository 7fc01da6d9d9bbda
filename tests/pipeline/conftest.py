"""How a shipped recipe is made a matter of seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

EPOCHS = {
    "digits.yaml": ["teacher.epochs=2", "student.epochs=3", "qat.epochs=1", "control.epochs=1"],
    "fashion_mnist.yaml": ["teacher.epochs=1", "student.epochs=1", "qat.epochs=1", "control.epochs=1"],
    "ptq.yaml": ["model.epochs=2"],
    "teacher_assistant.yaml": [
        "teacher.epochs=2",
        "assistant.epochs=1",
        "student.epochs=2",
        "alone.epochs=1",
        "qat.epochs=1",
        "control.epochs=1",
    ],
    "bring_your_own.yaml": ["student.epochs=2", "qat.epochs=1", "control.epochs=1"],
}
QUICK_LATENCY = "{blocks: 6, slot_iterations: 2, slot_ms: 2, warmup_ms: 1, processes: 2}"


@pytest.fixture(scope="session")
def shrunk() -> Callable[[str], list[str]]:
    """Give a recipe's `--set` options: fewer epochs, images and calls; the graph of steps stays as it is."""

    def options(recipe: str) -> list[str]:
        values = [f"steps.{change}" for change in EPOCHS[recipe]] + [f"steps.report.latency={QUICK_LATENCY}"]
        if recipe == "fashion_mnist.yaml":
            values += ["data.train_samples=1000", "data.test_samples=300"]
        return [part for value in values for part in ("--set", value)]

    return options
