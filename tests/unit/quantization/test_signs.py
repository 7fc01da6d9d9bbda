"""The sign rule on exported networks; its twin on ONNX graphs is tested beside that one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.quantization.signs import within_half_range

IMAGE = torch.zeros(2, 1, 8, 8)


def half_range(function) -> bool:
    """Whether the result of `function`, the last operator of a network, stays within half the range."""

    class Network(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return function(image)

    graph = torch.export.export(Network(), (IMAGE,)).module(check_guards=False).graph
    *_, last = (node for node in graph.nodes if node.op == "call_function")
    return last in within_half_range(graph)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.sigmoid,
        lambda x: torch.softmax(x, 1),
        lambda x: torch.clamp(x, min=0),
        lambda x: torch.flatten(functional.adaptive_avg_pool2d(torch.relu(x), 1), 1),
        lambda x: torch.cat([torch.relu(x), torch.sigmoid(x)], 1),
        lambda x: torch.relu(x) + torch.relu(-x),
        lambda x: functional.max_pool2d(torch.relu(x), 2),
        lambda x: functional.interpolate(torch.relu(x), scale_factor=2.0),
        lambda x: torch.cat([torch.relu(x), functional.relu6(x)], 1),
        lambda x: torch.relu(x).unflatten(3, (2, 4)),
    ],
)
def test_never_negative_and_unbounded(function):
    assert half_range(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x: functional.relu6(x),
        lambda x: functional.hardtanh(x, 0, 3),
        lambda x: torch.clamp(x, 0, 1),
        lambda x: torch.clamp(x, max=1),
        lambda x: torch.clamp(x, min=-1),
        functional.silu,
        lambda x: functional.max_pool2d(functional.relu6(x), 2),
        lambda x: functional.interpolate(functional.relu6(x), scale_factor=2.0),
        lambda x: torch.cat([functional.relu6(x), functional.relu6(-x)], 1),
        lambda x: torch.relu(x) + x,
        lambda x: torch.relu(x) - torch.relu(-x),
        lambda x: torch.cat([torch.relu(x), x], 1),
    ],
)
def test_signed_or_bounded(function):
    assert not half_range(function)
