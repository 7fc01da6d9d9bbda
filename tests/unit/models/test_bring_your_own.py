from __future__ import annotations

from pathlib import Path
from subprocess import run
from sys import executable

import pytest
import torch

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset, split_digests
from compress.models.catalogue import build_model, source_files
from compress.models.pretrained import load_weights

MODEL = {"name": "tiny_net:build", "kwargs": {"width": 16}}


@pytest.fixture
def example(root: Path) -> Path:
    return root / "examples" / "bring_your_own"


def test_the_teacher_knows_the_images(example: Path) -> None:
    data = load_dataset(DataConfig(dataset="imagefolder", path="images"), example)
    assert (len(data.train), len(data.validation), len(data.test)) == (162, 18, 60)
    net = build_model(MODEL, image_shape=data.image_shape, classes=len(data.classes), base=example)
    load_weights(net, example / "teacher.safetensors")
    logits = net.eval()(torch.from_numpy(data.test.images) / 255)
    correct = int((logits.argmax(1) == torch.from_numpy(data.test.labels)).sum())
    assert correct >= 54
    assert source_files(MODEL, example) == [example / "tiny_net.py"]


def test_the_images_can_be_made_again(example: Path, tmp_path: Path) -> None:
    run([executable, example / "make_images.py", tmp_path / "images"], check=True)
    config = DataConfig(dataset="imagefolder", path="images")
    made, kept = load_dataset(config, tmp_path), load_dataset(config, example)
    assert made.train.ids == kept.train.ids
    assert made.train.digests() == kept.train.digests()
    assert made.test.digests() == kept.test.digests()
    assert len(split_digests(config, example)) == 3
