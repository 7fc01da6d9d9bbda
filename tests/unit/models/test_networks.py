from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn
from torch.nn import functional as F

from compress.errors import ModelError
from compress.models.catalogue import build_model, count_parameters
from compress.models.networks import BasicBlock, PreactivationBlock, SelfAttention

NETWORKS: list[dict[str, Any]] = [
    {"name": "resnet", "widths": [4, 8, 8]},
    {"name": "resnet", "widths": [4, 8], "depths": [0, 2], "stem_stride": 2},
    {"name": "resnet", "stem_width": 4, "widths": [6, 8], "depths": [2, 1], "preactivation": True},
    {"name": "mobilenet", "widths": [4, 6], "depths": [2, 1], "expansion": 2},
    {"name": "mobilenet", "widths": [4], "expansion": 1, "head_width": 8},
    {"name": "mlp", "widths": [16]},
    {"name": "vit", "width": 8, "depth": 2, "heads": 2, "activation": "gelu"},
]


def build(model: dict[str, Any], shape: tuple[int, int, int], classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return build_model(model, image_shape=shape, classes=classes, base=Path())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28)], ids=str)
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: model["name"])
def test_they_export_with_a_dynamic_batch(model: dict[str, Any], shape: tuple[int, int, int]) -> None:
    net = build(model, shape)
    assert net.training
    net.eval()
    batch = torch.export.Dim("batch", min=1, max=512)
    exported = torch.export.export(net, (torch.rand(4, *shape),), dynamic_shapes=({0: batch},)).module()
    for samples in (1, 7):
        images = torch.rand(samples, *shape)
        logits = net(images)
        assert logits.shape == (samples, 5)
        assert torch.allclose(exported(images), logits, atol=1e-5)


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: model["name"])
def test_every_weight_gets_a_gradient(model: dict[str, Any]) -> None:
    net = build(model, (1, 8, 8))
    net(torch.rand(8, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: model["name"])
def test_the_same_seed_gives_the_same_weights(model: dict[str, Any]) -> None:
    first, second = build(model, (1, 8, 8)).state_dict(), build(model, (1, 8, 8)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_parameters_by_hand() -> None:
    # 64 * 16 + 16 and 16 * 5 + 5
    assert count_parameters(build({"name": "mlp", "widths": [16]}, (1, 8, 8))) == 1125
    # stem 9 * 4 + 8; block 2 * (9 * 16 + 8); classifier 4 * 5 + 5
    assert count_parameters(build({"name": "resnet", "widths": [4]}, (1, 8, 8))) == 44 + 304 + 25
    # stem 36 + 8; expand 4 * 8 + 16, depthwise 9 * 8 + 16, project 8 * 4 + 8; head 4 * 8 + 16; classifier 8 * 5 + 5
    mobile = {"name": "mobilenet", "widths": [4], "expansion": 2, "head_width": 8}
    assert count_parameters(build(mobile, (1, 8, 8))) == 44 + 48 + 88 + 40 + 48 + 45
    # stem 9 * 4; block: norm 8, 9 * 24 + 12, 9 * 36, shortcut 4 * 6; norm 12; classifier 6 * 5 + 5
    wide = {"name": "resnet", "stem_width": 4, "widths": [6], "preactivation": True}
    assert count_parameters(build(wide, (1, 8, 8))) == 36 + 8 + 228 + 324 + 24 + 12 + 35


@pytest.mark.parametrize(
    ("recipe", "teacher", "student"),
    [("resnet56_20", 0.86, 0.28), ("resnet32x4_8x4", 7.43, 1.23), ("wrn40_2_16_2", 2.26, 0.70)],
)
def test_networks_of_the_cifar_recipes_have_the_published_sizes(
    root: Path, recipe: str, teacher: float, student: float
) -> None:
    steps = YAML(typ="safe", pure=True).load(root / "pipelines" / f"cifar100_{recipe}.yaml")["steps"]
    for step, millions in (("teacher", teacher), ("student", student)):
        net = build(steps[step]["model"], (3, 32, 32), classes=100)
        assert round(count_parameters(net) / 1e6, 2) == millions


def test_strides_and_depths() -> None:
    net = build({"name": "resnet", "widths": [4, 8, 16], "depths": [0, 1, 2], "stem_stride": 2}, (1, 32, 32))
    sizes = []
    for layer in net.features:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    net(torch.rand(2, 1, 32, 32))
    assert sizes == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (16, 4, 4)]


def test_a_stem_of_its_own_width_leaves_the_strides_alone() -> None:
    net = build({"name": "resnet", "stem_width": 8, "widths": [16, 32]}, (3, 32, 32))
    x, sizes = torch.rand(2, 3, 32, 32), []
    for layer in net.features:  # type: ignore[union-attr]
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(8, 32, 32), (16, 32, 32), (32, 16, 16)]


def test_blocks_without_a_projection_pass_their_input_on() -> None:
    net = build({"name": "resnet", "widths": [4]}, (1, 8, 8)).eval()
    block = next(module for module in net.modules() if isinstance(module, BasicBlock))
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(images), images)


def test_a_preactivation_block_adds_to_what_it_was_given() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    same, projected = PreactivationBlock(4, 4, 1).eval(), PreactivationBlock(4, 6, 2).eval()
    for block in (same, projected):
        nn.init.zeros_(block.second.weight)
        nn.init.uniform_(block.norm.weight, -1, 1)
    assert torch.equal(same(images), images)  # negative values too: nothing is activated behind the sum
    assert projected.shortcut is not None
    expected = F.conv2d(F.relu(projected.norm(images)), projected.shortcut.weight, stride=2)
    assert torch.equal(projected(images), expected)


def test_parameters_of_a_transformer_by_hand() -> None:
    # patches 16 * 8 + 8, positions 4 * 8; block: norms 4 * 8, attention 4 * (64 + 8), mlp 8 * 16 + 16 + 16 * 8 + 8;
    # norm 2 * 8; classifier 8 * 5 + 5
    vit = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "expansion": 2}
    assert count_parameters(build(vit, (1, 8, 8))) == 136 + 32 + (32 + 288 + 280) + 16 + 45


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    attention, reference = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    layers = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        assert reference.in_proj_weight is not None
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        reference.out_proj.load_state_dict(attention.output.state_dict())
        x = torch.rand(3, 5, 8)
        assert torch.allclose(attention(x), reference(x, x, x)[0], atol=1e-6)


def test_patches_must_tile_the_image() -> None:
    with pytest.raises(ModelError, match="patches of 3 x 3 pixels do not tile an image of 8 x 8") as caught:
        build({"name": "vit", "patch": 3}, (1, 8, 8))
    assert caught.value.exit_code == 5
