"""The input contract that every deployable file shares, as it is written into manifests."""

from collections.abc import Sequence

from compress.artifacts.manifest import Tensor

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
