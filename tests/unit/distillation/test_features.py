"""Every loss against loops written from its paper, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.distillation.features import (
    attention_transfer_loss,
    attention_weights_loss,
    check_attention_weights,
    feature_mse_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]
EMBEDDING_LOSSES: dict[str, Loss] = {
    "relational_distance": relational_distance_loss,
    "relational_angle": relational_angle_loss,
    "similarity": similarity_loss,
}
LOSSES: dict[str, Loss] = EMBEDDING_LOSSES | {
    "hints": feature_mse_loss,
    "attention_transfer": attention_transfer_loss,
    "attention_weights": lambda student, teacher: attention_weights_loss(student.softmax(3), teacher.softmax(3)),
}


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def array(values: Tensor) -> NDArray[np.float64]:
    return values.numpy().astype(np.float64)


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def test_hints_are_the_mean_squared_difference():
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 2.5]]]])
    assert feature_mse_loss(student, teacher).item() == (4 + 0.25) / 2
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 1, 2\) and \(1, 1, 2\)"):
        feature_mse_loss(student, teacher[0])


def test_attention_transfer_value():
    student, teacher = numbers(0, 3, 2, 4, 4), numbers(1, 3, 5, 4, 4)
    total = 0.0
    for ours, theirs in zip(array(student), array(teacher), strict=True):
        maps = [(one**2).mean(axis=0) for one in (ours, theirs)]
        unit = [one / math.sqrt((one**2).sum()) for one in maps]
        total += ((unit[0] - unit[1]) ** 2).sum()
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(total / (3 * 16), rel=1e-5)


def test_attention_maps_meet_at_the_smaller_size():
    student = numbers(0, 2, 3, 4, 4)
    wide = student.square().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).sqrt()  # each square four times
    assert attention_transfer_loss(student, wide).item() == pytest.approx(0, abs=1e-10)
    assert attention_transfer_loss(wide, numbers(1, 2, 3, 4, 4)).item() == pytest.approx(
        attention_transfer_loss(student, numbers(1, 2, 3, 4, 4)).item(), rel=1e-5
    )


@pytest.mark.parametrize("shapes", [((2, 3, 4, 4), (2, 12, 4)), ((2, 3, 4, 4), (1, 3, 4, 4))])
def test_attention_transfer_is_of_maps(shapes: tuple[tuple[int, ...], tuple[int, ...]]):
    with pytest.raises(ValueError, match=r"expected \(batch, channels, height, width\) twice, got"):
        attention_transfer_loss(*(numbers(0, *shape) for shape in shapes))


@pytest.mark.parametrize("heads", [(2, 2), (2, 6)])
def test_attention_weights_value(heads: tuple[int, int]):
    student, teacher = (numbers(seed, 3, count, 4, 4).softmax(3) for seed, count in enumerate(heads))
    q, p = array(student), array(teacher)
    if heads[0] != heads[1]:
        q, p = q.mean(axis=1, keepdims=True), p.mean(axis=1, keepdims=True)
    rows = [
        sum(p[b, h, r, c] * math.log(p[b, h, r, c] / q[b, h, r, c]) for c in range(4))
        for b, h, r in product(range(3), range(p.shape[1]), range(4))
    ]
    assert attention_weights_loss(student, teacher).item() == pytest.approx(np.mean(rows), rel=1e-4)


def test_attention_that_is_nowhere_and_everywhere_costs_a_finite_amount():
    student = torch.eye(3).expand(1, 1, 3, 3).clone().requires_grad_()
    loss = attention_weights_loss(student, torch.full((1, 1, 3, 3), 1 / 3))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert 10 < loss.item() < 100


def test_attention_weights_need_as_many_tokens():
    with pytest.raises(ValueError, match=r"of as many tokens, got \(1, 2, 4, 4\) and \(1, 2, 9, 9\)"):
        attention_weights_loss(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 9, 9))


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (torch.full((1, 1, 2, 2), 0.4), "add up to 0.8 to 0.8"),
        (torch.tensor([[[[1.5, -0.5]]]]), "the smallest number -0.5"),
        (torch.full((1, 1, 2, 2), math.nan), "add up to nan"),
    ],
)
def test_what_no_softmax_puts_out_is_refused(weights: Tensor, found: str):
    check_attention_weights(numbers(0, 2, 2, 40, 40).softmax(3).bfloat16())
    with pytest.raises(ValueError, match=found):
        check_attention_weights(weights)


def test_relational_distance_value():
    student, teacher = numbers(0, 5, 3), numbers(1, 5, 2, 2, 2)
    distances = [
        [float(np.linalg.norm(one[i] - one[j])) for i, j in combinations(range(5), 2)]
        for one in (array(student), array(teacher).reshape(5, 8))
    ]
    ours, theirs = (np.array(one) / np.mean(one) for one in distances)
    expected = np.mean([huber(a - b) for a, b in zip(ours, theirs, strict=True)])
    assert relational_distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_relational_angle_value():
    student, teacher = numbers(0, 5, 3), numbers(1, 5, 8)

    def cosine(points: NDArray[np.float64], i: int, j: int, k: int) -> float:
        if j in (i, k):
            return 0.0
        left, right = points[i] - points[j], points[k] - points[j]
        return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))

    pairs = [
        huber(cosine(array(student), i, j, k) - cosine(array(teacher), i, j, k))
        for i, j, k in product(range(5), repeat=3)
    ]
    assert relational_angle_loss(student, teacher).item() == pytest.approx(np.mean(pairs), rel=1e-4)


def test_angles_do_not_take_batch_times_the_memory_of_the_features():
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        sizes: list[int] = []
        relational_angle_loss(numbers(0, 16, 4096).requires_grad_(), numbers(1, 16, 4096))
    assert max(sizes) == 16 * 4096


def test_similarity_value():
    student, teacher = numbers(0, 4, 3), numbers(1, 4, 2, 5)
    grams = [one @ one.T for one in (array(student), array(teacher).reshape(4, 10))]
    unit = [gram / np.sqrt((gram**2).sum(axis=1, keepdims=True)) for gram in grams]
    assert similarity_loss(student, teacher).item() == pytest.approx(((unit[0] - unit[1]) ** 2).sum() / 16, rel=1e-5)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(numbers(9, size, size))[0]


@pytest.mark.parametrize("name", EMBEDDING_LOSSES)
def test_scale_and_rotation_change_nothing(name: str):
    loss, student, teacher = EMBEDDING_LOSSES[name], numbers(0, 8, 6), numbers(1, 8, 6)
    plain = loss(student, teacher).item()
    assert plain > 1e-3
    assert loss(5 * student @ rotation(6), 0.2 * teacher).item() == pytest.approx(plain, rel=1e-3)
    assert loss(3 * teacher @ rotation(6), teacher).item() == pytest.approx(0, abs=1e-6)
    moved = loss(student + 2, teacher).item()
    assert (moved == pytest.approx(plain, rel=1e-3)) == (name != "similarity")  # whose origin means something


def test_attention_maps_have_no_scale():
    student, teacher = numbers(0, 4, 3, 5, 5), numbers(1, 4, 3, 5, 5)
    plain = attention_transfer_loss(student, teacher).item()
    each = torch.tensor([0.1, 1.0, 7.0, 100.0]).reshape(4, 1, 1, 1)
    assert attention_transfer_loss(each * student, 3 * teacher).item() == pytest.approx(plain, rel=1e-4)
    assert attention_transfer_loss(-2 * teacher, teacher).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["usual", "equal", "twins", "near twins", "one dead", "all dead"])
def test_gradients_are_finite_and_the_teacher_gets_none(name: str, case: str):
    student, teacher = numbers(0, 4, 3, 5, 5), numbers(1, 4, 3, 5, 5)
    match case:
        case "equal":
            student = teacher.clone()
        case "twins":
            student[1], teacher[3] = student[0], teacher[2]
        case "near twins":
            student[1] = student[0] + 1e-6
        case "one dead":
            student[0], teacher[1] = 0, 0
        case "all dead":
            student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    if case == "one dead":  # F.normalize would give 1e12
        assert student.grad.abs().max() < 10


@pytest.mark.parametrize("name", LOSSES)
def test_equal_features_cost_nothing(name: str):
    features = numbers(0, 4, 3, 5, 5)
    assert LOSSES[name](features, features).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype):
    student, teacher = numbers(0, 4, 3, 5, 5).to(dtype), 300 * numbers(1, 4, 3, 5, 5).to(dtype)
    if name == "attention_weights":
        student, teacher = student.softmax(3), teacher.softmax(3)
        loss, exact = attention_weights_loss(student, teacher), attention_weights_loss(student.float(), teacher.float())
    else:
        loss, exact = LOSSES[name](student, teacher), LOSSES[name](student.float(), teacher.float())
    assert loss.dtype == torch.float32
    assert loss.isfinite()  # squares of 300 do not fit into float16
    assert loss.item() == exact.item()


@pytest.mark.parametrize(("name", "fewest"), [("relational_distance", 2), ("relational_angle", 3), ("similarity", 1)])
def test_too_few_samples_have_no_relation(name: str, fewest: int):
    loss = EMBEDDING_LOSSES[name]
    assert loss(numbers(0, fewest, 4), numbers(1, fewest, 4)).isfinite()
    with pytest.raises(ValueError, match=f"the same {fewest} or more samples, got {fewest - 1} and {fewest - 1}"):
        loss(numbers(0, fewest - 1, 4), numbers(1, fewest - 1, 4))
    with pytest.raises(ValueError, match="got 4 and 5"):
        loss(numbers(0, 4, 4), numbers(1, 5, 4))
    with pytest.raises(ValueError, match=r"values for each sample, \(batch, ...\), got \(4, 4\) and \(4,\)"):
        loss(numbers(0, 4, 4), numbers(1, 4))
