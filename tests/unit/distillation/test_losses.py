from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from compress.distillation.losses import logits_from_teachers, soft_target_loss


def test_value_by_hand():
    # softmax((ln 3, 0)) = (3/4, 1/4); softmax((0, 0)) = (1/2, 1/2)
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_temperature_softens_both_and_scales_by_its_square():
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_target_loss(student, teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)


def test_direction_is_teacher_then_student():
    teacher, student = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, q = F.softmax(teacher, 1), F.softmax(student, 1)
    forward, backward = (p * (p / q).log()).sum().item(), (q * (q / p).log()).sum().item()
    assert forward != pytest.approx(backward, rel=0.05)
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(forward, rel=1e-5)


def test_equal_up_to_an_offset_costs_nothing():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert soft_target_loss(logits + 3, logits, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_mean_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    rows = [soft_target_loss(student[i : i + 1], teacher[i : i + 1], 3.0).item() for i in range(4)]
    assert soft_target_loss(student, teacher, 3.0).item() == pytest.approx(sum(rows) / 4, rel=1e-5)


def test_gradient_keeps_its_size_when_the_temperature_grows():
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    sizes = []
    for temperature in (20.0, 200.0):
        student = torch.zeros(1, 3, requires_grad=True)
        soft_target_loss(student, teacher, temperature).backward()
        assert student.grad is not None
        sizes.append(student.grad.abs().max().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.zeros(1, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    soft_target_loss(student, teacher, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_above_zero(temperature: float):
    with pytest.raises(ValueError, match=f"temperature is {temperature}, expected > 0"):
        soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)
    with pytest.raises(ValueError, match="expected > 0"):
        logits_from_teachers(torch.zeros(2, 1, 2), temperature)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match=r"expected \(teachers, batch, classes\), got \(1, 2\)"):
        logits_from_teachers(torch.zeros(1, 2), 1.0)


def test_one_teacher_speaks_for_itself():
    logits = torch.randn(1, 4, 3)
    assert torch.equal(logits_from_teachers(logits, 4.0), logits[0])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_several_teachers_give_the_mean_of_their_softened_probabilities(temperature: float):
    logits = 5 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    logits[1] += 100  # an offset changes no probability
    expected = F.softmax(logits / temperature, dim=2).mean(dim=0)
    merged = logits_from_teachers(logits, temperature)
    assert torch.allclose(F.softmax(merged / temperature, dim=1), expected, atol=1e-5)
