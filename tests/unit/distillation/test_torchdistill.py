"""The losses against torchdistill's: values and gradients recorded by record_torchdistill.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.distillation.features import (
    attention_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
)
from compress.distillation.losses import dist_loss, hard_loss, soft_target_loss

RECORDED = json.loads(Path(__file__).with_name("torchdistill.json").read_text(encoding="utf-8"))


def kd_and_hard(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return 0.7 * soft_target_loss(student, teacher, 4.0) + 0.3 * hard_loss(student, labels)


def over_all_entries(student: Tensor, teacher: Tensor) -> Tensor:
    # torchdistill averages over the whole matrix of distances, whose diagonal adds nothing: n * n, not n * (n - 1)
    return relational_distance_loss(student, teacher) * (1 - 1 / len(student))


CASES: dict[str, Callable[..., Tensor]] = {
    "kd": kd_and_hard,
    "dist": dist_loss,
    "dist_softened": lambda student, teacher: dist_loss(student, teacher, 4.0, 2.0, 0.5),
    "attention_transfer": attention_transfer_loss,
    "relational_distance": over_all_entries,
    "relational_angle": relational_angle_loss,
}


def test_every_recorded_case_is_compared():
    assert set(CASES) == set(RECORDED["cases"])


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str):
    case = RECORDED["cases"][name]
    student, teacher = (
        torch.tensor(case[side]).reshape(shape)
        for side, shape in zip(("student", "teacher"), case["shapes"], strict=True)
    )
    student.requires_grad_()
    labels = (torch.tensor(case["labels"]),) if case["labels"] else ()
    loss = CASES[name](student, teacher, *labels)
    loss.backward()
    assert student.grad is not None
    expected = torch.tensor(case["gradient"]).reshape(student.shape)
    assert loss.item() == pytest.approx(case["loss"][0], rel=1e-5)
    assert torch.allclose(student.grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
