from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.split import Split
from compress.errors import DataError
from compress.training.evaluate import cross_entropy, predict_logits, top1


class PixelSums(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)


def test_every_image_in_order_as_pixels_over_255(validation_split: Split):
    logits = predict_logits(PixelSums(), validation_split, batch_size=7)
    assert logits.dtype == np.float32
    assert logits[:, 0] == pytest.approx(validation_split.images.astype(np.float64).sum((1, 2, 3)) / 255, rel=1e-5)


def test_batch_size_changes_nothing(network: Callable[..., nn.Module], validation_split: Split):
    module = network().train()
    one, other = (predict_logits(module, validation_split, batch_size) for batch_size in (13, 100))
    assert np.allclose(one, other, atol=1e-5)
    assert not module.training
    assert not one.flags.writeable or one.shape == (100, 4)


def test_an_empty_split_is_refused(validation_split: Split):
    with pytest.raises(DataError, match="the validation split is empty") as caught:
        predict_logits(PixelSums(), validation_split.take(np.arange(0)))
    assert caught.value.exit_code == 5


def test_top1_and_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], dtype=np.float32))
    labels = np.array([0, 2])
    assert top1(logits, labels) == 0.5
    assert cross_entropy(logits, labels) == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, rel=1e-6)
