from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.models.normalized import Normalized


def test_each_channel_is_standardised() -> None:
    module = Normalized(nn.Identity(), (0.5, 0.25), (0.5, 0.125))
    image = torch.tensor([0.75, 0.5]).reshape(1, 2, 1, 1)
    assert module(image).ravel().tolist() == [0.5, 2.0]


def test_statistics_travel_with_the_weights() -> None:
    saved = Normalized(nn.Identity(), (0.5,), (0.25,)).state_dict()
    other = Normalized(nn.Identity(), (0.0,), (1.0,))
    other.load_state_dict(saved)
    assert other(torch.ones(1, 1, 1, 1)).item() == 2.0
    assert set(saved) == {"mean", "inverse_std"}


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (1.0, 1.0)), ((), ()), ((0.5,), (float("nan"),))])
def test_wrong_statistics_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected as many means as deviations > 0"):
        Normalized(nn.Identity(), mean, std)
