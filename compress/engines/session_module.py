"""A session as a torch module, so that a file can teach."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from compress.engines.session import Session


class SessionModule(nn.Module):
    """Answers batches of tensors by a session; it has no weights, and no gradient flows through it.

    Args:
        session: takes one float32 array, the images, of any batch size.
        input_name: of its input.
        output_name: of the output that is returned.
    """

    def __init__(self, session: Session, input_name: str, output_name: str) -> None:
        super().__init__()
        self.session = session
        self.input_name, self.output_name = input_name, output_name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images, (batch, channels, height, width), to what the session gives, on the device of the images."""
        array = np.ascontiguousarray(images.detach().float().cpu().numpy())
        return torch.from_numpy(self.session.run({self.input_name: array})[self.output_name]).to(images.device)
