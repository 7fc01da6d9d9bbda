"""No hidden label is read: garbage in its place gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.artifacts.manifest import Checkpoint
from compress.data import datasets
from compress.data.config import DataConfig
from compress.data.labels import hide_labels
from compress.data.split import HIDDEN, Dataset, Split
from compress.errors import DataError
from compress.stages import STAGES
from compress.stages.circumstances import curves_of
from compress.stages.distill import DistillInputs
from compress.stages.qat import QatInputs

MLP = {"name": "mlp", "widths": [8]}
FEW: dict[str, Any] = {"epochs": 2, "batch_size": 64, "labels": 20, "kd_weight": 0.5}
PAYLOAD = ("weights.safetensors", "probe.safetensors", "checkpoint.json")


@pytest.fixture
def teacher(execute: Callable[..., Any]) -> Checkpoint:
    return execute(STAGES["train"], "teacher", model=MLP, epochs=1)


def wrong(labels: np.ndarray) -> np.ndarray:
    """Another class for every label."""
    return (labels + np.random.default_rng(7).integers(1, 10, len(labels))) % 10


def spoilt(train: Split, kept: np.ndarray) -> np.ndarray:
    """Labels that are wrong wherever they stay hidden, in a way that leaves the choice of those that do not.

    The choice takes images by digest until each class has its share; what comes when a class is full may have any
    other class that is full by then. Without a choice, everything is wrong.
    """
    if not len(kept):
        return wrong(train.labels)
    digests, labels = np.array(train.digests()), train.labels.copy()
    last = {label: max(digests[i] for i in kept if train.labels[i] == label) for label in range(10)}
    random = np.random.default_rng(7)
    for i in sorted(set(range(len(train))) - set(kept.tolist())):
        others = [label for label in range(10) if last[label] < digests[i] and label != train.labels[i]]
        if others:
            labels[i] = random.choice(others)
    return labels


@pytest.fixture
def garbage(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | str], None]:
    """From now on, what stays hidden has wrong labels in the data, and so has validation."""
    load = datasets.load_dataset

    def put(labels: int | str) -> None:
        def garbled(config: DataConfig, base: Path) -> Dataset:
            data = load(config, base)
            kept = np.flatnonzero(hide_labels(data, labels, "labels").train.labels != HIDDEN)  # type: ignore[arg-type]
            found = spoilt(data.train, kept)
            assert (found != data.train.labels).sum() > 0.9 * (len(found) - len(kept)), "too little is spoilt"
            validation = replace(data.validation, labels=wrong(data.validation.labels))
            return replace(data, train=replace(data.train, labels=found), validation=validation)

        monkeypatch.setattr(datasets, "load_dataset", garbled)

    return put


def payload(artifact: Checkpoint) -> list[bytes]:
    return [(artifact.path / name).read_bytes() for name in PAYLOAD]


def test_distill_with_few_labels(execute: Callable[..., Any], teacher: Checkpoint, garbage: Any) -> None:
    inputs = DistillInputs(teacher=(teacher,))
    first = execute(STAGES["distill"], "first", inputs, model=MLP, **FEW)
    no_hard_loss = execute(STAGES["distill"], "soft", inputs, model=MLP, **FEW | {"kd_weight": 1.0})
    garbage(20)
    second = execute(STAGES["distill"], "second", inputs, model=MLP, **FEW)
    assert payload(first) == payload(second)
    assert payload(first)[0] != payload(no_hard_loss)[0], "the labels that may be read count"
    assert first.manifest.notes[:2] == (
        "labels of 20 of 200 training images were read",
        "the last epoch is kept; validation labels gave its top-1, and chose nothing",
    )
    top1 = [one.manifest.metrics[0].value for one in (first, second)]
    assert top1[0] > top1[1], "validation labels are read for what people are told"


def test_distill_without_labels(execute: Callable[..., Any], teacher: Checkpoint, garbage: Any) -> None:
    how = {"model": MLP, "labels": "none", "epochs": 2}
    mixture = [{"loss": "dkd"}, {"loss": "hints", "taps": {"1": "1"}}]
    inputs = DistillInputs(teacher=(teacher, teacher))
    one = DistillInputs(teacher=(teacher,))
    first = [
        execute(STAGES["distill"], "soft", inputs, kd_weight=1, combine="confidence", **how),
        execute(STAGES["distill"], "mixed", one, losses=mixture, **how),
    ]
    garbage("none")
    second = [
        execute(STAGES["distill"], "soft2", inputs, kd_weight=1, combine="confidence", **how),
        execute(STAGES["distill"], "mixed2", one, losses=mixture, **how),
    ]
    assert [payload(each) for each in first] == [payload(each) for each in second]
    assert first[0].manifest.notes[0] == "labels of 0 of 200 training images were read"


def test_train_with_few_labels(execute: Callable[..., Any], garbage: Any) -> None:
    how = {"model": MLP, "epochs": 2, "batch_size": 64, "labels": 20}
    first = execute(STAGES["train"], "first", **how)
    garbage(20)
    assert payload(first) == payload(execute(STAGES["train"], "second", **how))


@pytest.mark.slow
def test_qat_with_few_labels(execute: Callable[..., Any], teacher: Checkpoint, garbage: Any) -> None:
    alone, taught = QatInputs(student=teacher), QatInputs(student=teacher, teacher=teacher)
    first = [execute(STAGES["qat"], f"first{i}", one, **FEW) for i, one in enumerate((alone, taught))]
    garbage(20)
    second = [execute(STAGES["qat"], f"second{i}", one, **FEW) for i, one in enumerate((alone, taught))]
    assert [payload(each) for each in first] == [payload(each) for each in second]


def test_the_last_epoch_is_kept(execute: Callable[..., Any]) -> None:
    how = {"model": MLP, "epochs": 3, "learning_rate": 3.0, "schedule": "cosine"}
    few = execute(STAGES["train"], "few", labels=10, **how)
    epoch = next(metric.value for metric in few.manifest.metrics if metric.name == "best_epoch")
    assert epoch == 3
    (curve,) = curves_of([few])
    assert curve.kept == 3, "which the report names, whichever is best"


@pytest.mark.parametrize(
    ("stage", "config", "message"),
    [
        ("train", {"model": MLP, "epochs": 1, "labels": "none"}, "`train` learns from labels alone"),
        ("distill", {"model": MLP, "epochs": 1, "labels": "none"}, "has the weight 0.1; expected kd_weight: 1"),
        ("qat", {"labels": "none"}, "expected kd_weight: 1"),
        (
            "distill",
            {"model": MLP, "epochs": 1, "labels": "none", "losses": [{"loss": "kd"}, {"loss": "hard", "weight": 0.5}]},
            "has the weight 0.5; expected kd_weight: 1, or `losses` without `hard`",
        ),
        ("distill", {"model": MLP, "epochs": 1, "labels": 0}, "greater than or equal to 1"),
        ("train", {"model": MLP, "epochs": 1, "labels": True}, "valid integer"),
    ],
)
def test_refused_when_the_recipe_is_read(stage: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        STAGES[stage].config.model_validate(config)


def test_too_few_labels_name_the_step(execute: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"steps\.few\.labels is 5, expected at least one for each of 10 classes"):
        execute(STAGES["train"], "few", model=MLP, epochs=1, labels=5)


def test_self_distillation_with_few_labels(execute: Callable[..., Any], garbage: Any) -> None:
    how: dict[str, Any] = {"model": MLP, "epochs": 2, "batch_size": 64, "labels": 20}
    own = {"decay": 0.9, "kd_weight": 0.5}
    plain = execute(STAGES["train"], "plain", **how)
    first = execute(STAGES["train"], "first", **how, self_distillation=own)
    garbage(20)
    assert payload(first) == payload(execute(STAGES["train"], "second", **how, self_distillation=own))
    assert payload(first)[0] != payload(plain)[0]
    assert "soft targets from the moving average of its own weights, decay 0.9 per step" in first.manifest.notes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 1, "self_distillation": {"kd_weight": 1.5}}, "kd_weight reaches 1.5, expected at most 1"),
        ({"epochs": 1, "self_distillation": {"decay": 1.0}}, "less than 1"),
        ({"weights": "w.pt", "self_distillation": {}}, "expected epochs >= 1"),
    ],
)
def test_self_distillation_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        STAGES["train"].config.model_validate({"model": MLP, **config})
