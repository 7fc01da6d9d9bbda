from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import ModelError
from compress.models.pretrained import load_weights


def make_net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes))


def load_error(path: Path, net: nn.Module | None = None) -> ModelError:
    net = net or make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(net, path)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert (caught.value.exit_code, caught.value.where) == (5, str(path))
    return caught.value


def save(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_arrive(tmp_path: Path, name: str) -> None:
    saved, net = make_net().state_dict(), make_net()
    load_weights(net, save(tmp_path / name, saved))
    assert all(torch.equal(saved[key], value) for key, value in net.state_dict().items())


def test_a_training_checkpoint_with_its_state_dict(tmp_path: Path) -> None:
    saved, net = make_net().state_dict(), make_net()
    load_weights(net, save(tmp_path / "w.pt", {"epoch": 3, "state_dict": saved}))
    assert torch.equal(net.state_dict()["0.weight"], saved["0.weight"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    saved, net = make_net().half().state_dict(), make_net()
    load_weights(net, save(tmp_path / "w.safetensors", saved))
    assert net[0].weight.dtype == torch.float32
    assert torch.equal(net.state_dict()["0.weight"], saved["0.weight"].float())


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = dict(make_net().state_dict())
    del state["0.bias"], state["1.running_var"]
    state["extra.weight"] = torch.zeros(1)
    error = load_error(save(tmp_path / "w.safetensors", state))
    assert error.message == "weight keys differ: missing 0.bias, 1.running_var; unexpected extra.weight"


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    error = load_error(save(tmp_path / "w.safetensors", {f"k{i:02d}": torch.zeros(1) for i in range(25)}))
    assert error.message.endswith("k18, k19, and 5 more")


def test_a_wrapped_network_is_recognised(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in make_net().state_dict().items()}
    assert "every key starts with 'module.'" in load_error(save(tmp_path / "w.pt", state)).hint


def test_shapes_and_types_that_differ_are_listed(tmp_path: Path) -> None:
    state = dict(make_net().state_dict())
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    state["1.num_batches_tracked"] = torch.tensor(1.0)
    assert load_error(save(tmp_path / "w.safetensors", state)).message == (
        "weight shapes or types differ: 0.weight: got float32 (2, 1, 5, 5), expected float32 (2, 1, 3, 3);"
        " 1.num_batches_tracked: got float32 (), expected int64 ()"
    )


def test_another_class_count_is_said_in_so_many_words(tmp_path: Path) -> None:
    error = load_error(save(tmp_path / "w.safetensors", make_net(10).state_dict()))
    assert error.message.startswith(
        "class count differs: the weights are for 10 classes, the data has 3 (3.weight: got"
    )


def test_other_rows_elsewhere_are_no_class_count(tmp_path: Path) -> None:
    state = dict(make_net().state_dict())
    state["0.bias"] = torch.zeros(5)
    assert load_error(save(tmp_path / "w.pt", state)).message.startswith("weight shapes or types differ: 0.bias")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    state = dict(make_net().state_dict())
    state["3.weight"] = state["3.weight"].clone()
    state["3.weight"][0, 0] = value
    assert load_error(save(tmp_path / "w.pt", state)).message == "NaN or infinite weights in 3.weight"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zipped = save(tmp_path / "a.pt", {"weight": Harmful()})
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful()))
    for path in (zipped, tmp_path / "b.pt"):
        error = load_error(path)
        assert error.message.startswith(f"cannot read weights only from {path.name}: ")
        assert "safetensors" in error.hint
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict: got list"),
        ({"epoch": 3, "loss": 0.1}, "got epoch, loss, expected names with tensors"),
        ({}, "got an empty mapping"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    assert message in load_error(save(tmp_path / "w.pt", content)).message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"", "damaged weights file"),
        ("w.safetensors", b"\xff" * 64, "damaged weights file"),
        ("w.pt", b"", "cannot read weights only"),
        ("w.pt", b"PK\x03\x04 and no more", "cannot read weights only"),
        ("w.pt", b"garbage", "cannot read weights only"),
        ("w.onnx", b"x", "expected a file named .safetensors or .pt or .pth"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in load_error(tmp_path / name).message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, make_net().state_dict())
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        assert load_error(path).exit_code == 5


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        error = load_error(tmp_path / name)
        assert error.exit_code == 5
        assert error.message == f"no weights file {tmp_path / name}"
        assert error.hint == "the path is relative to the recipe's folder"
