"""Train the teacher of this example in plain PyTorch and write `teacher.safetensors`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_net import build
from torch.nn import functional as F

HERE = Path(__file__).parent
EPOCHS = 150


def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of a split, float32 in [0, 1], and their labels in the order of the class names."""
    paths = sorted((HERE / "images" / split).glob("*/*.png"))
    names = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[:, None]
    labels = [names.index(path.parent.name) for path in paths]
    return torch.from_numpy(pixels).float() / 255, torch.tensor(labels)


def main(path: Path) -> None:
    """Fit full batches, shifted at random, a few seconds, and print the test accuracy."""
    torch.manual_seed(0)
    net = build(classes=4, in_channels=1, width=16)
    images, labels = read("train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        shifted = torch.roll(images, (down, right), (2, 3))
        loss = F.cross_entropy(net(shifted), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    images, labels = read("test")
    correct = int((net.eval()(images).argmax(1) == labels).sum())
    print(f"{correct} of {len(labels)} test images right")
    save_file(net.state_dict(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "teacher.safetensors")
