"""How a shipped recipe is made a matter of seconds, and how a wrong one is tried."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]

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
    "vit.yaml": ["teacher.epochs=1", "student.epochs=2", "qat.epochs=1", "control.epochs=1"],
    # Random images in the same format stand for the data, and smaller networks of the same kind for the published ones.
    "cifar100_wrn40_2_16_2.yaml": [
        "teacher.model.depths=[1, 1, 1]",
        *(f"{step}.model.depths=[1, 1, 1]" for step in ("alone", "student", "control")),
        *(f"{step}.model.widths=[8, 16, 32]" for step in ("alone", "student", "control")),
        *(f"{step}.{one}" for step in ("teacher", "alone", "student") for one in ("epochs=2", "milestones=[1]")),
        "qat.epochs=1",
        "control.epochs=1",
    ],
    "bring_your_own.yaml": ["student.epochs=2", "qat.epochs=1", "control.epochs=1"],
}
QUICK_LATENCY = "{blocks: 6, slot_iterations: 2, slot_ms: 2, warmup_ms: 1, processes: 2}"


@pytest.fixture(scope="session")
def shrunk(tiny_cifar: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Give a recipe's `--set` options: fewer epochs, images and calls; the graph of steps stays as it is."""

    def options(recipe: str) -> list[str]:
        values = [f"steps.{change}" for change in EPOCHS[recipe]] + [f"steps.report.latency={QUICK_LATENCY}"]
        if recipe == "fashion_mnist.yaml":
            values += ["data.train_samples=1000", "data.test_samples=300"]
        if recipe == "cifar100_wrn40_2_16_2.yaml":
            folder = tmp_path_factory.mktemp("data") / "cifar-100-binary"
            values.append(f"data.path={tiny_cifar(folder, 'cifar100', test=3)}")
        return [part for value in values for part in ("--set", value)]

    return options


@pytest.fixture
def wrong(cli: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """Write a recipe and run it; the store is beside it."""

    def run(text: str, *arguments: str) -> Done:
        (tmp_path / "wrong.yaml").write_text(text)
        return cli("run", "wrong.yaml", "--store", "store", *arguments, cwd=tmp_path, timeout=300)

    return run


@pytest.fixture(scope="session")
def assert_refused() -> Callable[[Done, int, str], None]:
    """Exit code, message, and no traceback."""

    def check(done: Done, code: int, message: str) -> None:
        assert done.returncode == code, done.stderr
        assert re.search(message, done.stderr), done.stderr
        assert "Traceback" not in done.stderr

    return check
