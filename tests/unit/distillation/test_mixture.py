from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compress.distillation.features import attention_transfer_loss, feature_mse_loss
from compress.distillation.losses import (
    HIDDEN,
    decoupled_loss,
    dist_loss,
    logits_mse_loss,
    mean_logits,
    soft_target_loss,
)
from compress.distillation.mixture import Combine, Mixture, Schedule, Term, value_at
from compress.errors import ModelError, UsageError

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TEACHER = torch.randn(6, 4, generator=GENERATOR), torch.randn(6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
IMAGES = torch.rand(6, 1, 8, 8, generator=GENERATOR)


class Net(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.second(torch.relu(self.first(x))))).flatten(1))


def networks() -> tuple[Net, Net]:
    torch.manual_seed(0)
    return Net(3, stride=2), Net(5)


def answer(mixture: Mixture, done: float = 0.0, *, labels: Tensor = LABELS) -> tuple[float, dict[str, float]]:
    loss, parts = mixture(LOGITS, TEACHER[None], labels, done)
    return loss.item(), {name: part.item() for name, part in parts.items()}


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(1.0, 5.0), [1.0, 2.0, 3.0, 4.0, 5.0]),
        (Schedule(8.0, 0.0), [8.0, 6.0, 4.0, 2.0, 0.0]),
        (Schedule(0.0, 2.0, "cosine"), [0.0, 1 - math.sqrt(0.5), 1.0, 1 + math.sqrt(0.5), 2.0]),
        (3.0, [3.0] * 5),
    ],
)
def test_values_of_schedules(schedule: Schedule | float, values: list[float]):
    assert [value_at(schedule, quarter / 4) for quarter in range(5)] == pytest.approx(values)


def test_weighted_sum_of_named_parts():
    terms = [
        Term("kd", 0.5, {"temperature": 4.0}),
        Term("dkd", 2.0, {"temperature": 2.0, "alpha": 1.0, "beta": 3.0}),
        Term("logits_mse", 0.1),
        Term("dist", 1.5, {"temperature": 1.0, "beta": 1.0, "gamma": 2.0}),
        Term("hard", 0.25, {"label_smoothing": 0.1}),
        Term("kd", 1.0, {"temperature": 1.0}),
    ]
    loss, parts = answer(Mixture(terms))
    expected = {
        "kd": soft_target_loss(LOGITS, TEACHER, 4.0),
        "dkd": decoupled_loss(LOGITS, TEACHER, LABELS, 2.0, 1.0, 3.0),
        "logits_mse": logits_mse_loss(LOGITS, TEACHER),
        "dist": dist_loss(LOGITS, TEACHER, 1.0, 1.0, 2.0),
        "hard": nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1),
        "kd_2": soft_target_loss(LOGITS, TEACHER, 1.0),
    }
    assert parts == pytest.approx({name: one.item() for name, one in expected.items()}, rel=1e-6)
    assert loss == pytest.approx(sum(term.weight * parts[name] for term, name in zip(terms, parts, strict=True)))  # type: ignore[operator]


def test_weight_and_temperature_follow_their_schedules():
    mixture = Mixture([Term("kd", Schedule(0.0, 2.0), {"temperature": Schedule(8.0, 2.0)}), Term("hard", 1.0)])
    assert set(answer(mixture, 0.0)[1]) == {"hard"}  # what weighs nothing is not computed
    loss, parts = answer(mixture, 0.5)
    assert parts["kd"] == pytest.approx(soft_target_loss(LOGITS, TEACHER, 5.0).item())
    assert loss == pytest.approx(1.0 * parts["kd"] + parts["hard"])


def test_a_step_in_which_nothing_weighs_changes_nothing():
    logits = LOGITS.clone().requires_grad_()
    loss, parts = Mixture([Term("hard", Schedule(0.0, 1.0))])(logits, None, LABELS, 0.0)
    loss.backward()
    assert (loss.item(), parts) == (0.0, {})
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("weights", [[], [0.0], [0.0, Schedule(0.0, 0.0)]])
def test_weights_that_sum_to_zero_are_refused(weights: list[float | Schedule]):
    with pytest.raises(UsageError, match="weights of all losses are zero") as caught:
        Mixture([Term("kd", weight, {"temperature": 1.0}) for weight in weights])
    assert caught.value.exit_code == 2


def test_several_teachers_are_averaged_or_weighed_by_confidence():
    right = 6.0 * nn.functional.one_hot(LABELS, 4)
    teachers = torch.stack([right, -right])
    losses = {}
    for combine in ("mean", "confidence"):
        mixture = Mixture([Term("kd", 1.0, {"temperature": 1.0})], combine)
        losses[combine] = mixture(right, teachers, LABELS)[0].item()
    assert losses["confidence"] < 0.2 * losses["mean"]


@pytest.mark.parametrize("loss", ["kd", "dkd", "logits_mse", "dist"])
@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_two_teachers_that_agree_are_as_one(loss: str, combine: Combine):
    options = {"logits_mse": {}, "dkd": {"temperature": 2.0, "alpha": 1.0, "beta": 1.0}}
    options["dist"] = {"temperature": 2.0, "beta": 1.0, "gamma": 1.0}
    mixture = Mixture([Term(loss, 1.0, options.get(loss, {"temperature": 2.0}))], combine)
    teacher = TEACHER + 5.0  # an offset, which squared logits see and probabilities do not
    one, two = (mixture(LOGITS, teacher.expand(count, -1, -1), LABELS)[0].item() for count in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


def test_squared_logits_of_several_teachers_are_weighed_by_hand():
    teachers = torch.stack([torch.zeros(6, 4), torch.full((6, 4), 2.0)])
    mixture = Mixture([Term("logits_mse", 1.0)])
    assert mixture(torch.ones(6, 4), teachers, LABELS)[0].item() == pytest.approx(0.0)
    assert mean_logits(teachers, torch.tensor([[0.25] * 6, [0.75] * 6]))[0].tolist() == [1.5] * 4


def test_without_labels_nothing_but_the_teacher_counts():
    mixture = Mixture([Term("kd", 1.0, {"temperature": 2.0}), Term("hard", 1.0)], "confidence")
    loss, parts = answer(mixture, labels=torch.full_like(LABELS, HIDDEN))
    assert parts["hard"] == 0.0
    assert loss == parts["kd"]


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ModelError, match="the teacher answers for 5 classes, the student for 4") as caught:
        Mixture([Term("kd", 1.0, {"temperature": 1.0})])(LOGITS, torch.zeros(1, 6, 5), LABELS)
    assert caught.value.exit_code == 5


def test_features_are_those_of_the_batch_that_was_just_answered():
    student, teacher = networks()
    pairs = (("first", "first"), ("second", "second"))
    mixture = Mixture([Term("attention_transfer", 3.0, pairs=pairs), Term("hints", 1.0, pairs=pairs[:1])])
    mixture.tap(student, teacher, IMAGES[:3])
    for images in (IMAGES, IMAGES[:4]):
        logits = student(images)
        with torch.no_grad():
            answers = teacher(images)
        _, parts = mixture(logits, answers[None], LABELS[: len(images)])
        first = student.first(images), teacher.first(images)
        second = student.second(first[0].relu()), teacher.second(first[1].relu())
        expected = (attention_transfer_loss(*first) + attention_transfer_loss(*second)) / 2
        assert parts["attention_transfer"].item() == pytest.approx(expected.item(), rel=1e-5)
        adapted = mixture.adapters["first->first"](first[0])
        assert adapted.shape == first[1].shape
        assert parts["hints"].item() == pytest.approx(feature_mse_loss(adapted, first[1]).item(), rel=1e-5)
    assert sum(p.numel() for p in mixture.parameters()) == (3 + 1) * 5
    loss, _ = mixture(student(IMAGES), teacher(IMAGES)[None], LABELS)
    loss.backward()
    assert student.first.weight.grad is not None
    assert all(p.grad is not None for p in mixture.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    mixture.close()
    mixture.close()
    assert not any(one._forward_hooks for net in (student, teacher) for one in net.modules())


def test_one_pair_has_one_adapter():
    student, teacher = networks()
    mixture = Mixture([Term("hints", 1.0, pairs=(("pool", "pool"),)), Term("hints", 2.0, pairs=(("pool", "pool"),))])
    mixture.tap(student, teacher, IMAGES[:3])
    assert mixture.names == ["hints", "hints_2"]
    assert list(mixture.adapters) == ["pool->pool"]
    mixture.close()


@pytest.mark.parametrize(
    ("loss", "pair", "images", "message"),
    [
        ("attention_transfer", ("first", "head"), 4, "expected .batch, channels, height, width. twice"),
        ("attention_weights", ("second", "second"), 4, "of as many tokens"),
        ("attention_weights", ("second", "pool"), 4, "of as many tokens"),
        ("attention_weights", ("pool", "pool"), 4, "expected weights behind a softmax"),
        ("hints", ("first", "head"), 4, "no adapter brings the one to the other"),
        ("relational_angle", ("head", "head"), 2, "the same 3 or more samples, got 2 and 2"),
    ],
)
def test_taps_that_do_not_suit_their_loss_are_refused(loss: str, pair: tuple[str, str], images: int, message: str):
    student, teacher = networks()
    mixture = Mixture([Term(loss, 1.0, pairs=(pair,))])
    with pytest.raises(UsageError, match=message) as caught:
        mixture.tap(student, teacher, IMAGES[:images])
    assert caught.value.exit_code == 2
    assert f"Taps {pair[0]}: {pair[1]}" in str(caught.value)
    assert not any(one._forward_hooks for net in (student, teacher) for one in net.modules())
