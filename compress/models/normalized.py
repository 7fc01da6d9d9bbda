"""Normalisation as a layer, so that deployed graphs take pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Normalized(nn.Module):
    """Standardises each channel, then runs a network; mean and deviation travel with the weights."""

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap a network.

        Args:
            net: takes (batch, channels, height, width).
            mean: one number per channel, of images in [0, 1].
            std: one number per channel, > 0, of images in [0, 1].

        Raises:
            ValueError: the lengths differ, or a deviation is not above 0.
        """
        super().__init__()
        if len(mean) != len(std) or not mean or not all(s > 0 for s in std):
            raise ValueError(f"expected as many means as deviations > 0, got {list(mean)} and {list(std)}")
        self.net = net
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("inverse_std", 1 / torch.tensor(list(std), dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images, (batch, channels, height, width) in [0, 1], to logits, (batch, classes)."""
        return self.net((image - self.mean) * self.inverse_std)
