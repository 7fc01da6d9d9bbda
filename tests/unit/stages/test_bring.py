"""An ONNX file that teaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifacts.manifest import Artifact
from compress.errors import ModelError, UsageError
from compress.stages import STAGES
from compress.stages.answers import AnswersInputs
from compress.stages.distill import DistillInputs
from compress.stages.export import ExportInputs
from compress.stages.qat import QatInputs

MLP = {"name": "mlp", "widths": [8]}
Execute = Callable[..., Artifact]


@pytest.fixture
def teacher(execute: Execute) -> Artifact:
    return execute(STAGES["train"], "teacher", model=MLP, epochs=3)


@pytest.fixture
def file(execute: Execute, teacher: Artifact, tmp_path: Path) -> Path:
    """The teacher as a file from elsewhere."""
    exported = execute(STAGES["export"], "exported", ExportInputs(model=teacher))  # type: ignore[arg-type]
    path = tmp_path / "teacher.onnx"
    path.write_bytes((exported.path / "model.onnx").read_bytes())
    return path


def classifier(path: Path, *, classes: int = 10, softmax: bool = False) -> Path:
    weight = np.random.default_rng(0).normal(size=(64, classes)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["y"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["y"], ["p"]))
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 1, 8, 8))],
        [helper.make_tensor_value_info("p" if softmax else "y", TensorProto.FLOAT, ("n", classes))],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_a_file_teaches_what_its_checkpoint_teaches(execute: Execute, teacher: Artifact, file: Path) -> None:
    brought = execute(STAGES["bring"], "brought", onnx=file.name)
    assert brought.manifest.metrics[0].value == teacher.manifest.metrics[0].value
    assert [tensor.name for tensor in brought.manifest.tensors] == ["image", "logits"]
    how = {"model": MLP, "epochs": 2, "kd_weight": 1.0}
    students = [
        execute(STAGES["distill"], f"student-{one.step}", DistillInputs(teacher=(one,)), **how)  # type: ignore[arg-type]
        for one in (teacher, brought)
    ]
    first, second = (_weights(student) for student in students)
    assert all(np.allclose(first[name], second[name], atol=1e-3) for name in first)


def _weights(artifact: Artifact) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(artifact.path / "weights.safetensors")


def test_a_file_and_a_checkpoint_teach_together(execute: Execute, teacher: Artifact, file: Path) -> None:
    brought = execute(STAGES["bring"], "brought", onnx=file.name)
    inputs = DistillInputs(teacher=(teacher, brought))  # type: ignore[arg-type]
    student = execute(STAGES["distill"], "student", inputs, model=MLP, epochs=1, combine="confidence")
    assert any("2 teachers" in note for note in student.manifest.notes)


def test_a_file_answers_beforehand(execute: Execute, teacher: Artifact, file: Path) -> None:
    brought = execute(STAGES["bring"], "brought", onnx=file.name)
    both = AnswersInputs(teacher=(teacher, brought))  # type: ignore[arg-type]
    answers = execute(STAGES["answers"], "answers", both)
    logits = np.load(answers.path / "logits.npy")
    assert np.allclose(logits[0], logits[1], atol=0.02), "the same network twice, float16"
    inputs = DistillInputs(teacher=(teacher, brought), answers=answers)  # type: ignore[arg-type]
    student = execute(STAGES["distill"], "student", inputs, model=MLP, epochs=1)
    assert "looked up in stored answers (2 teachers)" in student.manifest.notes[0]


def test_an_order_of_classes_that_nobody_told_is_noted(execute: Execute, file: Path) -> None:
    silent = execute(STAGES["bring"], "silent", onnx=file.name)
    told = execute(STAGES["bring"], "told", onnx=file.name, classes=[str(digit) for digit in range(10)])
    assert any("was not checked" in note for note in silent.manifest.notes)
    assert not any("was not checked" in note for note in told.manifest.notes)


@pytest.mark.slow
def test_a_file_teaches_qat(execute: Execute, teacher: Artifact, file: Path) -> None:
    brought = execute(STAGES["bring"], "brought", onnx=file.name)
    inputs = QatInputs(student=teacher, teacher=brought)  # type: ignore[arg-type]
    assert execute(STAGES["qat"], "qat", inputs, epochs=1).manifest.metrics


def test_a_file_of_other_classes_teaches_nobody(execute: Execute, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"output y is float32, \(n, 7\); expected logits of these data") as caught:
        execute(STAGES["bring"], "seven", onnx=classifier(tmp_path / "seven.onnx", classes=7).name)
    assert caught.value.exit_code == 5
    brought = execute(STAGES["bring"], "brought", onnx=file.name)
    image, logits = brought.manifest.tensors
    fewer = logits.model_copy(update={"shape": ("batch", 7)})
    manifest = brought.manifest.model_copy(update={"tensors": (image, fewer)})
    other = type(brought)(step="other", path=brought.path, manifest=manifest)
    with pytest.raises(ModelError, match="the network answers for 7 classes, the data has 10") as refused:
        execute(STAGES["distill"], "student", DistillInputs(teacher=(other,)), model=MLP, epochs=1)  # type: ignore[arg-type]
    assert refused.value.exit_code == 5
    assert "step 'other'" in refused.value.where


def test_probabilities_are_no_logits(execute: Execute, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="answers with probabilities") as caught:
        execute(STAGES["bring"], "soft", onnx=classifier(tmp_path / "soft.onnx", softmax=True).name)
    assert caught.value.hint == "export it without its last Softmax"
    assert caught.value.where.endswith("soft.onnx")


def test_no_onnx_at_all(execute: Execute, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="no ONNX model"):
        execute(STAGES["bring"], "text", onnx="text.onnx")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mean": [0.1, 0.2], "std": [1, 1]}, "mean and std have 2 and 2 numbers; the images have 1 channels"),
        ({"classes": list("9876543210")}, "answers for the classes 9, 8, 7"),
    ],
)
def test_what_the_recipe_says_of_the_file_is_checked(
    execute: Execute, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises((ModelError, UsageError), match=message):
        execute(STAGES["bring"], "wrong", onnx=classifier(tmp_path / "one.onnx").name, **config)


def test_what_cannot_be_quantized_can_teach(execute: Execute, tmp_path: Path) -> None:
    path = classifier(tmp_path / "branching.onnx")
    model = onnx.load(path)
    branch = [
        helper.make_graph(
            [helper.make_node("Identity", ["flat"], [f"out{i}"])],
            f"branch{i}",
            [],
            [helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, ("n", 64))],
        )
        for i in range(2)
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    chosen = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch[0], else_branch=branch[1])
    model.graph.node.insert(1, chosen)
    model.graph.node[2].input[0] = "chosen"
    onnx.save(model, path)
    brought = execute(STAGES["bring"], "branching", onnx=path.name)
    assert brought.manifest.notes[0].startswith("kept as it is, for teaching and measuring only: ")
