"""A task that a tiny network learns in a second: which quadrant of an 8 x 8 image is bright."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.data.split import Split
from compress.models.normalized import Normalized
from compress.training.loop import TrainSettings


class TinyNet(nn.Module):
    """A residual block and a classifier."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8 * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.norm(self.conv(x)) + x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


def quadrants(name: str, samples: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    labels = np.arange(samples, dtype=np.int64) % 4
    images = random.integers(0, 120, size=(samples, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(int(label), 2)
        image[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 60
    return Split(name, images, labels, tuple(f"{name}/{i}" for i in range(samples)))


@pytest.fixture(scope="session")
def train_split() -> Split:
    return quadrants("train", 256, seed=1)


@pytest.fixture(scope="session")
def validation_split() -> Split:
    return quadrants("validation", 100, seed=2)


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    def build(seed: int = 0, classes: int = 4) -> nn.Module:
        torch.manual_seed(seed)
        return Normalized(TinyNet(classes), [0.3], [0.2])

    return build


@pytest.fixture
def settings() -> TrainSettings:
    return TrainSettings(epochs=3, batch_size=32, learning_rate=0.05, threads=1, seed=3)
