"""A teacher's answers to training batches: computed once where images repeat, for every batch where they change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.data.loader import Batch
from compress.data.split import Split
from compress.training.loop import TrainSettings


class TeacherLogits:
    """Callable from a batch to the teachers' logits, constants, (teachers, batch, classes).

    Where every epoch shows the same images (no augmentation) or one of two (mirrored or not), each is answered
    once, when it is first seen, and looked up by index and view afterwards (`mode` is `cached`; Beyer et al., 2022,
    arXiv:2106.05237, call it consistent teaching). With random shifts no image comes twice soon, and every batch
    is run (`mode` is `live`). Teachers run in evaluation mode without gradients.

    Args:
        modules: one or several networks that take images in [0, 1]; moved to the settings' device and left in
            evaluation mode.
        settings: of the training that asks; device, precision and augmentation count here.
        train: the split whose batches will come.
        live: why every batch has to be run, whatever the augmentation.

    Attributes:
        mode: `cached` or `live`.
        images_run: images that the teachers have answered so far, each counted once for all teachers.
        images_reused: images whose answer came from the cache.
    """

    def __init__(
        self, modules: Sequence[nn.Module], settings: TrainSettings, train: Split, *, live: str | None = None
    ) -> None:
        if not modules:
            raise ValueError("expected at least one teacher")
        self.modules = [_placed(module, settings.device) for module in modules]
        self.settings = settings
        self.train = train
        self.views = settings.augmentation.views if settings.augmentation is not None else 1
        self.live = live or ("random shifts never show an image twice" if self.views is None else None)
        self.mode = "cached" if self.live is None else "live"
        self.images_run = 0
        self.images_reused = 0
        self._cache: Tensor | None = None  # (teachers, views, samples, classes)
        self._known = torch.zeros(self.views or 0, len(train), dtype=torch.bool)

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits, (teachers, batch, classes), float32, on the device of the batch's images."""
        if self.mode == "live":
            return self._run(batch.images)
        indices, views = batch.indices, batch.views
        fresh = ~self._known[views, indices] if self._cache is not None else torch.ones(len(indices), dtype=torch.bool)
        if fresh.any():
            answers = self._run(batch.images[fresh.to(batch.images.device)])
            cache = self._cache if self._cache is not None else self._empty_cache(answers)
            cache[:, views[fresh], indices[fresh]] = answers.to(cache.device)
            self._known[views[fresh], indices[fresh]] = True
        assert self._cache is not None, "the first batch is always fresh"
        self.images_reused += int((~fresh).sum())
        return self._cache[:, views, indices].to(batch.images.device)

    def _empty_cache(self, answers: Tensor) -> Tensor:
        teachers, _, classes = answers.shape
        self._cache = torch.empty(teachers, self.views or 0, len(self.train), classes)
        return self._cache

    def describe(self) -> str:
        """Say in a sentence where the logits come from."""
        who = "1 teacher" if len(self.modules) == 1 else f"{len(self.modules)} teachers"
        if self.mode == "live":
            return f"soft targets computed for every batch, because {self.live} ({who})"
        return f"soft targets of {self.images_run} images computed once and reused {self.images_reused} times ({who})"

    def _run(self, images: Tensor) -> Tensor:
        self.images_run += len(images)
        images = images.contiguous(memory_format=torch.channels_last)
        bf16 = self.settings.precision == "bf16"
        with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            return torch.stack([module(images).float() for module in self.modules])


def _placed(module: nn.Module, device: str) -> nn.Module:
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval()
