"""A network of our own: nothing in it knows about `compress`."""

from __future__ import annotations

import torch
from torch import nn


class TinyNet(nn.Module):
    """Three convolutions and a linear layer; its own preprocessing comes first."""

    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        """Create the layers; `width` is the channels of the first convolution."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images in [0, 1], (batch, in_channels, h, w), to logits, (batch, classes)."""
        centred = image * 2 - 1
        return self.classifier(torch.flatten(self.pool(self.features(centred)), 1))


def build(classes: int, in_channels: int, width: int = 8) -> nn.Module:
    """Return the network; `classes` and `in_channels` are filled in from the data."""
    return TinyNet(classes, in_channels, width)
