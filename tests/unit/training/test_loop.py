from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.loader import Augmentation, Batch
from compress.data.split import Split
from compress.distillation.mixture import Mixture, Schedule, Term
from compress.errors import DataError, ModelError
from compress.quantization.quantizer import convert_qat, prepare_qat
from compress.training.evaluate import cross_entropy, predict_logits, top1
from compress.training.loop import FitResult, TrainSettings, fit, learning_rate_at
from compress.training.objectives import MixtureObjective, distillation_objective, hard_objective
from compress.training.teacher import TeacherLogits

Network = Callable[..., nn.Module]


def test_one_cycle_rises_then_falls(settings: TrainSettings):
    rates = [learning_rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.05 / 25)
    assert rates[30] == pytest.approx(0.05)
    assert rates[99] == pytest.approx(0.05 / 10_000)
    assert all(a < b for a, b in pairwise(rates[:31]))
    assert all(a > b for a, b in pairwise(rates[30:]))


def test_cosine_falls_from_the_peak(settings: TrainSettings):
    cosine = replace(settings, schedule="cosine")
    rates = [learning_rate_at(step, 100, cosine) for step in range(100)]
    assert rates[0] == 0.05
    assert rates[50] == pytest.approx(0.025)
    assert all(a > b > 0 for a, b in pairwise(rates))


def test_steps_fall_to_a_tenth_after_each_milestone(settings: TrainSettings):
    step = replace(settings, schedule="step", epochs=10, milestones=(5, 8))
    rates = [learning_rate_at(number, 70, step) for number in range(70)]  # 7 steps an epoch
    assert rates[:35] == [0.05] * 35
    assert rates[35:56] == pytest.approx([0.005] * 21)
    assert rates[56:] == pytest.approx([0.0005] * 14)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_training_of_one_step_has_a_rate(settings: TrainSettings, schedule: Any):
    assert 0 < learning_rate_at(0, 1, replace(settings, schedule=schedule)) <= 0.05


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 0.01},
        {"schedule": "cosine"},
        {"schedule": "step", "milestones": (2,)},
        {"momentum": 0.0},
        {"precision": "bf16"},
        {"augmentation": Augmentation(shift_px=1)},
    ],
    ids=lambda change: "-".join(change) or "default",
)
def test_it_learns(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split, change: dict[str, Any]
):
    result = fit(network(), hard_objective(), train_split, validation_split, replace(settings, **change))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[result.best_epoch - 1]["validation_top1"] > 0.9
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in result.module.parameters())


def test_history_is_one_json_record_an_epoch_without_times(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    seen: list[Any] = []
    steps: list[int] = []
    result = fit(
        *(network(), hard_objective(), train_split, validation_split, settings),
        on_epoch=seen.append,
        on_step=lambda: steps.append(len(seen)),
    )
    assert steps == [0] * 8 + [1] * 8 + [2] * 8, "256 images in batches of 32, before the epoch's record"
    assert seen == result.history == json.loads(json.dumps(result.history))
    assert [record["epoch"] for record in seen] == [1, 2, 3]
    assert set(seen[0]) == {"epoch", "learning_rate", "loss", "parts", "validation_top1", "validation_loss"}
    assert len(result.seconds) == 3


def test_the_same_inputs_give_the_same_bytes(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    def run(seed: int) -> tuple[str, dict[str, torch.Tensor]]:
        torch.rand(seed)  # the state of the global generator must not matter
        changed = replace(settings, seed=seed, augmentation=Augmentation(flip=True, shift_px=1))
        result = fit(network(), hard_objective(0.1), train_split, validation_split, changed)
        return json.dumps(result.history), result.module.state_dict()

    (first, weights), (second, same), (third, other) = run(5), run(5), run(6)
    assert first == second != third
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert not all(torch.equal(weights[key], other[key]) for key in weights)


def test_the_best_epoch_is_restored(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    # A rate this high makes the epochs jump about, so that the last is not the best.
    wild = replace(settings, epochs=6, learning_rate=3.0, schedule="cosine", optimizer="sgd", momentum=0.0)
    result = fit(network(), hard_objective(), train_split, validation_split, wild)
    ranks = [(r["validation_top1"], -r["validation_loss"], r["epoch"]) for r in result.history]
    assert result.best_epoch == max(ranks)[2]
    best = result.history[result.best_epoch - 1]
    logits = predict_logits(result.module, validation_split)
    assert not result.module.training
    assert top1(logits, validation_split.labels) == best["validation_top1"]
    assert cross_entropy(logits, validation_split.labels) == pytest.approx(best["validation_loss"], abs=1e-5)


def test_equal_epochs_go_to_the_later(settings: TrainSettings, train_split: Split, validation_split: Split):
    still = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    result = fit(still, hard_objective(), train_split, validation_split, replace(settings, learning_rate=1e-30))
    assert len({record["validation_loss"] for record in result.history}) == 1
    assert result.best_epoch == 3


def test_equal_accuracy_goes_to_the_lower_loss(settings: TrainSettings, train_split: Split, validation_split: Split):
    class Louder(nn.Module):
        """Scales right answers up as it trains, then is scaled down again by the decay of its only weight."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 1))
            self.passes = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += not self.training
            loudness = 3.0 if self.passes == 2 else 1.0
            quadrants = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
            return loudness * 10 * self.scale * quadrants

    result = fit(
        Louder(), hard_objective(), train_split, validation_split, replace(settings, learning_rate=1e-30, epochs=3)
    )
    assert len({record["validation_top1"] for record in result.history}) == 1
    assert result.best_epoch == 2


def test_a_diverging_loss_stops_with_place_and_hint(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    wild = replace(settings, learning_rate=1e18, schedule="cosine")
    with pytest.raises(
        ModelError, match=r"the loss is (nan|inf) in epoch 1, step [2-8], at learning rate \d"
    ) as caught:
        fit(network(), hard_objective(), train_split, validation_split, wild)
    assert caught.value.exit_code == 5
    assert "lower the learning rate" in caught.value.hint


def test_a_validation_loss_that_is_not_finite_stops(
    settings: TrainSettings, train_split: Split, validation_split: Split
):
    class BrokenInEvaluation(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits if self.training else logits / 0

    module = BrokenInEvaluation(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ModelError, match=r"the validation loss is nan after epoch 1, at learning rate") as caught:
        fit(module, hard_objective(), train_split, validation_split, settings)
    assert caught.value.exit_code == 5


def test_too_few_images_are_refused(network: Network, settings: TrainSettings, train_split: Split):
    with pytest.raises(DataError, match="got 1 training and 256 validation images") as caught:
        fit(network(), hard_objective(), train_split.take(np.arange(1)), train_split, settings)
    assert caught.value.exit_code == 5


def test_fewer_images_than_a_batch_are_one_batch(network: Network, settings: TrainSettings, train_split: Split):
    few = train_split.take(np.arange(8))
    sizes = []

    def objective(
        logits: torch.Tensor, batch: Batch, done: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sizes.append(len(batch.labels))
        return logits.square().mean(), {}

    fit(network(), objective, few, few, settings)
    assert sizes == [8, 8, 8]


def test_a_network_without_weights_is_refused(settings: TrainSettings, train_split: Split):
    with pytest.raises(ModelError, match="Flatten has no trainable weight") as caught:
        fit(nn.Flatten(), hard_objective(), train_split, train_split, settings)
    assert caught.value.exit_code == 5


def test_threads_are_the_settings(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    before = torch.get_num_threads()
    seen = set()
    fit(
        network(),
        hard_objective(),
        train_split,
        validation_split,
        replace(settings, threads=before + 1, epochs=1),
        on_epoch=lambda record: seen.add(torch.get_num_threads()),
    )
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_weight_decay_spares_biases_and_batch_norm(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    def objective(
        logits: torch.Tensor, batch: Batch, done: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return 0 * logits.sum(), {}

    before = {name: p.detach().clone() for name, p in network().named_parameters()}
    decayed = fit(network(), objective, train_split, validation_split, replace(settings, weight_decay=0.5)).module
    for name, parameter in decayed.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim == 1), name


def test_a_student_learns_from_its_teacher(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    teacher = fit(network(), hard_objective(), train_split, validation_split, settings).module
    teaching = TeacherLogits([teacher], settings, train_split)
    objective = distillation_objective(teaching, 4.0, 1.0)  # no label is used
    result = fit(network(1), objective, train_split, validation_split, settings)
    assert result.history[result.best_epoch - 1]["validation_top1"] > 0.9
    assert set(result.history[0]["parts"]) == {"kd"}
    assert teaching.images_run == 256


def test_the_objective_is_told_how_much_is_done_and_parts_are_means_of_the_steps_that_have_them(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    seen: list[float] = []

    def objective(
        logits: torch.Tensor, batch: Batch, done: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append(done)
        loss, parts = hard_objective()(logits, batch)
        return loss, parts | ({"late": torch.tensor(3.0)} if done >= 0.75 else {})

    result = fit(network(), objective, train_split, validation_split, replace(settings, epochs=2))
    assert seen == [step / 16 for step in range(16)]
    assert set(result.history[0]["parts"]) == {"hard"}
    assert result.history[1]["parts"]["late"] == 3.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_are_trained_along_and_stay_out_of_the_network(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split, precision: str
):
    changed = replace(settings, precision=precision, epochs=2)
    teacher = fit(network(), hard_objective(), train_split, validation_split, settings).module

    def distilled() -> tuple[Mixture, dict[str, torch.Tensor], FitResult]:
        student = network(1)
        terms = [
            Term("hints", Schedule(2.0, 0.0), pairs=(("net.conv", "net.conv"), ("net.norm", "net.norm"))),
            Term("relational_angle", 1.0, pairs=(("net.classifier", "net.classifier"),)),
            Term("kd", 1.0, {"temperature": Schedule(8.0, 2.0)}),
        ]
        mixture = Mixture(terms)
        mixture.tap(student, teacher, torch.zeros(4, 1, 8, 8))
        before = {name: value.clone() for name, value in mixture.state_dict().items()}
        teaching = TeacherLogits([teacher], changed, train_split, live_because="layers are compared")
        result = fit(student, MixtureObjective(mixture, teaching), train_split, validation_split, changed)
        mixture.close()
        return mixture, before, result

    mixture, before, result = distilled()
    assert set(result.module.state_dict()) == set(network().state_dict())
    assert {name.split(".")[1] for name in before} == {"net/conv->net/conv", "net/norm->net/norm"}
    assert all(not torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    assert set(result.history[0]["parts"]) == {"hints", "relational_angle", "kd"}
    assert result.history[1]["parts"]["hints"] < result.history[0]["parts"]["hints"]
    assert result.history[1]["validation_top1"] > 0.9
    assert not any(one._forward_hooks for net in (teacher, result.module) for one in net.modules())
    again, _, same = distilled()
    assert same.history == result.history
    assert all(torch.equal(value, mixture.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quantization_aware_training_keeps_accuracy_through_conversion(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split, precision: str
):
    student = fit(network(), hard_objective(), train_split, validation_split, settings).module
    fine = replace(settings, epochs=2, learning_rate=0.005, precision=precision)
    teaching = TeacherLogits([student], fine, train_split)
    prepared = prepare_qat(student, torch.zeros(2, 1, 8, 8))
    result = fit(prepared, distillation_objective(teaching, 4.0, 0.9), train_split, validation_split, fine)
    assert prepared is result.module
    assert prepared.ranges_frozen
    assert prepared.batch_norm_frozen
    labels = validation_split.labels
    float_logits, fake, converted = (
        predict_logits(module, validation_split) for module in (student, prepared, convert_qat(prepared))
    )
    assert top1(fake, labels) >= top1(float_logits, labels) - 0.02
    assert (fake.argmax(1) != converted.argmax(1)).mean() <= 0.01
    assert np.abs(fake - converted).max() < 0.02 * np.abs(fake).max()


def test_ranges_start_from_unaugmented_images_and_freeze(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split
):
    prepared = prepare_qat(network(), torch.zeros(2, 1, 8, 8))
    scales: list[list[float]] = []

    def objective(
        logits: torch.Tensor, batch: Batch, done: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # in the order of the graph: the first belongs to the normalised image
        nodes = [node for node in prepared.network.graph.nodes if node.op == "call_module"]
        modules: list[Any] = [prepared.network.get_submodule(str(node.target)) for node in nodes]
        scales.append([module.scale.max().item() for module in modules if not module.is_per_channel])
        return hard_objective()(logits, batch)

    fit(prepared, objective, train_split, validation_split, replace(settings, epochs=1, freeze=0.5))
    largest = (train_split.images.max() / 255 - 0.3) / 0.2
    assert scales[0][0] == pytest.approx(largest / 127.5, rel=0.02)
    assert scales[1] != scales[2]
    assert scales[4] == scales[7]  # 8 steps, frozen from the fifth
    assert all(math.isfinite(scale) for scale in scales[-1])
