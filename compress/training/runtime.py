"""What a computation runs on: thread count and Lightning Fabric, without its side effects."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from compress.errors import UnavailableError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run a block with a fixed number of CPU threads; another count sums in another order and gives other bits.

    Args:
        count: threads within one operator, >= 1.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fabric_on(device: str, precision: str) -> Fabric:
    """Return Lightning Fabric for one device.

    Args:
        device: cpu or cuda.
        precision: fp32, or bf16 for bfloat16 autocast with float32 weights.

    Raises:
        UnavailableError: cuda is asked for and torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("device is cuda, but torch sees no GPU here", hint="set device: cpu")
    # Imported here: importing it adds a log handler, and it announces its precision at level INFO.
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return Fabric(accelerator=device, devices=1, precision=PRECISIONS[precision])  # type: ignore[arg-type]
