"""What people get wrong about teachers and labels, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

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
    "layers that no adapter fits": (
        "  teacher: {stage: train, model: {name: resnet, widths: [8]}, epochs: 1}\n"
        f"  student: {{stage: distill, teacher: teacher, {MLP}, losses: [{{loss: hints, taps: {{'1': features}}}}]}}\n",
        2,
        r"(?s)1: features.*step student",
    ),
    "infinite weight": (
        TEACHER + f"  student: {{stage: distill, teacher: teacher, {MLP}, losses: [{{loss: kd, weight: .inf}}]}}\n",
        2,
        r"finite number",
    ),
    "images shifted out of sight": (
        TEACHER + "  answers: {stage: answers, teacher: teacher, shift_px: 8, views: 2}\n",
        2,
        r"(?s)steps\.answers\.shift_px is 8, expected less than the images' 8 pixels.*--set steps\.answers\.shift_px=1",
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


def write_images(folder, count, rng):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{index}.png")


@pytest.mark.slow
def test_a_teacher_of_other_classes(cli, tmp_path, assert_refused):
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "train/c", "test/a", "test/b", "test/c"):
        write_images(tmp_path / "images" / name, 6, rng)
    (tmp_path / "first.yaml").write_text(HEAD + TEACHER)
    other = HEAD.replace("dataset: digits", "dataset: imagefolder, path: images")
    student = f"  student: {{stage: distill, teacher: teacher, {MLP}}}\n"
    (tmp_path / "second.yaml").write_text(other + "  teacher: {stage: tagged, tag: wrong-0001}\n" + student)
    first = cli("run", "first.yaml", "--store", "store", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = cli("run", "second.yaml", "--store", "store", cwd=tmp_path)
    assert_refused(done, 5, r"(?s)the network answers for 10 classes, the data has 3: a, b, c.*step 'teacher'")


@pytest.mark.slow
def test_unlabelled_images_are_learned_from_where_somebody_teaches(cli, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write_images(tmp_path / "images" / name, 8, rng)
    write_images(tmp_path / "images" / "unlabelled", 5, rng)
    mine = "model: {name: mlp, widths: [8]}, epochs: 2, threads: 1"
    text = HEAD.replace("dataset: digits", "dataset: imagefolder, path: images") + (
        f"  teacher: {{stage: train, {mine}}}\n"
        "  answers: {stage: answers, teacher: teacher, threads: 1}\n"
        f"  stored: {{stage: distill, teacher: teacher, answers: answers, {mine}, kd_weight: 1, labels: none}}\n"
        f"  live: {{stage: distill, teacher: teacher, {mine}, kd_weight: 1, labels: none}}\n"
    )
    (tmp_path / "half.yaml").write_text(text)

    def steps(command):
        done = cli(command, "half.yaml", "--store", "store", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {step["name"]: step for step in json.loads(done.stdout)["steps"]}

    made = steps("run")
    manifests = {name: json.loads((Path(step["path"]) / "manifest.json").read_text()) for name, step in made.items()}
    found = {name: {one["name"]: one for one in manifest["metrics"]} for name, manifest in manifests.items()}
    images = found["answers"]["answers"]["n"]
    assert 5 < images < 16 + 5, "validation images are not among them, unlabelled ones are"
    assert manifests["stored"]["notes"][0] == f"labels of 0 of {images} training images were read"
    assert found["stored"]["teacher_hit_rate"]["value"] == 1

    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "images" / "unlabelled" / "0.png")
    statuses = {name: step["status"] for name, step in steps("plan").items()}
    assert statuses.pop("teacher") == "hit", "nobody taught it"
    assert "hit" not in statuses.values()
