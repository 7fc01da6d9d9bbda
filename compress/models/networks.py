"""Built-in networks for small images; every one exports with a dynamic batch.

Operations are out of place and each activation follows one convolution, as quantizers want them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import ModelError
from compress.models.config import MlpConfig, MobileNetConfig, ResNetConfig, VitConfig


class ConvNorm(nn.Sequential):
    """Convolution without bias ("same" padding), batch normalisation, and an activation if one is given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        """Create the layers for `inputs` to `outputs` channels."""
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([activation] if activation is not None else []))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, projected by 1x1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Create a block from `inputs` to `outputs` channels; stride 2 halves the image."""
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride=stride, activation=nn.ReLU())
        self.second = ConvNorm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """A basic block whose norms and activations come before its convolutions (He et al., 2016, arXiv:1603.05027).

    A shortcut that must be projected starts behind the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Create a block from `inputs` to `outputs` channels; stride 2 halves the image."""
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.first = ConvNorm(inputs, outputs, 3, stride=stride, activation=nn.ReLU())
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm(x))
        return self.second(self.first(y)) + (x if self.shortcut is None else self.shortcut(y))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Create a block from `inputs` to `outputs` channels; stride 2 halves the image."""
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [ConvNorm(inputs, hidden, 1, activation=nn.ReLU6())] if expansion > 1 else []
        layers.append(ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6()))
        layers.append(ConvNorm(hidden, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = self.layers(x)
        return x + y if self.residual else y


class Pooled(nn.Module):
    """Convolutional features, their mean over the image, and a linear classifier."""

    def __init__(self, features: nn.Sequential, width: int, classes: int) -> None:
        """Create the classifier for `width` feature channels."""
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to logits, (batch, classes)."""
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


def _strides(depths: Sequence[int]) -> list[list[int]]:
    """Stride of every block, by stage: stages after the first halve the image in their first block."""
    return [[2 if stage and not block else 1 for block in range(depth)] for stage, depth in enumerate(depths)]


def build_resnet(config: ResNetConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a residual network; see `ResNetConfig`."""
    width = config.stem_width or config.widths[0]
    if config.preactivation:
        block: type[nn.Module] = PreactivationBlock
        stem: nn.Module = nn.Conv2d(image_shape[0], width, 3, stride=config.stem_stride, padding=1, bias=False)
    else:
        block, stem = BasicBlock, ConvNorm(image_shape[0], width, 3, stride=config.stem_stride, activation=nn.ReLU())
    layers: list[nn.Module] = [stem]
    for outputs, strides in zip(config.widths, _strides(config.depths), strict=True):
        for stride in strides:
            layers.append(block(width, outputs, stride))
            width = outputs
    if config.preactivation:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return Pooled(nn.Sequential(*layers), width, classes)


def build_mobilenet(config: MobileNetConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network of inverted residuals; see `MobileNetConfig`."""
    width = config.widths[0]
    layers: list[nn.Module] = [ConvNorm(image_shape[0], width, 3, stride=config.stem_stride, activation=nn.ReLU6())]
    for outputs, strides in zip(config.widths, _strides(config.depths), strict=True):
        for stride in strides:
            layers.append(InvertedResidual(width, outputs, stride, config.expansion))
            width = outputs
    head = config.head_width or 4 * width
    layers.append(ConvNorm(width, head, 1, activation=nn.ReLU6()))
    return Pooled(nn.Sequential(*layers), head, classes)


def build_mlp(config: MlpConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build fully connected layers; see `MlpConfig`."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(image_shape)
    for width in config.widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762), written as the products that it is.

    Queries, keys and values have a layer each, so that each gets an int8 scale of its own.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Create attention of `heads` heads over tokens of `width` channels."""
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.softmax = nn.Softmax(3)  # a module, so that distillation can tap the attention weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, tokens, width) to the same shape."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        weights = self.softmax(torch.matmul(query, key.transpose(2, 3)) * self.scale)
        return self.output(torch.matmul(weights, value).transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, tokens, width) to (batch, heads, tokens, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class EncoderBlock(nn.Module):
    """Attention, then a two-layer MLP, each on normalised tokens and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module) -> None:
        """Create a block over tokens of `width` channels with `hidden` units in its MLP."""
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.second_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = x + self.attention(self.first_norm(x))
        return x + self.mlp(self.second_norm(x))


class VisionTransformer(nn.Module):
    """Patches as tokens with learned positions, encoder blocks, the mean over tokens, a linear classifier."""

    def __init__(self, config: VitConfig, channels: int, tokens: int, classes: int) -> None:
        """Create the network for images of `channels` channels that make `tokens` patches."""
        super().__init__()
        width = config.width
        activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
        blocks = [
            EncoderBlock(width, config.heads, config.expansion * width, activations[config.activation]())
            for _ in range(config.depth)
        ]
        self.patches = nn.Conv2d(channels, width, config.patch, stride=config.patch)
        self.positions = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to logits, (batch, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


def build_vit(config: VitConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a vision transformer; see `VitConfig`.

    Raises:
        ModelError: patches do not tile the image.
    """
    channels, height, width = image_shape
    if height % config.patch or width % config.patch:
        raise ModelError(
            f"patches of {config.patch} x {config.patch} pixels do not tile an image of {height} x {width}",
            where=config.name,
            hint="choose a model.patch that divides both sides",
        )
    return VisionTransformer(config, channels, (height // config.patch) * (width // config.patch), classes)
