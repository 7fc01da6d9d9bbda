"""What the stages refuse, each on real artifacts."""

from __future__ import annotations

import json

import pytest

from compress.errors import ModelError
from compress.stages import STAGES
from compress.stages.benchmark import BenchmarkInputs
from compress.stages.calibrate import CalibrateInputs
from compress.stages.distill import DistillInputs
from compress.stages.export import ExportInputs
from compress.stages.qat import QatInputs

MLP = {"name": "mlp", "widths": [8]}


@pytest.fixture
def teacher(execute):
    return execute(STAGES["train"], "teacher", model=MLP, epochs=1)


def test_a_teacher_of_other_classes_is_refused(execute, teacher):
    path = teacher.path / "checkpoint.json"
    document = json.loads(path.read_text())
    document["classes"] = list(reversed(document["classes"]))
    path.write_text(json.dumps(document))

    with pytest.raises(ModelError, match="the checkpoint answers for classes in the order 9, 8") as caught:
        execute(STAGES["distill"], "student", DistillInputs(teacher=(teacher,)), model=MLP, epochs=1)

    assert caught.value.exit_code == 5
    assert "step 'teacher'" in caught.value.where


def test_an_initial_student_of_another_network_is_refused(execute, teacher):
    inputs = DistillInputs(teacher=(teacher,), student=teacher)

    with pytest.raises(ModelError, match="step 'teacher' cannot be the initial student") as caught:
        execute(STAGES["distill"], "student", inputs, model={"name": "mlp", "widths": [4]}, epochs=1)

    assert caught.value.exit_code == 5
    assert execute(STAGES["distill"], "same", inputs, model=MLP, epochs=1).manifest.metrics


@pytest.mark.slow
def test_qat_of_a_qat_checkpoint_is_refused(execute, teacher):
    qat = execute(STAGES["qat"], "qat", QatInputs(student=teacher), epochs=1)

    with pytest.raises(ModelError, match="step 'qat' has fake-quant already") as caught:
        execute(STAGES["qat"], "again", QatInputs(student=qat), epochs=1)

    assert caught.value.exit_code == 5


@pytest.mark.slow
def test_after_qat_nothing_is_calibrated_and_no_calibration_set_is_needed(execute, teacher):
    qat = execute(STAGES["qat"], "qat", QatInputs(student=teacher), epochs=1)
    onnx = execute(STAGES["export"], "onnx", ExportInputs(model=qat))

    int8 = execute(STAGES["calibrate"], "int8", CalibrateInputs(model=onnx), samples=3)

    assert int8.manifest.notes[0].startswith("0 tensors calibrated, ")
    assert int8.manifest.quantization.method == "qat"
    assert int8.manifest.quantization.calibration_samples == 0


@pytest.mark.slow
def test_a_float_twin_must_be_float_and_of_the_same_checkpoint(execute, teacher, make):
    from compress.artifacts.manifest import Kind

    student = make("student", Kind.CHECKPOINT)
    other = make("other", Kind.CHECKPOINT)
    float_twin = make("float", Kind.ONNX_MODEL, model=student)
    stranger = make("stranger", Kind.ONNX_MODEL, model=other)
    onnx = make("onnx", Kind.ONNX_MODEL, quantized=True, model=student)
    int8 = make("int8", Kind.QUANTIZED_ONNX, quantized=True, model=float_twin)
    ancestors = {one.step: one for one in (student, other, float_twin, stranger, onnx)}

    def run(twin):
        inputs = BenchmarkInputs(reference=student, variants=(int8,), ancestors=ancestors, float_twin=twin)
        execute(STAGES["benchmark"], f"report-{twin.step}", inputs)

    with pytest.raises(ModelError, match="the float twin 'onnx' is quantized"):
        run(onnx)
    with pytest.raises(ModelError, match="the float twin 'stranger' is made from 'other', and 'int8' is not"):
        run(stranger)
