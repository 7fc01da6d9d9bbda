from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.onnx_graph.export import export_onnx
from compress.onnx_graph.placement import placements
from compress.quantization.attention import write_out_attention
from compress.quantization.quantizer import calibrate_ranges, convert_qat, prepare_qat

IMAGE = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """Fused attention of two heads over the rows of an image."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        self.register_buffer("mask", mask)
        self.options = options

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.layer(image[:, 0]).unflatten(2, (2, 4)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(x, x, x, self.mask, **self.options)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def exported(module: nn.Module) -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (IMAGE,), dynamic_shapes=({0: batch},)).module(check_guards=False)


def targets(graph: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target).removeprefix("aten.").partition(".")[0] for node in graph.graph.nodes)


VISIBLE = torch.ones(8, 8, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "module",
    [
        Fused(),
        Fused(scale=0.3),
        Fused(is_causal=True),
        Fused(VISIBLE),
        Fused(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))),
    ],
    ids=["plain", "scale", "causal", "bool mask", "float mask"],
)
def test_the_products_compute_what_the_fused_operator_does(module: nn.Module) -> None:
    torch.manual_seed(0)
    graph = exported(module.eval())
    assert write_out_attention(graph) == 1
    found = targets(graph)
    assert (found["matmul"], found["softmax"], found["scaled_dot_product_attention"]) == (2, 1, 0)
    for count in (1, 4):
        with torch.no_grad():
            assert torch.allclose(graph(IMAGE[:count]), module(IMAGE[:count]), atol=1e-5)


def test_dropout_becomes_an_operator_that_evaluation_switches_off() -> None:
    network = prepare_qat(Fused(dropout_p=0.5), IMAGE)
    calibrate_ranges(network, [IMAGE])
    with torch.no_grad():
        assert torch.equal(network(IMAGE), network(IMAGE))
        network.train()
        assert not torch.equal(network(IMAGE), network(IMAGE))


def test_grouped_queries_stay_fused() -> None:
    class Grouped(Fused):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.layer(image[:, 0]).unflatten(2, (2, 4)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)
            return self.head(mixed.transpose(1, 2).flatten(2).mean(1))

    assert write_out_attention(exported(Grouped().eval())) == 0


def test_graphs_without_attention_are_left_alone() -> None:
    graph = exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    before = graph.code
    assert write_out_attention(graph) == 0
    assert graph.code == before


@pytest.mark.slow
def test_both_products_of_fused_attention_are_quantized(tmp_path: Path) -> None:
    """In the file as in training: four operands, none of them a weight."""
    module = Fused().eval()
    plain = export_onnx(module, IMAGE, tmp_path / "float.onnx")
    network = prepare_qat(module, IMAGE)
    calibrate_ranges(network, [IMAGE])
    trained = export_onnx(convert_qat(network), IMAGE, tmp_path / "qat.onnx")
    for graph, done in ((plain, False), (trained, True)):
        inputs = [spot for spot in placements(graph) if spot.node.op_type == "MatMul" and spot.axis is None]
        attention = [spot for spot in inputs if sum(one.node.name == spot.node.name for one in inputs) == 2]
        assert len(attention) == 4
        assert all(spot.quantized == done for spot in attention)
