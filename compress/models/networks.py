"""Built-in networks for small images; every one exports with a dynamic batch.

Operations are out of place and each activation follows one convolution, as quantizers want them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from compress.models.config import MlpConfig, MobileNetConfig, ResNetConfig


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
    width = config.widths[0]
    layers: list[nn.Module] = [ConvNorm(image_shape[0], width, 3, stride=config.stem_stride, activation=nn.ReLU())]
    for outputs, strides in zip(config.widths, _strides(config.depths), strict=True):
        for stride in strides:
            layers.append(BasicBlock(width, outputs, stride))
            width = outputs
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
