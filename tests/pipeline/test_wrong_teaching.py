"""What people get wrong about teachers and labels, through the command line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HEAD = """
name: wrong
data: {dataset: digits}
steps:
"""
MLP = "model: {name: mlp, widths: [8]}, epochs: 1"
TEACHER = f"  teacher: {{stage: train, {MLP}}}\n"

CASES = {
    "no teacher": (
        f"  student: {{stage: distill, {MLP}}}\n",
        2,
        r"teacher takes Checkpoint or OnnxModel, and no earlier step makes one",
    ),
    "no labels for a hard loss": (
        TEACHER + f"  student: {{stage: distill, teacher: teacher, {MLP}, labels: none}}\n",
        2,
        r"labels is none, but the hard loss, which reads them, has the weight 0\.1; expected kd_weight: 1",
    ),
    "fewer labels than classes": (
        f"  few: {{stage: train, {MLP}, labels: 9}}\n",
        5,
        r"(?s)steps\.few\.labels is 9, expected at least one for each of 10 classes.*--set steps\.few\.labels=10",
    ),
    "more labels than images": (
        f"  few: {{stage: train, {MLP}, labels: 100000}}\n",
        5,
        r"steps\.few\.labels is 100000, but train has \d+ samples",
    ),
    "unknown tag": (
        "  teacher: {stage: tagged, tag: main}\n",
        2,
        r"(?s)there is no tag 'main'.*step teacher.*compress tag main RUN",
    ),
    "no such file": (
        "  teacher: {stage: bring, onnx: nowhere.onnx}\n",
        5,
        r"(?s)a source file cannot be read.*nowhere\.onnx",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_refused(name, wrong, assert_refused):
    steps, code, message = CASES[name]
    assert_refused(wrong(HEAD + steps), code, message)


@pytest.mark.slow
def test_an_onnx_file_that_is_no_classifier(wrong, tmp_path, assert_refused):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["map"])],
        "segmentation",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 1, 8, 8))],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ("n", 10, 8, 8))],
        [numpy_helper.from_array(np.zeros((10, 1, 1, 1), np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "t.onnx")
    assert_refused(
        wrong(HEAD + "  teacher: {stage: bring, onnx: t.onnx}\n"),
        5,
        r"output map is float32, \(n, 10, 8, 8\); expected logits of these data, \(batch, 10\)",
    )


@pytest.mark.slow
def test_an_empty_unlabelled_folder(wrong, tmp_path, assert_refused):
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = np.random.default_rng(100 * number + 10 * label + index).integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "images" / "unlabelled").mkdir()
    text = HEAD.replace("dataset: digits", "dataset: imagefolder, path: images") + TEACHER
    assert_refused(wrong(text), 5, r"(?s)empty folder unlabelled: expected images, without class folders.*add images")
