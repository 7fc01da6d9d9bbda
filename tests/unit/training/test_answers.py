"""Stored answers: what is in the file, that it is never read whole, and what is refused."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.loader import Augmentation, batches
from compress.data.split import Split
from compress.errors import ModelError
from compress.training.answers import AnswersDescription, images_digest, load_answers, write_answers
from compress.training.loop import TrainSettings
from compress.training.teacher import StoredLogits, TeacherLogits

Network = Callable[..., nn.Module]
VIEWS = Augmentation(flip=True, shift_px=1, views=3, view_seed=5)


def description_of(train: Split, teachers: int = 1, augment: Augmentation = VIEWS) -> AnswersDescription:
    names = tuple(f"teacher {number}" for number in range(teachers))
    return AnswersDescription(names, ("a", "b", "c", "d"), images_digest(train), len(train), augment)


@pytest.fixture
def stored(tmp_path: Path, network: Network, train_split: Split) -> Path:
    seconds = write_answers(
        tmp_path, [network(0), network(1)], train_split, description_of(train_split, 2), batch_size=60
    )
    assert 0 < seconds < 1
    return tmp_path


def test_a_stored_answer_has_the_bytes_that_the_teacher_gives_for_that_view(
    stored: Path, network: Network, settings: TrainSettings, train_split: Split
):
    found = load_answers(stored)
    assert found.description == description_of(train_split, 2)
    assert found.logits.shape == (2, 3, 256, 4)
    live = TeacherLogits([network(0), network(1)], settings, train_split, live_because="it is compared")
    for view in range(3):
        for batch in batches(train_split, 60, augment=VIEWS, view=view):
            expected = live(batch).numpy().astype(np.float16)
            assert found.logits[:, view, batch.indices.numpy()].tobytes() == expected.tobytes()


def test_training_batches_get_what_a_live_teacher_says_up_to_float16(
    stored: Path, network: Network, settings: TrainSettings, train_split: Split
):
    looked_up = StoredLogits(load_answers(stored).logits, 0.0)
    live = TeacherLogits([network(0), network(1)], settings, train_split, live_because="it is compared")
    for epoch in range(4):
        for batch in batches(train_split, 32, seed=9, epoch=epoch, augment=VIEWS, shuffle=True, drop_last=True):
            exact = live(batch)
            # half a unit in the last of float16's 11 digits; 1e-5: another batch sums in another order
            assert torch.all((looked_up(batch) - exact).abs() <= exact.abs() * 2**-11 + 1e-5)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, network: Network, train_split: Split):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_answers(tmp_path / name, [network()], train_split, description_of(train_split), batch_size=100)
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    assert sorted(files[0]) == ["answers.json", "logits.npy"]


def test_labels_are_no_part_of_what_answers_are_for(train_split: Split):
    relabelled = replace(train_split, labels=np.zeros_like(train_split.labels))
    shuffled = train_split.take(np.arange(256)[::-1].copy())
    assert images_digest(relabelled) == images_digest(train_split) != images_digest(shuffled)


class Wide(nn.Module):
    """Many classes, so that the file is large beside a batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).repeat(1, 100)  # 6,400 logits


def test_neither_writing_nor_looking_up_holds_all_logits(tmp_path: Path, train_split: Split):
    names = tuple(map(str, range(6_400)))
    description = replace(description_of(train_split), classes=names)
    tracemalloc.start()
    write_answers(tmp_path, [Wide()], train_split, description, batch_size=4)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    teacher = StoredLogits(load_answers(tmp_path).logits, 0.0)
    batch = next(iter(batches(train_split, 4, augment=VIEWS, shuffle=True)))
    rows = teacher(batch)
    looked_up = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    whole = (tmp_path / "logits.npy").stat().st_size
    assert whole > 3 * 256 * 6_400 * 2
    assert rows.shape == (1, 4, 6_400)
    assert max(written, looked_up) < whole / 3  # names of classes are most of it


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_a_file_larger_than_memory_is_mapped(stored: Path):
    classes, samples = 1000, 2**27
    document = json.loads((stored / "answers.json").read_text())
    document |= {"samples": samples, "classes": list(map(str, range(classes)))}
    (stored / "answers.json").write_text(json.dumps(document))
    header = {"descr": "<f2", "fortran_order": False, "shape": (2, 3, samples, classes)}
    with (stored / "logits.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * 2 * 3 * samples * classes)  # 1.6 TB, none of it written
    before = resident_bytes()

    logits = load_answers(stored).logits
    row = logits[:, np.array([2, 0]), np.array([samples - 1, 7])]

    assert row.shape == (2, 2, classes)
    assert resident_bytes() - before < 20_000_000


class Says(nn.Module):
    """Zeros, and one value for the brightest image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 4)
        logits[images.mean(dim=(1, 2, 3)).argmax(), 2] = self.value
        return logits


@pytest.mark.parametrize(
    ("value", "shown"), [(65505.0, "65505"), (-1e6, "-1e+06"), (float("inf"), "inf"), (float("nan"), "nan")]
)
def test_a_logit_that_float16_does_not_hold_is_refused(tmp_path: Path, train_split: Split, value: float, shown: str):
    message = rf"teacher 1 answers with a logit of {re.escape(shown)}; float16 holds -65,504 to 65,504"
    with pytest.raises(ModelError, match=message) as caught:
        write_answers(tmp_path, [Says(value)], train_split, description_of(train_split), batch_size=256)
    assert caught.value.exit_code == 5
    assert re.fullmatch(r"image train/\d+, view 0", caught.value.where)


def test_the_largest_of_float16_is_stored(tmp_path: Path, train_split: Split):
    write_answers(tmp_path, [Says(-65504.0)], train_split, description_of(train_split), batch_size=256)
    assert load_answers(tmp_path).logits.min() == -65504.0


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, network: Network, train_split: Split):
    with pytest.raises(ModelError, match="teacher 1 answers for 5 classes, the data has 4"):
        write_answers(tmp_path, [network(0, 5)], train_split, description_of(train_split), batch_size=256)


@pytest.mark.parametrize("teachers", [0, 2])
def test_a_description_of_other_teachers_is_a_bug(tmp_path: Path, network: Network, train_split: Split, teachers: int):
    with pytest.raises(ValueError, match="1 teachers and 256 images are not what"):
        write_answers(tmp_path, [network()], train_split, description_of(train_split, teachers), batch_size=256)
    assert not list(tmp_path.iterdir())


def test_endless_views_are_a_bug(tmp_path: Path, network: Network, train_split: Split):
    endless = description_of(train_split, augment=Augmentation(shift_px=1))
    with pytest.raises(ValueError, match="are not what"):
        write_answers(tmp_path, [network()], train_split, endless, batch_size=256)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "malformed: another format than 1"),
        (lambda d: d.pop("images"), "malformed: .*images"),
        (lambda d: d.update(extra=1), "malformed: .*extra"),
        (lambda d: d.update(augmentation={"zoom": 2}), "malformed: .*zoom"),
        (lambda d: d.update(samples=255), r"are float16 \(2, 3, 256, 4\), expected float16 \(2, 3, 255, 4\)"),
    ],
)
def test_a_wrong_description_is_refused(stored: Path, change: Callable[[dict[str, Any]], object], message: str):
    edit(stored / "answers.json", change)
    with pytest.raises(ModelError, match=message) as caught:
        load_answers(stored)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["answers.json", "logits.npy"])
@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00v\x00{", b"PK\x03\x04"])
def test_a_missing_or_damaged_file_is_named(stored: Path, name: str, content: bytes | None):
    (stored / name).unlink()
    if content is not None:
        (stored / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read|malformed") as caught:
        load_answers(stored)
    assert name in caught.value.where
