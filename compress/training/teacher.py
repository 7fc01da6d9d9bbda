"""A teacher's answers to training batches: computed once where images repeat, for every batch where they change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.data.loader import Batch, batches
from compress.data.split import Split
from compress.log import progress
from compress.training.loop import TrainSettings

BATCH_SIZE = 256


class TeacherLogits:
    """Callable from a batch to the teachers' logits, constants, (teachers, batch, classes).

    Without augmentation every epoch shows the same images, so the first call runs the whole split once and later
    ones look their answers up by index (`mode` is `cached`). With augmentation no image comes twice, and every
    batch is run (`mode` is `live`). Teachers run in evaluation mode without gradients.

    Args:
        modules: one or several networks that take images in [0, 1]; frozen and moved to the settings' device.
        settings: of the training that asks; device, precision and augmentation count here.
        train: the split whose batches will come.

    Attributes:
        mode: `cached` or `live`.
        images_run: images that the teachers have answered so far, each counted once for all teachers.
        images_reused: images whose answer came from the cache.
    """

    def __init__(self, modules: Sequence[nn.Module], settings: TrainSettings, train: Split) -> None:
        if not modules:
            raise ValueError("expected at least one teacher")
        self.modules = [_frozen(module, settings.device) for module in modules]
        self.settings = settings
        self.train = train
        augmented = settings.augmentation is not None and settings.augmentation.active
        self.mode = "live" if augmented else "cached"
        self.images_run = 0
        self.images_reused = 0
        self._cache: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits, (teachers, batch, classes), float32, on the device of the batch's images."""
        if self.mode == "live":
            return self._run(batch.images)
        if self._cache is None:
            self._cache = self._run_split()
        self.images_reused += len(batch.indices)
        return self._cache[:, batch.indices.to(self._cache.device)].to(batch.images.device)

    def describe(self) -> str:
        """Say in a sentence where the logits come from."""
        who = "1 teacher" if len(self.modules) == 1 else f"{len(self.modules)} teachers, probabilities averaged"
        if self.mode == "live":
            return f"soft targets computed for every augmented batch ({who})"
        return f"soft targets of {len(self.train)} images computed once ({who})"

    def _run_split(self) -> Tensor:
        with progress("soft targets", len(self.train), "images") as bar:
            parts = []
            for batch in batches(self.train, BATCH_SIZE, shuffle=False, drop_last=False):
                parts.append(self._run(batch.images.to(self.settings.device)))
                bar.advance(len(batch.images))
        return torch.cat(parts, dim=1)

    def _run(self, images: Tensor) -> Tensor:
        self.images_run += len(images)
        images = images.contiguous(memory_format=torch.channels_last)
        bf16 = self.settings.precision == "bf16"
        with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            return torch.stack([module(images).float() for module in self.modules])


def _frozen(module: nn.Module, device: str) -> nn.Module:
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)
