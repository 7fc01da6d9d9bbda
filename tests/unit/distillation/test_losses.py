from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from compress.distillation.losses import (
    HIDDEN,
    confidence_weights,
    decoupled_loss,
    dist_loss,
    hard_loss,
    logits_from_teachers,
    logits_mse_loss,
    soft_target_loss,
)

LABELS = torch.tensor([2, 0, 4, 4, 1, 3])


def logits(seed: int, classes: int = 5, samples: int = 6) -> Tensor:
    return 2 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def probabilities(values: Tensor, temperature: float) -> NDArray[np.float64]:
    raised = np.exp(values.numpy().astype(np.float64) / temperature)
    return raised / raised.sum(axis=1, keepdims=True)


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


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
    same = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert soft_target_loss(same + 3, same, 4.0).item() == pytest.approx(0, abs=1e-6)


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
    alone = torch.randn(1, 4, 3)
    assert torch.equal(logits_from_teachers(alone, 4.0), alone[0])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_several_teachers_give_the_mean_of_their_softened_probabilities(temperature: float):
    teachers = 5 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    teachers[1] += 100  # an offset changes no probability
    expected = F.softmax(teachers / temperature, dim=2).mean(dim=0)
    merged = logits_from_teachers(teachers, temperature)
    assert torch.allclose(F.softmax(merged / temperature, dim=1), expected, atol=1e-5)


@pytest.mark.parametrize("even", [True, False])
def test_weighted_teachers_give_the_weighted_mean(even: bool):
    teachers = torch.stack([logits(seed) for seed in range(3)])
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.full((3, 6), 1 / 3) if even else weights / weights.sum(dim=0)
    weights[:, 0] = torch.tensor([0.0, 1.0, 0.0])  # nobody else is heard
    merged = logits_from_teachers(teachers, 2.0, weights)
    expected = (F.softmax(teachers / 2, dim=2) * weights.unsqueeze(2)).sum(dim=0)
    assert torch.allclose(F.softmax(merged / 2, dim=1), expected, atol=1e-6)
    if even:
        assert torch.allclose(merged[1:], logits_from_teachers(teachers, 2.0)[1:], atol=1e-5)


def test_a_teacher_is_heard_the_less_the_more_the_label_surprises_it():
    teachers = torch.stack([logits(seed) for seed in range(3)])
    weights = confidence_weights(teachers, LABELS)
    for sample, label in enumerate(LABELS.tolist()):
        surprise = [-math.log(probabilities(one, 1.0)[sample, label]) for one in teachers]
        exponentials = [math.exp(one) for one in surprise]
        expected = [(1 - one / sum(exponentials)) / 2 for one in exponentials]
        assert weights[:, sample].tolist() == pytest.approx(expected, rel=1e-4)
        assert weights[:, sample].argmax().item() == int(np.argmin(surprise))
    assert torch.allclose(weights.sum(dim=0), torch.ones(6))


def test_without_its_label_a_sample_hears_the_teacher_of_least_entropy():
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    hidden = confidence_weights(torch.stack([unsure, sure]), torch.tensor([HIDDEN]))
    labelled = confidence_weights(torch.stack([unsure, sure]), torch.tensor([1]))  # of which the sure one is wrong
    assert hidden[1].item() > 0.5
    assert labelled[1].item() < 0.5


def test_one_teacher_has_all_the_weight():
    assert torch.equal(confidence_weights(logits(0)[None], LABELS), torch.ones(1, 6))
    with pytest.raises(ValueError, match=r"expected \(teachers, batch, classes\)"):
        confidence_weights(logits(0), LABELS)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 8.0), (4.0, 0.5, 2.0), (2.0, 0.0, 1.0)])
def test_decoupled_value(temperature: float, alpha: float, beta: float):
    student, teacher = logits(0), logits(1)
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    total = 0.0
    for row, label in enumerate(LABELS.tolist()):
        others = [i for i in range(5) if i != label]
        target = [np.array([one[row, label], one[row, others].sum()]) for one in (p, q)]
        rest = [one[row, others] / one[row, others].sum() for one in (p, q)]
        total += alpha * divergence(*target) + beta * divergence(*rest)
    loss = decoupled_loss(student, teacher, LABELS, temperature, alpha, beta).item()
    assert loss == pytest.approx(total / 6 * temperature**2, rel=1e-4)


def test_decoupled_and_coupled_are_one_where_the_papers_say_so():
    student, teacher = logits(0, samples=1), logits(1, samples=1)
    beta = 1 - F.softmax(teacher / 4, dim=1)[0, 2].item()
    decoupled = decoupled_loss(student, teacher, torch.tensor([2]), 4.0, 1.0, beta)
    assert decoupled.item() == pytest.approx(soft_target_loss(student, teacher, 4.0).item(), rel=1e-4)
    two = decoupled_loss(student[:, :2], teacher[:, :2], torch.tensor([1]), 4.0)
    assert two.item() == pytest.approx(soft_target_loss(student[:, :2], teacher[:, :2], 4.0).item(), rel=1e-4)


def test_decoupled_takes_the_teachers_answer_for_a_hidden_label():
    student, teacher = logits(0), logits(1)
    hidden = torch.full_like(LABELS, HIDDEN)
    answers = teacher.argmax(dim=1)
    assert not torch.equal(answers, LABELS)
    assert torch.equal(decoupled_loss(student, teacher, hidden, 4.0), decoupled_loss(student, teacher, answers, 4.0))


def test_mean_squared_logits():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 4.0], [3.0, -1.0]])
    assert logits_mse_loss(student, teacher).item() == (1 + 4 + 9 + 0) / 4
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 1\)"):
        logits_mse_loss(student, teacher[:, :1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_one_minus_pearson(temperature: float):
    student, teacher = logits(0), logits(1)
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    rows = np.mean([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(q[:, i], p[:, i])[0, 1] for i in range(5)])
    loss = dist_loss(student, teacher, temperature, 2.0, 3.0).item()
    assert loss == pytest.approx((2 * rows + 3 * columns) * temperature**2, rel=1e-4)


def test_dist_asks_for_relations_not_for_values():
    # probabilities of the student are a positive affine map of the teacher's: halfway to even odds
    teacher = F.softmax(logits(0), dim=1)
    student = 0.5 * teacher + 0.5 / 5
    assert dist_loss(student.log(), teacher.log()).item() == pytest.approx(0, abs=1e-5)
    assert soft_target_loss(student.log(), teacher.log(), 1.0).item() > 0.05
    against = 2 / 5 - teacher  # the other way round
    assert dist_loss(against.clamp_min(1e-3).log(), teacher.log()).item() > 2


def test_a_batch_of_one_has_no_relation_between_samples():
    loss = dist_loss(logits(0, samples=1), logits(0, samples=1), gamma=3.0)
    assert loss.item() == pytest.approx(3.0, abs=1e-5)


def test_hidden_labels_are_left_out():
    student, some = logits(0), LABELS.clone()
    some[[1, 4]] = HIDDEN
    kept = torch.tensor([0, 2, 3, 5])
    assert hard_loss(student, some, 0.1).item() == pytest.approx(
        F.cross_entropy(student[kept], LABELS[kept], label_smoothing=0.1).item(), rel=1e-6
    )
    student.requires_grad_()
    loss = hard_loss(student, torch.full_like(LABELS, HIDDEN))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kd": lambda student, teacher: soft_target_loss(student, teacher, 4.0),
    "dkd": lambda student, teacher: decoupled_loss(student, teacher, LABELS[: len(student)], 4.0),
    "logits_mse": logits_mse_loss,
    "dist": dist_loss,
    "hard": lambda student, teacher: hard_loss(student, LABELS[: len(student)]),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("samples", [1, 2, 6])
@pytest.mark.parametrize("case", ["usual", "equal", "even", "far", "sure"])
def test_gradients_are_finite(name: str, samples: int, case: str):
    teacher = {"even": torch.zeros(samples, 5), "sure": 200 * logits(1, samples=samples)}.get(
        case, logits(1, samples=samples)
    )
    student = {"equal": teacher, "even": torch.zeros(samples, 5), "far": 300 * logits(2, samples=samples)}.get(
        case, logits(2, samples=samples)
    )
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype):
    student, teacher = logits(0).to(dtype), logits(1).to(dtype)
    loss = LOSSES[name](student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == LOSSES[name](student.float(), teacher.float()).item()


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_an_offset_changes_nothing(name: str):
    shift = torch.arange(6.0).unsqueeze(1)
    plain = LOSSES[name](logits(0), logits(1)).item()
    assert LOSSES[name](logits(0) + shift, logits(1) - shift).item() == pytest.approx(plain, rel=1e-4)
    assert LOSSES[name](logits(1) + shift, logits(1)).item() == pytest.approx(0, abs=1e-5)
