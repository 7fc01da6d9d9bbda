"""Trained and calibrated graphs have their Q/DQ at the same places: node by node, for each kind of network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.models.catalogue import build_model
from compress.models.normalized import Normalized
from compress.onnx_graph.export import export_onnx
from compress.onnx_graph.graph import GraphIndex
from compress.onnx_graph.inspect import kernels
from compress.onnx_graph.qdq import insert_qdq, scales_of, strip_qdq
from compress.quantization.quantize import quantize_onnx
from compress.quantization.quantizer import FakeQuantNetwork, calibrate_ranges, convert_qat, prepare_qat
from compress.quantization.settings import QuantizeSettings

EXAMPLE = torch.zeros(2, 1, 8, 8)
MINMAX = QuantizeSettings(method="minmax")
NETWORKS = {
    "residual": {"name": "resnet", "widths": [4, 8]},
    "preactivation": {"name": "resnet", "stem_width": 4, "widths": [6, 8], "depths": [2, 1], "preactivation": True},
    "depthwise": {"name": "mobilenet", "widths": [4, 6], "depths": [2, 1], "expansion": 2, "head_width": 8},
    "transformer": {"name": "vit", "width": 8, "depth": 2, "heads": 2, "patch": 2},
    "gelu": {"name": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4, "activation": "gelu"},
}


def images(count: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = build_model(NETWORKS[name], image_shape=(1, 8, 8), classes=10, base=Path())
    module = Normalized(net, [0.4], [0.3]).train()
    with torch.no_grad():
        for seed in range(3):
            module(images(32, seed))  # gives batch-norm its statistics
    return module.eval()


def prepared(module: nn.Module) -> FakeQuantNetwork:
    network = prepare_qat(module, EXAMPLE)
    calibrate_ranges(network, [images()])
    return network


def places(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Node and position of every input that comes from a DequantizeLinear."""
    index = GraphIndex(model)
    return {
        (node.name, position)
        for node in model.graph.node
        for position, name in enumerate(node.input)
        if node.op_type != "QuantizeLinear" and index.producer(name, "DequantizeLinear")
    }


def calibrated(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantize_onnx(model, [images().numpy()], MINMAX).signed


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_calibration_quantize_the_same_inputs(name: str, tmp_path: Path) -> None:
    module = built(name)
    plain = export_onnx(module, EXAMPLE, tmp_path / "float.onnx")
    trained = export_onnx(convert_qat(prepared(module)), EXAMPLE, tmp_path / "qat.onnx")
    assert strip_qdq(trained).graph.node == plain.graph.node
    assert places(trained) == places(calibrated(plain))
    assert places(insert_qdq(plain, scales_of(trained))) == places(trained)
    # and nothing is left for calibration to add
    assert places(calibrated(trained)) == places(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_the_file_for_cpus_is_an_integer_kernel(name: str, tmp_path: Path) -> None:
    plain = export_onnx(built(name), EXAMPLE, tmp_path / "float.onnx")
    result = quantize_onnx(plain, [images().numpy()], MINMAX)
    onnx.save(result.unsigned, tmp_path / "model.ort.onnx")
    used = kernels(tmp_path / "model.ort.onnx")
    layers = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in plain.graph.node)
    assert (used["integer_layers"], used["float_layers"]) == (layers, [])
    assert result.notes == []


class Branches(nn.Module):
    """A max pool, a resize and a concatenation, none of which the trained ranges know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        small = F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)
        return self.head(torch.relu(self.mix(torch.cat([x, small], 1))).mean((2, 3)))


@pytest.mark.slow
def test_what_carries_codes_is_completed_after_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    plain = export_onnx(module, EXAMPLE, tmp_path / "float.onnx")
    trained = export_onnx(convert_qat(prepared(module)), EXAMPLE, tmp_path / "qat.onnx")
    whole = quantize_onnx(trained, [images().numpy()], MINMAX)
    assert places(whole.signed) == places(calibrated(plain))
    assert whole.calibrated == 0  # they take the scale that was trained


@pytest.mark.parametrize("name", ["residual", "depthwise", "transformer"])
def test_each_trains_with_ranges_frozen_on_schedule(name: str) -> None:
    network = prepared(built(name)).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    labels = torch.arange(32) % 10
    ranges = [one.activation_post_process for one in network.fake_quants() if not one.is_per_channel]
    kept, losses = [], []
    for step in range(6):
        if step == 3:
            network.freeze(ranges=True, batch_norm=True)
            kept = [float(one.max_val) for one in ranges]
        loss = F.cross_entropy(network(images(32, step % 2)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert [float(one.max_val) for one in ranges] == kept
    assert all(parameter.isfinite().all() for parameter in network.parameters())
