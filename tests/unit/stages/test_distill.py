"""`distill` with a mixture of losses, on real networks and data."""

from __future__ import annotations

import traceback

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import ModelError, UsageError
from compress.stages import STAGES
from compress.stages.distill import DistillInputs
from compress.stages.qat import QatInputs

TEACHER = {"name": "resnet", "widths": [8, 16], "depths": [1, 1]}
STUDENT = {"name": "resnet", "widths": [8, 8], "depths": [1, 1]}
VIT = {"name": "vit", "width": 8, "depth": 2, "heads": 2, "patch": 4}
QUICK = {"epochs": 1, "batch_size": 50, "device": "cpu", "precision": "fp32", "threads": 1}


@pytest.fixture
def teacher(execute):
    return execute(STAGES["train"], "teacher", model=TEACHER, **QUICK)


def distil(execute, step, *teachers, model=STUDENT, **config):
    return execute(STAGES["distill"], step, DistillInputs(teacher=teachers), model=model, **(QUICK | config))


def weights(checkpoint):
    return load_file(checkpoint.path / "weights.safetensors")


def test_every_kind_of_knowledge_in_one_step(execute, teacher):
    taps = {"features.*": "features.*"}
    losses = [
        {"loss": "hard", "weight": 0.1},
        {"loss": "kd", "weight": {"start": 1.0, "end": 0.5}, "temperature": {"start": 8, "end": 2}},
        {"loss": "dkd", "weight": 0.1},
        {"loss": "dist", "weight": 0.1},
        {"loss": "logits_mse", "weight": 0.01},
        {"loss": "hints", "taps": taps},
        {"loss": "attention_transfer", "weight": 10, "taps": taps},
        {"loss": "relational_distance", "taps": {"features": "features"}},
        {"loss": "relational_angle", "taps": {"features": "features"}},
        {
            "loss": "similarity",
            "weight": {"start": 0, "end": 10, "shape": "cosine"},
            "taps": {"features.2": "features.1"},
        },
    ]
    student = distil(execute, "student", teacher, losses=losses)
    plain = execute(STAGES["train"], "plain", model=STUDENT, **QUICK)
    assert {name: one.shape for name, one in weights(student).items()} == {
        name: one.shape for name, one in weights(plain).items()
    }  # no adapter among them
    assert student.manifest.notes[0].startswith("soft targets computed for every batch, because losses compare what")
    again = distil(execute, "again", teacher, losses=losses)
    assert all(torch.equal(one, weights(again)[name]) for name, one in weights(student).items())


def test_transformers_teach_attention_and_hidden_states(execute):
    vit = execute(STAGES["train"], "vit", model=VIT | {"width": 16, "heads": 4}, **QUICK)
    losses = [
        {"loss": "attention_weights", "taps": {"blocks.*.attention.softmax": "blocks.*.attention.softmax"}},
        {"loss": "hints", "taps": {"blocks.*": "blocks.*"}},
    ]
    assert distil(execute, "student", vit, model=VIT, losses=losses).manifest.metrics


def test_losses_of_logits_look_answers_up_and_take_several_teachers(execute, teacher):
    other = execute(STAGES["train"], "other", model=STUDENT, **QUICK)
    student = distil(execute, "student", teacher, other, losses=[{"loss": "dist"}], combine="confidence", epochs=2)
    assert "computed once and reused" in student.manifest.notes[0]
    assert "(2 teachers)" in student.manifest.notes[0]


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"features.9": "features.1"}, "The student has no module 'features.9'; nearest: features"),
        ({"features.1": "feature.1"}, "The teacher has no module 'feature.1'; nearest: features"),
        ({"features.*": "features.*.first"}, "means 3 modules of the student .* 2 of the teacher"),
        ({"features.1": "classifier"}, "no adapter brings the one to the other"),
    ],
)
def test_wrong_taps_are_refused_before_training(execute, teacher, taps, message):
    with pytest.raises(UsageError, match=message) as caught:
        distil(execute, "student", teacher, losses=[{"loss": "hints", "taps": taps}])
    assert caught.value.exit_code == 2


def test_taps_come_off_when_training_fails(execute, teacher):
    losses = [{"loss": "hints", "taps": {"features.*": "features.*"}}, {"loss": "hard"}]
    with pytest.raises(ModelError, match="the loss is") as caught:
        distil(execute, "student", teacher, losses=losses, learning_rate=1e30)
    (frame,) = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__) if "teaching" in frame.f_locals]
    assert len(frame.f_locals["objective"].mixture.pairs) == 3
    networks = [frame.f_locals["module"], *frame.f_locals["teaching"].modules]
    assert len(networks) == 2
    assert not any(one._forward_hooks for network in networks for one in network.modules())


@pytest.mark.slow
def test_a_teacher_with_fake_quant_teaches_its_logits(execute, teacher):
    qat = execute(STAGES["qat"], "qat", QatInputs(student=teacher, teacher=teacher), **QUICK)
    assert "computed once" in qat.manifest.notes[0]
    student = distil(execute, "student", qat, losses=[{"loss": "kd"}])
    assert student.manifest.metrics
    with pytest.raises(UsageError, match=r"The teacher has no module 'features\.1'; nearest: "):
        distil(execute, "tapped", qat, losses=[{"loss": "hints", "taps": {"features.1": "features.1"}}])
