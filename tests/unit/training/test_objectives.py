from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from compress.data.loader import Batch
from compress.distillation.losses import soft_target_loss
from compress.distillation.mixture import Combine, Mixture, Schedule, Term
from compress.errors import ModelError, UsageError
from compress.training.objectives import MixtureObjective, distillation_objective, hard_objective

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TEACHER = torch.randn(6, 4, generator=GENERATOR), torch.randn(6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
BATCH = Batch(torch.zeros(6, 1, 2, 2), LABELS, torch.arange(6), torch.zeros(6, dtype=torch.int64))


def test_hard_is_cross_entropy_with_smoothed_labels():
    loss, parts = hard_objective(0.2)(LOGITS, BATCH)
    target = 0.8 * F.one_hot(BATCH.labels, 4) + 0.2 / 4
    expected = -(target * F.log_softmax(LOGITS, 1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts == {"hard": loss}


@pytest.mark.parametrize("kd_weight", [0.0, 0.3, 1.0])
def test_distillation_weighs_kd_and_hard(kd_weight: float):
    loss, parts = distillation_objective(lambda batch: TEACHER[None], 4.0, kd_weight, 0.1)(LOGITS, BATCH)
    kd = soft_target_loss(LOGITS, TEACHER, 4.0)
    hard, _ = hard_objective(0.1)(LOGITS, BATCH)
    assert loss.item() == pytest.approx((kd_weight * kd + (1 - kd_weight) * hard).item(), rel=1e-6)
    weighed = {"kd": (kd_weight, kd), "hard": (1 - kd_weight, hard)}
    assert {name: part.item() for name, part in parts.items()} == {
        name: part.item() for name, (weight, part) in weighed.items() if weight
    }


def test_several_teachers_are_averaged():
    loss, _ = distillation_objective(lambda batch: torch.stack([TEACHER, TEACHER + 9]), 4.0, 1.0)(LOGITS, BATCH)
    assert loss.item() == pytest.approx(soft_target_loss(LOGITS, TEACHER, 4.0).item(), rel=1e-4)


def test_a_confident_teacher_may_be_heard_more():
    right = 6.0 * F.one_hot(LABELS, 4)

    def objective(combine: Combine):
        return distillation_objective(lambda batch: torch.stack([right, -right]), 1.0, 1.0, combine=combine)

    assert objective("confidence")(right, BATCH)[0].item() < 0.2 * objective("mean")(right, BATCH)[0].item()


def test_a_mixture_without_a_teacher_asks_none():
    objective = MixtureObjective(Mixture([Term("hard", Schedule(1.0, 3.0))]), None)
    hard, _ = hard_objective()(LOGITS, BATCH)
    assert objective(LOGITS, BATCH, 0.5)[0].item() == pytest.approx(2 * hard.item())


@pytest.mark.parametrize("temperature", [0.0, -2.0, math.nan])
def test_temperature_must_be_above_zero(temperature: float):
    with pytest.raises(UsageError, match=f"temperature is {temperature}, expected > 0") as caught:
        distillation_objective(lambda batch: TEACHER[None], temperature, 0.5)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kd_weight", [-0.1, 1.1, math.nan])
def test_kd_weight_is_a_share(kd_weight: float):
    with pytest.raises(UsageError, match=f"kd_weight is {kd_weight}, expected 0 to 1") as caught:
        distillation_objective(lambda batch: TEACHER[None], 4.0, kd_weight)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_is_a_share(smoothing: float):
    with pytest.raises(UsageError, match="label_smoothing") as caught:
        hard_objective(smoothing)
    assert caught.value.exit_code == 2


def test_teacher_of_other_classes_is_refused():
    with pytest.raises(ModelError, match="teacher answers for 5 classes, the student for 4") as caught:
        distillation_objective(lambda batch: torch.zeros(1, 6, 5), 4.0, 0.5)(LOGITS, BATCH)
    assert caught.value.exit_code == 5
