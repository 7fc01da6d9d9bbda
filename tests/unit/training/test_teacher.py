from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.loader import Augmentation, batches
from compress.data.split import Split
from compress.training.loop import TrainSettings
from compress.training.teacher import Savings, StoredLogits, TeacherLogits

Network = Callable[..., nn.Module]


def test_without_augmentation_the_split_is_run_once(network: Network, settings: TrainSettings, train_split: Split):
    teacher = TeacherLogits([network()], settings, train_split)
    assert (teacher.mode, teacher.images_run) == ("remembered", 0)
    for epoch in (1, 2, 3):
        for batch in batches(train_split, 32, seed=0, epoch=epoch, shuffle=True):
            cached = teacher(batch)
            with torch.no_grad():
                live = teacher.modules[0](batch.images)[None]
            assert torch.allclose(cached, live, atol=1e-5)
    assert teacher.images_run == len(train_split)
    assert teacher.images_reused == 2 * len(train_split)
    assert teacher.describe().startswith("soft targets of 256 images computed once and reused 512 times (1 teacher); ")
    savings = teacher.savings()
    assert (savings.asked, savings.found, savings.hit_rate) == (768, 512, 2 / 3)
    assert savings.size_bytes == 256 * 4 * 4  # samples, classes, bytes of a float32
    assert savings.seconds == pytest.approx(512 * savings.seconds_per_image)
    assert 0 < savings.seconds_per_image < 1


def test_with_augmentation_every_batch_is_run(network: Network, settings: TrainSettings, train_split: Split):
    augmented = replace(settings, augmentation=Augmentation(shift_px=1))
    teacher = TeacherLogits([network()], augmented, train_split)
    batch = next(iter(batches(train_split, 16)))
    changed = batch._replace(images=batch.images.flip(3))
    assert not torch.equal(teacher(batch), teacher(changed))
    assert (teacher.mode, teacher.images_run, teacher.images_reused) == ("live", 32, 0)
    assert teacher.describe() == (
        "soft targets computed for every batch, because shift_px without views never shows an image twice (1 teacher)"
    )
    assert teacher.savings() == Savings(asked=32, found=0, size_bytes=0, seconds_per_image=0.0)
    assert teacher.savings().hit_rate == 0


def test_a_reason_to_run_every_batch_is_said(network: Network, settings: TrainSettings, train_split: Split):
    teacher = TeacherLogits([network()], settings, train_split, live_because="the losses read its features")
    batch = next(iter(batches(train_split, 16)))
    assert torch.equal(teacher(batch), teacher(batch))
    assert (teacher.mode, teacher.images_run, teacher.images_reused) == ("live", 32, 0)
    assert teacher.describe() == (
        "soft targets computed for every batch, because the losses read its features (1 teacher)"
    )


@pytest.mark.parametrize(
    "augment", [Augmentation(flip=True), Augmentation(flip=True, shift_px=2, views=2)], ids=["mirrored", "two views"]
)
def test_each_view_is_answered_once(
    network: Network, settings: TrainSettings, train_split: Split, augment: Augmentation
):
    teacher = TeacherLogits([network()], replace(settings, augmentation=augment), train_split)
    assert teacher.mode == "remembered"
    for epoch in range(8):
        for batch in batches(train_split, 32, seed=0, epoch=epoch, augment=augment, shuffle=True):
            cached = teacher(batch)
            with torch.no_grad():
                live = teacher.modules[0](batch.images)[None]
            assert torch.allclose(cached, live, atol=1e-5)
    assert len(train_split) < teacher.images_run <= 2 * len(train_split)
    assert teacher.images_run + teacher.images_reused == 8 * len(train_split)


def test_inactive_augmentation_repeats_inputs(network: Network, settings: TrainSettings, train_split: Split):
    assert TeacherLogits([network()], replace(settings, augmentation=Augmentation()), train_split).mode == "remembered"


def test_several_teachers_keep_their_own_row(network: Network, settings: TrainSettings, train_split: Split):
    teacher = TeacherLogits([network(0), network(1)], settings, train_split)
    batch = next(iter(batches(train_split, 16)))
    assert teacher(batch).shape == (2, 16, 4)
    assert not torch.equal(*teacher(batch))
    assert teacher.describe().startswith("soft targets of 16 images computed once and reused 16 times (2 teachers)")


def test_teachers_run_in_evaluation_mode_without_gradients(
    network: Network, settings: TrainSettings, train_split: Split
):
    module = network().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    logits = TeacherLogits([module], settings, train_split)(next(iter(batches(train_split, 16))))
    assert not logits.requires_grad
    assert not module.training
    assert all(parameter.requires_grad for parameter in module.parameters())  # it may be trained again as a student
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_bf16_rounds_the_answers(network: Network, settings: TrainSettings, train_split: Split):
    batch = next(iter(batches(train_split, 16)))
    exact, rounded = (
        TeacherLogits([network()], replace(settings, precision=precision), train_split)(batch)
        for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.1)


def test_no_teacher_is_refused(settings: TrainSettings, train_split: Split):
    with pytest.raises(ValueError, match="at least one teacher"):
        TeacherLogits([], settings, train_split)


def test_stored_logits_are_looked_up_by_view_and_index(train_split: Split):
    stored = np.arange(2 * 3 * 256 * 4, dtype=np.float16).reshape(2, 3, 256, 4)
    teacher = StoredLogits(stored, seconds_per_image=0.5)
    assert teacher.savings() == Savings(asked=0, found=0, size_bytes=stored.nbytes, seconds_per_image=0.5)
    augment = Augmentation(shift_px=1, views=3)
    batch = next(iter(batches(train_split, 5, augment=augment, shuffle=True)))

    logits = teacher(batch)

    assert (logits.dtype, logits.shape) == (torch.float32, (2, 5, 4))
    for row, (view, index) in enumerate(zip(batch.views.tolist(), batch.indices.tolist(), strict=True)):
        assert logits[:, row].tolist() == stored[:, view, index].tolist()
    assert (teacher.savings().hit_rate, teacher.savings().seconds) == (1.0, 2.5)
    assert teacher.describe() == (
        "soft targets of 5 images looked up in stored answers (2 teachers); "
        "about 2.5 s saved, estimated from 5e+02 ms an image"
    )
