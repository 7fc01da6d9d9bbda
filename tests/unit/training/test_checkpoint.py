from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress.data.split import Split
from compress.errors import ModelError
from compress.models.catalogue import build_model
from compress.models.normalized import Normalized
from compress.quantization.quantizer import FakeQuantNetwork, calibrate_ranges, prepare_qat, scheme_description
from compress.quantization.scheme import QUANTIZER_VERSION, Scheme
from compress.training.checkpoint import CheckpointDescription, load_checkpoint, save_checkpoint

MODEL = {"name": "resnet", "widths": [4, 8]}
FLOAT = CheckpointDescription(
    model=MODEL,
    image_shape=(1, 8, 8),
    classes=("a", "b", "c", "d"),
    mean=(0.3,),
    std=(0.2,),
    sources={"net.py": "0" * 64},
)
QAT = replace(FLOAT, scheme=scheme_description())
FILES = ["checkpoint.json", "history.json", "probe.safetensors", "weights.safetensors"]
HERE = Path()


def images_of(split: Split) -> torch.Tensor:
    return torch.from_numpy(split.images).float() / 255


def float_network(split: Split) -> nn.Module:
    torch.manual_seed(0)
    module = Normalized(build_model(MODEL, image_shape=(1, 8, 8), classes=4, base=HERE), [0.3], [0.2])
    module.train()
    for _ in range(10):
        module(images_of(split))  # gives batch-norm its statistics
    return module.eval()


def qat_network(split: Split, scheme: Scheme | None = None) -> FakeQuantNetwork:
    prepared = prepare_qat(float_network(split), torch.zeros(2, 1, 8, 8), scheme)
    calibrate_ranges(prepared, [images_of(split)])
    return prepared


@pytest.fixture
def float_folder(tmp_path: Path, train_split: Split) -> Path:
    save_checkpoint(tmp_path, float_network(train_split), FLOAT, train_split.images[:8], [{"epoch": 1, "loss": 0.5}])
    return tmp_path


@pytest.fixture(scope="session")
def saved_qat(tmp_path_factory: pytest.TempPathFactory, train_split: Split) -> Path:
    folder = tmp_path_factory.mktemp("qat")
    save_checkpoint(folder, qat_network(train_split), QAT, train_split.images[:8])
    return folder


@pytest.fixture
def qat_folder(saved_qat: Path, tmp_path: Path) -> Path:
    for file in saved_qat.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder: Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(folder, HERE)
    assert caught.value.exit_code == 5
    return caught.value


def test_a_float_network_comes_back_exactly(float_folder: Path, train_split: Split):
    loaded = load_checkpoint(float_folder, HERE)
    assert loaded.description == FLOAT
    assert not loaded.module.training
    with torch.no_grad():
        assert torch.equal(loaded.module(images_of(train_split)), float_network(train_split)(images_of(train_split)))
    assert sorted(file.name for file in float_folder.iterdir()) == FILES
    assert json.loads((float_folder / "history.json").read_text()) == [{"epoch": 1, "loss": 0.5}]


def test_a_fake_quant_network_comes_back_exactly(saved_qat: Path, train_split: Split):
    loaded = load_checkpoint(saved_qat, HERE)
    assert isinstance(loaded.module, FakeQuantNetwork)
    assert loaded.description == QAT
    with torch.no_grad():
        assert torch.equal(loaded.module(images_of(train_split)), qat_network(train_split)(images_of(train_split)))


def test_the_weight_range_comes_back(tmp_path: Path, train_split: Split):
    scheme = Scheme(weight_bits=7)
    description = replace(FLOAT, scheme=scheme_description(scheme))
    save_checkpoint(tmp_path, qat_network(train_split, scheme), description, train_split.images[:8])
    module = load_checkpoint(tmp_path, HERE).module
    assert isinstance(module, FakeQuantNetwork)
    assert module.scheme == scheme
    assert 63 in {fake_quant.quant_max for fake_quant in module.fake_quants()}


def test_two_folders_hold_the_same_bytes(float_folder: Path, train_split: Split, tmp_path_factory: Any):
    other = tmp_path_factory.mktemp("other")
    module = float_network(train_split).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        save_checkpoint(other, module, FLOAT, train_split.images[:8], [{"loss": 0.5, "epoch": 1}])
    finally:
        torch.set_num_threads(before)
    assert all((other / name).read_bytes() == (float_folder / name).read_bytes() for name in FILES)


def test_loading_leaves_the_random_generator_alone(float_folder: Path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_checkpoint(float_folder, HERE)
    assert torch.equal(torch.rand(3), expected)


def test_nan_weights_are_not_saved(tmp_path: Path, train_split: Split):
    module = float_network(train_split)
    next(module.parameters()).data[0] = np.nan
    with pytest.raises(ModelError, match=r"NaN or infinite values in net\.") as caught:
        save_checkpoint(tmp_path, module, FLOAT, train_split.images[:8])
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_module_and_scheme_belong_together(tmp_path: Path, train_split: Split):
    with pytest.raises(ValueError, match="Normalized does not go with scheme"):
        save_checkpoint(tmp_path, float_network(train_split), QAT, train_split.images[:8])


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors", "probe.safetensors"])
def test_a_missing_file_is_named(float_folder: Path, name: str):
    (float_folder / name).unlink()
    assert name in refused(float_folder, "missing|no weights file").where


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors", "probe.safetensors"])
def test_a_damaged_file_is_named(float_folder: Path, name: str):
    (float_folder / name).write_bytes((float_folder / name).read_bytes()[:40])
    assert name in refused(float_folder, "is not JSON|damaged").where


def test_other_fields_are_refused(float_folder: Path):
    edit_json(float_folder / "checkpoint.json", lambda d: d.update(extra=1) or d.pop("mean"))
    assert refused(float_folder, "missing or unexpected fields: extra, mean").exit_code == 5


def test_another_format_is_refused(float_folder: Path):
    edit_json(float_folder / "checkpoint.json", lambda d: d.update(format=2))
    assert refused(float_folder, "another format than 1").exit_code == 5


def test_contradictions_are_refused(float_folder: Path):
    edit_json(float_folder / "checkpoint.json", lambda d: d.update(mean=[0.1, 0.2, 0.3]))
    assert (
        refused(
            float_folder, r"contradicts itself: image shape \(1, 8, 8\), 3 means, 1 deviations, 4 classes"
        ).exit_code
        == 5
    )


@pytest.mark.parametrize("change", [{"image_shape": []}, {"classes": 3}, {"mean": None}, {"scheme": {"name": "x"}}])
def test_malformed_values_are_refused(float_folder: Path, change: dict[str, Any]):
    edit_json(float_folder / "checkpoint.json", lambda d: d.update(change))
    assert refused(float_folder, "malformed|contradicts itself").exit_code == 5


def test_an_unknown_scheme_is_refused(qat_folder: Path):
    edit_json(qat_folder / "checkpoint.json", lambda d: d["scheme"].update(name="int3"))
    assert refused(qat_folder, "unknown quantization scheme 'int3', expected 'int8-symmetric'").exit_code == 5


def test_missing_and_unexpected_weights_are_listed(float_folder: Path):
    key = "net.classifier.bias"
    edit_tensors(float_folder / "weights.safetensors", lambda t: t.update(extra=t.pop(sorted(t)[0])))
    error = refused(float_folder, "missing .*unexpected extra")
    assert key not in error.message
    assert "written with torch" in error.hint


def test_other_shapes_are_listed(float_folder: Path):
    edit_json(float_folder / "checkpoint.json", lambda d: d["model"].update(widths=[4, 16]))
    assert refused(float_folder, "weight shapes or types differ").exit_code == 5


def test_nan_weights_are_refused(float_folder: Path):
    edit_tensors(float_folder / "weights.safetensors", lambda t: t["mean"].fill_(float("nan")))
    assert refused(float_folder, "NaN or infinite weights in mean").exit_code == 5


def test_other_answers_to_the_probe_are_refused(float_folder: Path):
    edit_tensors(float_folder / "probe.safetensors", lambda t: t["logits"].add_(0.01))
    error = refused(float_folder, r"answers the probe differently: largest difference 0\.01")
    assert "written with torch" in error.hint
    assert "here are torch" in error.hint


def test_a_last_bit_in_the_probe_is_forgiven(float_folder: Path):
    edit_tensors(float_folder / "probe.safetensors", lambda t: t["logits"].mul_(1 + 1e-6))
    assert load_checkpoint(float_folder, HERE).description.scheme is None


def test_a_fake_quant_probe_names_all_versions(qat_folder: Path):
    edit_json(qat_folder / "checkpoint.json", lambda d: d["versions"].update(torchao="0.1.2"))
    edit_tensors(qat_folder / "probe.safetensors", lambda t: t["logits"].mul_(1.05))
    error = refused(qat_folder, r"fake-quant network answers the probe differently: 26\.\d dB, expected at least 38 dB")
    assert f"torchao 0.1.2, quantizer {QUANTIZER_VERSION}; here are torch" in error.hint


def test_a_fake_quant_scale_that_is_wrong_is_noticed(qat_folder: Path):
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors["network.activation_post_process_0.scale"] /= 2

    edit_tensors(qat_folder / "weights.safetensors", halve)
    assert refused(qat_folder, "fake-quant network answers the probe differently").exit_code == 5


def test_a_fake_quant_rounding_is_forgiven(qat_folder: Path, train_split: Split):
    edit_tensors(
        qat_folder / "weights.safetensors",
        lambda t: [v.mul_(1 + 1e-6) for k, v in t.items() if v.is_floating_point() and k.endswith("weight")],
    )
    assert load_checkpoint(qat_folder, HERE).description.scheme is not None


def test_fake_quant_weights_need_the_scheme(qat_folder: Path):
    edit_json(qat_folder / "checkpoint.json", lambda d: d.update(scheme=None))
    assert refused(qat_folder, "weight keys differ").exit_code == 5
