"""A teacher's logits for training batches: stored beforehand, remembered once seen, or computed for every batch.

Where images come again exactly, so do the teacher's answers, and looking them up loses nothing: teacher and student see
the same view of an image (consistent teaching; Beyer et al., 2022, arXiv:2106.05237).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data.loader import Batch
from compress.data.split import Split
from compress.training.loop import TrainSettings


@dataclass(frozen=True)
class Savings:
    """What not running the teachers has saved so far.

    Attributes:
        asked: images whose logits were asked for.
        found: of these, images that no teacher was run for.
        size_bytes: of all logits that can be looked up, on disk or in memory.
        seconds_per_image: wall time that all teachers took for one image, measured while they ran; 0 where unknown.
    """

    asked: int
    found: int
    size_bytes: int
    seconds_per_image: float

    @property
    def hit_rate(self) -> float:
        """Share of the images that no teacher was run for, in [0, 1]; 0 where none was asked for."""
        return self.found / self.asked if self.asked else 0.0

    @property
    def seconds(self) -> float:
        """An estimate of the time saved: as if each of these images had taken what the others did."""
        return self.found * self.seconds_per_image


class Teaching(Protocol):
    """Callable from a batch to the teachers' logits, constants, (teachers, batch, classes), float32."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the logits on the device of the batch's images."""
        ...

    def describe(self) -> str:
        """Say in a sentence where the logits come from and, where no answer could be looked up, why."""
        ...

    def savings(self) -> Savings:
        """What looking up has saved so far."""
        ...


class StoredLogits:
    """Looks every answer up in an array that was made beforehand: no teacher is run.

    Args:
        logits: (teachers, views, samples, classes), float16, e.g. a memory map: only rows that are asked for are read.
            Views and samples are those of the batches.
        seconds_per_image: wall time that all teachers took for one image when the array was made.
    """

    def __init__(self, logits: NDArray[np.float16], seconds_per_image: float) -> None:
        self.logits = logits
        self.seconds_per_image = seconds_per_image
        self.asked = 0

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits, (teachers, batch, classes), float32, on the device of the batch's images."""
        self.asked += len(batch.indices)
        rows = self.logits[:, batch.views.numpy(), batch.indices.numpy()]
        return torch.from_numpy(rows).to(batch.images.device).float()

    def describe(self) -> str:
        """Say in a sentence where the logits come from, and what that saved."""
        where = f"soft targets of {self.asked} images looked up in stored answers ({_who(len(self.logits))})"
        return where + _estimate(self.savings())

    def savings(self) -> Savings:
        """Every image that was asked for was found."""
        return Savings(self.asked, self.asked, self.logits.nbytes, self.seconds_per_image)


class TeacherLogits:
    """Runs teachers, in evaluation mode without gradients, and remembers their answers where images come again.

    Without augmentation, with mirroring alone, or with a finite set of views, each view of an image is answered when it
    is first seen (`mode` is `remembered`). Otherwise every batch is answered anew (`mode` is `live`).

    Args:
        modules: one or several networks that take images in [0, 1]; moved to the settings' device and left in
            evaluation mode.
        settings: of the training that asks; device, precision and augmentation count here.
        train: the split whose batches will come.
        live_because: why answers must not be remembered although images come again, as the end of a sentence, e.g.
            "the losses read the teacher's features"; empty where nothing speaks against it.

    Attributes:
        mode: `remembered` or `live`.
        images_run: images that the teachers have answered so far, each counted once for all teachers.
        images_reused: images whose answer was there already.
    """

    def __init__(
        self, modules: Sequence[nn.Module], settings: TrainSettings, train: Split, *, live_because: str = ""
    ) -> None:
        if not modules:
            raise ValueError("expected at least one teacher")
        self.modules = [placed(module, settings.device) for module in modules]
        self.settings = settings
        views = settings.augmentation.view_count if settings.augmentation is not None else 1
        self.live_because = live_because or ("" if views else "shift_px without views never shows an image twice")
        self.mode = "live" if self.live_because else "remembered"
        self.images_run = 0
        self.images_reused = 0
        self._seconds = 0.0
        self._known = torch.zeros(views or 0, len(train), dtype=torch.bool)
        self._memory: Tensor | None = None  # (teachers, views, samples, classes)

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits, (teachers, batch, classes), float32, on the device of the batch's images."""
        if self.mode == "live":
            return self._run(batch.images)
        indices, views = batch.indices, batch.views
        fresh = ~self._known[views, indices]
        if fresh.any():
            started = time.perf_counter()
            answers = self._run(batch.images[fresh.to(batch.images.device)]).cpu()
            self._seconds += time.perf_counter() - started
            self._remember(answers, views[fresh], indices[fresh])
        assert self._memory is not None, "the first batch is always fresh"
        self.images_reused += int((~fresh).sum())
        return self._memory[:, views, indices].to(batch.images.device)

    def _remember(self, answers: Tensor, views: Tensor, indices: Tensor) -> None:
        if self._memory is None:
            self._memory = torch.empty(len(answers), *self._known.shape, answers.shape[-1])
        self._memory[:, views, indices] = answers
        self._known[views, indices] = True

    def describe(self) -> str:
        """Say in a sentence where the logits come from, and why nothing was remembered or what that saved."""
        who = _who(len(self.modules))
        if self.mode == "live":
            return f"soft targets computed for every batch, because {self.live_because} ({who})"
        where = f"soft targets of {self.images_run} images computed once and reused {self.images_reused} times ({who})"
        return where + _estimate(self.savings())

    def savings(self) -> Savings:
        """What remembering has saved so far; nothing where the teachers run for every batch."""
        size_bytes = 0 if self._memory is None else self._memory.nbytes
        asked = self.images_run + self.images_reused
        return Savings(asked, self.images_reused, size_bytes, self._seconds / max(1, self.images_run))

    def _run(self, images: Tensor) -> Tensor:
        self.images_run += len(images)
        return torch.stack([logits_of(module, images, self.settings.precision) for module in self.modules])


def placed(module: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a teacher to a device, in the layout on which convolutions run faster, and to evaluation mode."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval()


def logits_of(module: nn.Module, images: Tensor, precision: str) -> Tensor:
    """What a teacher answers, without gradients.

    Args:
        module: in evaluation mode, on the device of the images.
        images: (batch, channels, height, width), float32 in [0, 1].
        precision: fp32, or bf16 for bfloat16 autocast.

    Returns:
        (batch, classes), float32.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return module(images).float()


def _who(teachers: int) -> str:
    return "1 teacher" if teachers == 1 else f"{teachers} teachers"


def _estimate(savings: Savings) -> str:
    return f"; about {savings.seconds:.2g} s saved, estimated from {1000 * savings.seconds_per_image:.2g} ms an image"
