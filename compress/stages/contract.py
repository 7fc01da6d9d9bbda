"""The input contract that every deployable file shares: as manifests state it, and as arrays keep it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.artifacts.manifest import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUT, OUTPUT, BATCH = "image", "logits", "batch"


def image_tensors(image_shape: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    """Describe `image` (batch, channels, height, width) and `logits` (batch, classes)."""
    return (
        Tensor(
            name=INPUT,
            dtype="float32",
            shape=(BATCH, *image_shape),
            layout="NCHW",
            preprocessing="pixel / 255, so [0, 1]; normalisation is inside the graph",
        ),
        Tensor(name=OUTPUT, dtype="float32", shape=(BATCH, classes)),
    )


def network_input(pixels: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """Turn pixels, (n, channels, height, width), into what `image` takes: the same shape, in [0, 1]."""
    import numpy as np

    return np.divide(pixels, np.float32(255), dtype=np.float32)
