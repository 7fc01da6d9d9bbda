"""Event files are read back byte by byte, as the format of TensorFlow's records says; a profile changes nothing."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.data.split import Split
from compress.training import traces
from compress.training.loop import TrainSettings, fit
from compress.training.objectives import hard_objective
from compress.training.traces import event_file, profiled, scalars

Network = Callable[..., nn.Module]

RECORD = {
    "epoch": 2,
    "learning_rate": 0.5,
    "loss": 1.25,
    "parts": {"soft": 0.75, "hard": 0.5},
    "validation_top1": 0.875,
}
VALUES = {"learning_rate": 0.5, "loss": 1.25, "parts/soft": 0.75, "parts/hard": 0.5, "validation_top1": 0.875}


def crc32c(data: bytes) -> int:
    """Bit by bit, polynomial 0x1EDC6F41 reflected (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """Length, masked checksum of the length, data, masked checksum of the data; all of it, to the last byte."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        header = content[at : at + 8]
        (length,) = struct.unpack("<Q", header)
        data = content[at + 12 : at + 12 + length]
        sums = struct.unpack("<I", content[at + 8 : at + 12]), struct.unpack("<I", content[at + 12 + length :][:4])
        assert sums == ((masked(header),), (masked(data),))
        yield data
        at += 16 + length
    assert at == len(content)


def events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars of every event but the first, which names the version of the format."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    (path,) = folder.glob("events.out.tfevents.*")
    first, *rest = map(Event.FromString, records(path))
    assert first.file_version == "brain.Event:2"
    return [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in rest]


def test_the_checksum_of_this_test_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_every_number_of_an_epoch_has_a_name() -> None:
    assert scalars(RECORD) == VALUES


def test_an_epoch_can_be_read_while_training_goes_on(tmp_path: Path) -> None:
    with event_file(tmp_path / "run" / "step") as write:
        write(RECORD)
        assert events(tmp_path / "run" / "step") == [(2, VALUES)]
        write(RECORD | {"epoch": 3, "loss": 1.0})
    assert events(tmp_path / "run" / "step") == [(2, VALUES), (3, VALUES | {"loss": 1.0})]


def test_what_was_written_before_a_failure_stays(tmp_path: Path) -> None:
    def train(write: Any) -> None:
        write(RECORD)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), event_file(tmp_path) as write:
        train(write)
    assert events(tmp_path) == [(2, VALUES)]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), event_file(tmp_path / "file" / "step"):
        pass
    with pytest.raises(NotADirectoryError), profiled(tmp_path / "file" / "step", "cpu"):
        pass


def test_without_the_library_nothing_is_written_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    traces._say_missing.cache_clear()
    with caplog.at_level(logging.INFO, logger="compress"):
        for step in ("teacher", "student"):
            with event_file(tmp_path / step) as write:
                write(RECORD)
    assert list(tmp_path.iterdir()) == []
    (message,) = caplog.messages
    assert message.startswith("optional: with tensorboardX installed, training leaves event files")
    assert message.endswith("pip install tensorboardX")


def test_a_profile_holds_five_steps_and_changes_neither_weights_nor_history(
    network: Network, settings: TrainSettings, train_split: Split, validation_split: Split, tmp_path: Path
) -> None:
    def train(on_step: Any = None) -> Any:
        result = fit(network(), hard_objective(), train_split, validation_split, settings, on_step=on_step)
        return result.history, result.module.state_dict()

    with profiled(tmp_path, "cpu") as on_step:
        history, weights = train(on_step)
    plain_history, plain = train()
    assert history == plain_history
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    trace = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    names = [event["name"] for event in trace if event.get("ph") == "X" and event.get("cat") == "user_annotation"]
    assert {name for name in names if name.startswith("ProfilerStep#")} == {f"ProfilerStep#{k}" for k in range(7, 12)}
    table = (tmp_path / "operators.txt").read_text()
    assert "aten::convolution_backward" in table
    assert "Self CPU" in table


@pytest.mark.parametrize("steps", [1, 6, 7])
def test_a_training_too_short_for_a_profile_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    with caplog.at_level(logging.WARNING, logger="compress"), profiled(tmp_path, "cpu") as on_step:
        for _ in range(steps):
            on_step()
    (message,) = caplog.messages
    assert message.endswith(f"training took {steps} steps, expected more than 7 before one is recorded")
    assert list(tmp_path.iterdir()) == []
