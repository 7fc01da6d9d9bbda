"""The training loop that one writes by hand for one network, and how much memory it and ours take.

    python benchmarks/handwritten.py ours|by_hand SAMPLES

trains for two epochs on so many images of Fashion-MNIST and prints the largest resident memory of the process while it
trained. `benchmarks/teaching.py` starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from compress.data.config import DataConfig
from compress.data.datasets import Dataset, load_dataset
from compress.models.catalogue import build_model
from compress.models.normalized import Normalized

EPOCHS = 2
BATCH_SIZE = 256
LEARNING_RATE = 0.05
STUDENT = {"name": "resnet", "widths": [8, 16, 32], "stem_stride": 2}


def network(model: dict[str, object], data: Dataset, seed: int = 0) -> Normalized:
    """A network with random weights for these images."""
    torch.manual_seed(seed)
    net = build_model(model, image_shape=data.image_shape, classes=len(data.classes), base=Path())
    return Normalized(net, *data.train.channel_statistics())


class ByHand:
    """The same work as `compress.training.loop.fit` with labels alone: what a person writes who knows PyTorch.

    SGD with Nesterov momentum, one-cycle rate, no decay of biases and batch-norm, channels last, the loss read in every
    step, top-1 and loss on the validation images after every epoch.
    """

    def __init__(self, module: nn.Module, data: Dataset, batch_size: int, epochs: int) -> None:
        self.module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
        self.held_out = torch.from_numpy(data.validation.images), torch.from_numpy(data.validation.labels)
        self.batch_size = batch_size
        decayed = [p for p in module.parameters() if p.ndim > 1]
        others = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)
        steps = epochs * (len(self.images) // batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LEARNING_RATE, total_steps=steps, cycle_momentum=False
        )

    def epoch(self) -> tuple[float, float, float]:
        """Train once over the images and validate: mean loss, validation loss, validation top-1."""
        self.module.train()
        order, total = torch.randperm(len(self.images)), 0.0
        steps = len(order) // self.batch_size
        for step in range(steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = (self.images[chosen].float() / 255).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(self.module(images), self.labels[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
        return total / steps, *self.validate()

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Loss and top-1 on the validation images."""
        self.module.eval()
        images, labels = self.held_out
        logits = torch.cat([self.module(part.float() / 255) for part in images.split(256)])
        return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def train_by_hand(data: Dataset) -> None:
    """Train with the loop above."""
    loop = ByHand(network(STUDENT, data), data, BATCH_SIZE, EPOCHS)
    for _ in range(EPOCHS):
        loop.epoch()


def train_ours(data: Dataset) -> None:
    """Train with this package's loop."""
    # Imported here: by hand one does not import it.
    from compress.training.loop import TrainSettings, fit
    from compress.training.objectives import hard_objective

    settings = TrainSettings(epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    fit(network(STUDENT, data), hard_objective(), data.train, data.validation, settings)


def main() -> None:
    """Train in the way that the first argument says and print the peak."""
    train = {"ours": train_ours, "by_hand": train_by_hand}[sys.argv[1]]
    torch.set_num_threads(1)
    data = load_dataset(DataConfig(dataset="fashion-mnist", train_samples=int(sys.argv[2])), Path())
    Path("/proc/self/clear_refs").write_text("5")  # from here on: reading the data took more than training does
    train(data)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_bytes": int(fields["VmHWM"].split()[0]) * 1024}))


if __name__ == "__main__":
    main()
