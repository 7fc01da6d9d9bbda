from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.data.loader import Batch
from compress.data.split import HIDDEN
from compress.distillation.mixture import Schedule
from compress.training.loop import fit
from compress.training.self_distillation import AveragedTeacher, self_distillation_objective


def batch(images: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    indices = torch.arange(len(images))
    return Batch(images, torch.zeros(len(images), dtype=torch.int64) if labels is None else labels, indices, indices)


@pytest.fixture
def one() -> nn.Sequential:
    """One weight, which is the answer."""
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten())


def test_the_average_is_the_mean_until_it_is_exponential(one: nn.Sequential) -> None:
    teacher = AveragedTeacher(one, decay=0.75)
    (weight,) = one.parameters()
    answers = []
    for value in (1.0, 2.0, 6.0, 3.0, 8.0, 1.0):
        nn.init.constant_(weight, value)
        answers.append(teacher(batch(torch.ones(1, 1, 1, 1))).item())
    # mean of 1; 1, 2; 1, 2, 6; 1, 2, 6, 3; then 3/4 of the last one and 1/4 of what came
    assert answers == pytest.approx([1.0, 1.5, 3.0, 3.0, 4.25, 3.4375])


def test_it_answers_in_evaluation_mode_and_leaves_the_network_in_training() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten()).train()
    teacher = AveragedTeacher(module, decay=0.9)

    def batches_seen() -> torch.Tensor:
        return teacher.average.state_dict()["1.num_batches_tracked"]

    images = torch.rand(4, 1, 3, 3)
    first, second = teacher(batch(images)), teacher(batch(images))
    assert first.shape == (1, 4, 18)
    assert torch.allclose(first, second)
    assert not first.requires_grad
    assert module.training
    assert batches_seen() == 0
    module(images)
    teacher(batch(images))
    assert batches_seen() == 1


def test_the_weight_grows_and_takes_from_the_labels(one: nn.Sequential) -> None:
    linear = nn.Linear(4, 3)
    module = nn.Sequential(nn.Flatten(), linear)
    objective = self_distillation_objective(module, 0.0, 2.0, Schedule(0.0, 0.5))
    images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, parts = objective(module(images), batch(images, labels), 0.0)
    assert set(parts) == {"hard"}
    assert loss.item() == pytest.approx(parts["hard"].item())
    with torch.no_grad():
        linear.weight.add_(torch.rand(3, 4))
    logits = module(images) + torch.rand(6, 3)
    loss, parts = objective(logits, batch(images, labels), 1.0)
    assert parts["kd"] > 0
    assert loss.item() == pytest.approx((parts["kd"] + parts["hard"]).item() / 2)


def test_it_learns_gives_the_same_bytes_and_keeps_its_own_weights(
    network, settings, train_split, validation_split
) -> None:
    results = []
    for _ in range(2):
        module = network()
        objective = self_distillation_objective(module, 0.9, 4.0, Schedule(0.0, 0.8))
        assert [*objective.parameters()] == []
        results.append(fit(module, objective, train_split, validation_split, settings))
    first, second = (result.module.state_dict() for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == network().state_dict().keys()
    assert results[0].history[-1]["validation_top1"] > 0.9
    assert {"kd", "hard"} <= set(results[0].history[-1]["parts"])


def test_hidden_labels_are_taught_by_the_average(one: nn.Sequential) -> None:
    linear = nn.Linear(4, 3)
    module = nn.Sequential(nn.Flatten(), linear)
    objective = self_distillation_objective(module, 0.0, 1.0, 0.5)
    images = torch.rand(4, 1, 2, 2)
    logits = (module(images) + torch.rand(4, 3)).detach().requires_grad_()
    loss, _ = objective(logits, batch(images, torch.full((4,), HIDDEN)), 0.5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
