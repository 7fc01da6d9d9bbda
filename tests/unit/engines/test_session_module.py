from __future__ import annotations

import numpy as np
import torch

from compress.engines.session_module import SessionModule
from compress.engines.torch_session import TorchSession


def test_it_answers_as_its_session_and_lets_no_gradient_through() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = torch.rand(5, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = network(images).detach().numpy()
    module = SessionModule(TorchSession.load(network), "image", "logits")
    got = module(images)
    assert np.array_equal(got.numpy(), wanted)
    assert not got.requires_grad
    assert list(module.parameters()) == []
