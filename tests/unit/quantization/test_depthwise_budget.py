"""A depthwise network that calibration alone cannot serve in int8, on real digits, under a budget of half a point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset
from compress.quantization.precision import choose_precision
from compress.quantization.quantize import quantize_onnx
from compress.quantization.search import Goal
from compress.training.runtime import cpu_threads

EPOCHS = 12
BUDGET_PP = 0.5
# A file that answers 2 % of 450 images differently, as often better as worse: 1.96 x sqrt(0.02 / 450).
SAMPLING_ERROR_PP = 1.3


def train(images, labels):
    """The weights of the network of `chain`, trained in a few seconds."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 1, 3, 3), (32, 1, 3, 3), (32, 32, 1, 1), (10, 32)]
    parameters = []
    for shape in shapes:
        spread = (2 / np.prod(shape[1:])) ** 0.5
        parameters += [torch.randn(shape, generator=generator) * spread, torch.zeros(shape[0])]
    for parameter in parameters:
        parameter.requires_grad_()
    w0, b0, w1, b1, w2, b2, w3, b3 = parameters
    optimizer = torch.optim.Adam(parameters, 4e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x), generator=generator).split(32):
            z = F.relu(F.conv2d(x[chosen], w0, b0, padding=1))
            z = F.relu(F.conv2d(z, w1, b1, padding=1, groups=32))
            z = F.relu(F.conv2d(z, w2, b2)).mean((2, 3))
            optimizer.zero_grad()
            F.cross_entropy(F.linear(z, w3, b3), y[chosen]).backward()
            optimizer.step()
    names = [f"{kind}{number}" for number in range(4) for kind in "wb"]
    return {name: p.detach().numpy() for name, p in zip(names, parameters, strict=True)}


def top1(model, images, labels, *, optimized=True):
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 100 * (np.asarray(session.run(None, {"image": images})[0]).argmax(1) == labels).mean()


@pytest.mark.slow
def test_the_budget_is_met_with_most_work_in_int8(chain, tmp_path: Path):
    data = load_dataset(DataConfig(dataset="digits"), tmp_path)
    pixels = {
        split.name: (split.images / np.float32(255)).astype(np.float32)
        for split in (data.train, data.validation, data.test)
    }
    with cpu_threads(1):  # so small a network is slower on two
        weights = train(pixels["train"], data.train.labels)
    model = chain(300, weights)
    images, labels = pixels["validation"], data.validation.labels
    expected = top1(model, images, labels)
    assert expected > 80, "a network that has learnt something"

    full = quantize_onnx(model, iter([pixels["train"][:256]]))
    assert expected - top1(full.unsigned, images, labels) > 1, "int8 throughout loses more than a point"
    choice = choose_precision(model, full, Goal(budget_pp=BUDGET_PP), lambda: np.array_split(images, 4), labels)

    assert expected - top1(choice.quantized.unsigned, images, labels) <= BUDGET_PP
    assert expected - top1(choice.quantized.signed, images, labels, optimized=False) <= BUDGET_PP
    assert choice.int8_macs >= 0.7
    assert "c1" in choice.float_layers
    assert all(layer.why for layer in choice.layers)

    images, labels = pixels["test"], data.test.labels  # the layers were chosen on other images
    assert len(labels) == 450
    expected, allowed = top1(model, images, labels), BUDGET_PP + SAMPLING_ERROR_PP
    assert expected > 80
    assert expected - top1(choice.quantized.unsigned, images, labels) <= allowed
    assert expected - top1(choice.quantized.signed, images, labels, optimized=False) <= allowed
    assert expected - top1(full.unsigned, images, labels) > 5 * allowed, "int8 throughout fails here too"
