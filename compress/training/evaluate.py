"""A network's answers on a whole split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.data.loader import batches
from compress.data.split import Split
from compress.errors import DataError

BATCH_SIZE = 256


def predict_logits(
    module: nn.Module, split: Split, batch_size: int = BATCH_SIZE, device: str | None = None
) -> NDArray[np.float32]:
    """Run every image of a split, unaugmented and in order, in float32 and evaluation mode.

    Args:
        module: takes images in [0, 1]; left in evaluation mode.
        split: the images, at least one.
        batch_size: images at a time, >= 1.
        device: where to run, e.g. cpu or cuda; the module is moved there. None: where it is.

    Returns:
        Logits, (n, classes), float32.

    Raises:
        DataError: the split is empty.
    """
    if not len(split):
        raise DataError(f"the {split.name} split is empty, expected at least one image")
    target = torch.device(device) if device else _device_of(module)
    if target != _device_of(module):  # even where nothing moves, asking every tensor takes milliseconds
        module.to(target)
    module.eval()
    with torch.no_grad():
        parts = [
            module(batch.images.to(target)).float().cpu()
            for batch in batches(split, batch_size, shuffle=False, drop_last=False)
        ]
    return torch.cat(parts).numpy()


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of samples whose largest logit is the label's, in [0, 1].

    Args:
        logits: (n, classes), n >= 1.
        labels: (n,), in [0, classes).
    """
    return float((logits.argmax(axis=1) == labels).mean())


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean of -log softmax(logits)[label], nats per sample.

    Args:
        logits: (n, classes), n >= 1.
        labels: (n,), in [0, classes).
    """
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))


def _device_of(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
