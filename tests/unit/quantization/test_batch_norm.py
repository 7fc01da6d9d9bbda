from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.quantization.batch_norm import (
    BATCH_NORM,
    drop_batch_counters,
    fold_batch_norm,
    scale_weights_by_batch_norm,
)


class Everything(nn.Module):
    """Batch-norm after convolutions with and without bias, depthwise, with padding by name, linear, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, eps=1e-3)
        self.conv = nn.Conv2d(3, 8, 3, bias=True)
        self.conv_norm = nn.BatchNorm2d(8, eps=1e-2, momentum=0.3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False, padding="same")
        self.depthwise_norm = nn.BatchNorm2d(8, affine=False)
        self.linear, self.linear_norm = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv_norm(self.conv(self.first(x))))
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        return self.linear_norm(self.linear(x.mean((2, 3))))


def images(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def network() -> Everything:
    torch.manual_seed(0)
    module = Everything()
    for norm in (module.first, module.conv_norm, module.linear_norm):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
    module.train()
    for _ in range(3):
        module(images())
    return module


def exported(module: nn.Module) -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=1)
    graph = torch.export.export(module, (images(),), dynamic_shapes=({0: batch},)).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    drop_batch_counters(graph)
    return graph


def batch_norms(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.target is BATCH_NORM]


def to_evaluation(graph: fx.GraphModule) -> None:
    for node in batch_norms(graph):
        node.update_arg(5, False)
    graph.recompile()


def test_scaling_changes_neither_output_nor_gradient_nor_statistics():
    module, reference = network(), network()
    graph = exported(module)
    scale_weights_by_batch_norm(graph)
    got, expected = graph(images()), reference(images())
    assert torch.allclose(got, expected, atol=1e-4)
    got.square().sum().backward()
    expected.square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in graph.named_parameters():
        got, expected = parameter.grad, theirs[name].grad
        assert got is not None
        assert expected is not None
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3), name
    for name, value in reference.named_buffers():
        if "num_batches" not in name:
            assert torch.allclose(graph.get_buffer(name), value, atol=1e-5), name


def test_folding_gives_the_network_in_evaluation_mode():
    module = network()
    graph = exported(module)
    scale_weights_by_batch_norm(graph)
    to_evaluation(graph)
    fold_batch_norm(graph)
    assert not batch_norms(graph)
    assert [node.args[0].op for node in graph.graph.nodes if node.op == "call_module"] == ["placeholder"]  # `first`
    with torch.no_grad():
        assert torch.allclose(graph(images(7)), module.eval()(images(7)), atol=1e-4)


def test_a_batch_norm_weight_of_zero_is_harmless():
    module = network()
    with torch.no_grad():
        module.conv_norm.weight[2] = 0
    graph = exported(module)
    scale_weights_by_batch_norm(graph)
    assert graph(images()).isfinite().all()
    to_evaluation(graph)
    fold_batch_norm(graph)
    with torch.no_grad():
        assert torch.allclose(graph(images()), module.eval()(images()), atol=1e-4)


def test_one_weight_under_two_batch_norms():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.one, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.conv(self.one(self.conv(x))))

    torch.manual_seed(0)
    module = Shared().train()
    module(images())
    graph = exported(module)
    scale_weights_by_batch_norm(graph)
    to_evaluation(graph)
    fold_batch_norm(graph)
    with torch.no_grad():
        assert torch.allclose(graph(images()), module.eval()(images()), atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_linear_is_folded_only_where_channels_are_in_axis_one(rank: int):
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).train()
    example = torch.rand(5, 4) if rank == 2 else torch.rand(5, 6, 4)
    graph = torch.export.export(module, (example,)).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    drop_batch_counters(graph)
    scale_weights_by_batch_norm(graph)
    divisions = [node for node in graph.graph.nodes if node.target is torch.ops.aten.div.Tensor]
    assert len(divisions) == (1 if rank == 2 else 0)
    to_evaluation(graph)
    fold_batch_norm(graph)
    with torch.no_grad():
        assert torch.allclose(graph(example), module.eval()(example), atol=1e-5)


def test_evaluations_are_not_counted():
    graph = exported(network())
    before = graph.get_buffer("conv_norm.num_batches_tracked").item()
    graph(images())
    assert graph.get_buffer("conv_norm.num_batches_tracked").item() == before
