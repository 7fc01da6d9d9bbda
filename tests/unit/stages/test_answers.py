"""`answers`, and how `distill` and `qat` take them: the teacher is not run, and nobody else's answers pass for its."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from compress.artifacts.manifest import Artifact
from compress.errors import DataError, ModelError, UsageError
from compress.stages import STAGES
from compress.stages.answers import AnswersInputs
from compress.stages.distill import DistillInputs
from compress.stages.qat import QatInputs

MLP = {"name": "mlp", "widths": [8]}
SHIFTED = {"shift_px": 1, "views": 3}


@pytest.fixture
def teacher(execute):
    return execute(STAGES["train"], "teacher", model=MLP, epochs=1)


@pytest.fixture
def answers(execute, teacher):
    return execute(STAGES["answers"], "answers", AnswersInputs(teacher=(teacher,)), **SHIFTED)


def metrics(artifact: Artifact) -> dict[str, float]:
    return {metric.name: metric.value for metric in artifact.manifest.metrics}


def unreadable(teacher: Any) -> Any:
    """The teacher without its weights: whoever tries to run it fails."""
    (teacher.path / "weights.safetensors").unlink()
    return teacher


def test_answers_say_how_many_they_are_and_how_long_one_took(teacher, answers):
    found = metrics(answers)
    n = answers.manifest.metrics[0].n
    logits = np.load(answers.path / "logits.npy")
    document = json.loads((answers.path / "answers.json").read_text())

    assert logits.shape == (1, 3, n, 10)
    assert answers.manifest.tensors[0].shape == (1, 3, n, 10)
    assert found["answers"] == 3 * n
    assert found["size"] == (answers.path / "logits.npy").stat().st_size
    assert 0 < found["seconds_per_image"] < 0.1
    assert document["teachers"] == [teacher.manifest.digest]
    assert document["augmentation"] == {"flip": False, "shift_px": 1, "views": 3, "view_seed": 0}
    assert answers.manifest.notes == (f"logits of 1 teacher for 3 views of {n} training images",)


def test_a_student_learns_from_answers_alone(execute, teacher, answers):
    inputs = DistillInputs(teacher=(unreadable(teacher),), answers=answers)

    student = execute(STAGES["distill"], "student", inputs, model=MLP, epochs=4, batch_size=32)

    found, n = metrics(student), answers.manifest.metrics[0].n
    asked = 4 * (n // 32 * 32)
    assert found["teacher_hit_rate"] == 1
    assert found["teacher_cache"] == 3 * n * 10 * 2
    assert found["teacher_saved"] == pytest.approx(asked * metrics(answers)["seconds_per_image"])
    assert student.manifest.notes[0].startswith(
        f"soft targets of {asked} images looked up in stored answers (1 teacher)"
    )


def test_answers_teach_what_the_teacher_would(execute, teacher, answers):
    common: dict[str, Any] = {"model": MLP, "epochs": 3, "batch_size": 32, "threads": 1}
    looked_up = execute(STAGES["distill"], "stored", DistillInputs(teacher=(teacher,), answers=answers), **common)
    running = execute(STAGES["distill"], "running", DistillInputs(teacher=(teacher,)), **common, **SHIFTED)
    other = execute(STAGES["distill"], "other", DistillInputs(teacher=(teacher,)), **common, shift_px=1)

    weights = [load_file(one.path / "weights.safetensors") for one in (looked_up, running, other)]
    distances = [max(float(np.abs(weights[0][name] - some[name]).max()) for name in weights[0]) for some in weights[1:]]
    assert 0 < distances[0] < 0.01 < distances[1]  # float16 moves weights a little, other views move them far
    assert metrics(running)["teacher_hit_rate"] == pytest.approx((2 / 3) ** 3, abs=0.1)  # views seen before
    assert metrics(other)["teacher_hit_rate"] == 0
    assert "because shift_px without views never shows an image twice" in other.manifest.notes[0]


@pytest.mark.slow
def test_fine_tuning_with_fake_quant_learns_from_answers(execute, teacher, answers):
    student = execute(STAGES["train"], "student", model=MLP, epochs=1)
    inputs = QatInputs(student=student, teacher=unreadable(teacher), answers=answers)
    assert metrics(execute(STAGES["qat"], "qat", inputs, epochs=1))["teacher_hit_rate"] == 1


def test_answers_of_another_teacher_are_refused(execute, teacher, answers):
    other = execute(STAGES["train"], "other", model=MLP, epochs=1)
    for teachers in ((other,), (teacher, other)):
        inputs = DistillInputs(teacher=teachers, answers=answers)
        with pytest.raises(ModelError) as caught:
            execute(STAGES["distill"], f"student-{len(teachers)}", inputs, model=MLP, epochs=1)
        assert "another teacher: digest digest-teach; this step's is" in caught.value.message
        assert "step 'other' (digest digest-other)" in caught.value.message
        assert (caught.value.exit_code, caught.value.where) == (5, "step 'answers'")


def edit(answers: Artifact, **changes: object) -> None:
    path = answers.path / "answers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": "0" * 64},
            r"other data: \d+ training images \(digest 0{12}\); here are \d+ \(digest \w{12}\)",
        ),
        ({"classes": [*"9876543210"]}, r"the answers are for the classes 9, 8, .*; the data has 0, 1, "),
    ],
)
def test_answers_to_other_data_are_refused(execute, teacher, answers, changes, message):
    edit(answers, **changes)
    inputs = DistillInputs(teacher=(teacher,), answers=answers)
    with pytest.raises(DataError, match=message) as caught:
        execute(STAGES["distill"], "student", inputs, model=MLP, epochs=1)
    assert (caught.value.exit_code, caught.value.where) == (5, "step 'answers'")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"flip": True}, "flip is True, the answers have False"),
        ({"shift_px": 2}, "shift_px is 2, the answers have 1"),
        ({"shift_px": 1, "views": 8}, "views is 8, the answers have 3"),
        ({"shift_px": 0, "views": None}, "shift_px is 0, the answers have 1; views is None, the answers have 3"),
        ({"flip": False, "shift_px": 1, "views": 3}, ""),
    ],
)
def test_other_views_than_those_of_the_answers_are_refused(execute, teacher, answers, named, message):
    inputs = DistillInputs(teacher=(teacher,), answers=answers)
    options: dict[str, Any] = {"model": MLP, "epochs": 1, **named}
    if not message:
        execute(STAGES["distill"], "student", inputs, **options)
        return
    with pytest.raises(UsageError, match=message) as caught:
        execute(STAGES["distill"], "student", inputs, **options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("answers", {"shift_px": 1}, "shift_px needs views"),
        ("answers", {"views": 8}, "views is 8, but without shift_px an image has one: leave views out"),
        ("train", {"model": MLP, "epochs": 1, "flip": True, "views": 8}, "an image has two, as it is and mirrored"),
        ("train", {"model": MLP, "epochs": 1, "shift_px": 1, "views": 0}, "greater than or equal to 1"),
    ],
)
def test_views_that_make_no_sense_are_refused(stage, options, message):
    with pytest.raises(ValidationError, match=message):
        STAGES[stage].config.model_validate(options)


def test_several_teachers_answer_in_order(execute, teacher):
    other = execute(STAGES["train"], "other", model={"name": "mlp", "widths": [4]}, epochs=1)
    answers = execute(STAGES["answers"], "answers", AnswersInputs(teacher=(teacher, other)), flip=True)
    logits = np.load(answers.path / "logits.npy")
    assert logits.shape[:2] == (2, 2)
    assert not np.array_equal(logits[0], logits[1])

    inputs = DistillInputs(teacher=(teacher, other), answers=answers)
    student = execute(STAGES["distill"], "student", inputs, model=MLP, epochs=1)
    assert "2 teachers" in student.manifest.notes[0]

    with pytest.raises(ModelError, match="the answers are those of another teacher"):
        execute(STAGES["distill"], "mixed", dataclasses.replace(inputs, teacher=(other, teacher)), model=MLP, epochs=1)
