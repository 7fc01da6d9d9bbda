"""What teachers answer to every view of every training image, in a file that is read where it is asked, never whole."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data.loader import Augmentation, Batch, batches
from compress.data.split import Split, document_digest
from compress.errors import ModelError
from compress.log import progress
from compress.training.runtime import cpu_threads, fabric_on
from compress.training.teacher import logits_of, placed

LOGITS, DESCRIPTION = "logits.npy", "answers.json"
FORMAT = 1
DTYPE = np.dtype("<f2")
LARGEST = float(np.finfo(np.float16).max)  # 65,504


@dataclass(frozen=True)
class AnswersDescription:
    """Whose answers they are, and to which images.

    Attributes:
        teachers: content digest of each teacher, in the order of the first axis.
        classes: names in the order of the logits.
        images: `images_digest` of the training split.
        samples: images of that split.
        augmentation: of which there is a finite number of views.
    """

    teachers: tuple[str, ...]
    classes: tuple[str, ...]
    images: str
    samples: int
    augmentation: Augmentation

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(teachers, views, samples, classes)."""
        return len(self.teachers), self.augmentation.view_count or 0, self.samples, len(self.classes)


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits, (teachers, views, samples, classes), float16, memory-mapped, and what they are."""

    logits: NDArray[np.float16]
    description: AnswersDescription


def images_digest(split: Split) -> str:
    """SHA-256 over the pixels of every sample, in order; labels are no part of it. Hexadecimal."""
    return document_digest({"shape": list(split.images.shape[1:]), "samples": split.digests()})


def write_answers(
    folder: Path,
    modules: Sequence[nn.Module],
    train: Split,
    description: AnswersDescription,
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "fp32",
    threads: int = 1,
) -> float:
    """Run every teacher on every view of every image and write logits.npy and answers.json.

    The file grows batch by batch, so that memory holds one batch of logits, and a full disk is an error that can be
    told, which it would not be behind a memory map. The same inputs, device and thread count give the same bytes.

    Args:
        folder: exists.
        modules: networks that take images in [0, 1] and answer (batch, classes); moved to the device and left in
            evaluation mode there.
        train: the images.
        description: of the file.
        batch_size: images at a time, >= 1.
        device: cpu or cuda.
        precision: fp32, or bf16 for bfloat16 autocast.
        threads: CPU threads, >= 1.

    Returns:
        Wall time that all teachers together took for one image, seconds; making views and writing are not in it.

    Raises:
        ModelError: a logit is not finite, or too large for float16.
        ValueError: the augmentation has no finite number of views, or the description is not of these teachers, images.
        UnavailableError: cuda is asked for and torch sees no GPU.
    """
    views = description.augmentation.view_count
    if views is None or (len(modules), len(train)) != (len(description.teachers), description.samples):
        raise ValueError(f"{len(modules)} teachers and {len(train)} images are not what {description} says")
    target = fabric_on(device, precision).device
    seconds = 0.0
    with cpu_threads(threads), (folder / LOGITS).open("wb") as file:
        header = {"descr": npy.dtype_to_descr(DTYPE), "fortran_order": False, "shape": description.shape}
        npy.write_array_header_1_0(file, header)
        with progress("answers", len(modules) * views * len(train), "images") as bar:
            for (number, module), view in product(enumerate(modules, 1), range(views)):
                placed(module, target)
                for batch in batches(train, batch_size, augment=description.augmentation, view=view):
                    images = batch.images.to(target)
                    started = time.perf_counter()
                    logits = logits_of(module, images, precision).cpu()  # which waits for a GPU
                    seconds += time.perf_counter() - started
                    _check_logits(logits, number, batch, train, len(description.classes))
                    file.write(logits.numpy().astype(DTYPE).tobytes())
                    bar.advance(len(images))
    _write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(description)})
    return seconds / (views * len(train))


def _check_logits(logits: Tensor, teacher: int, batch: Batch, train: Split, classes: int) -> None:
    if logits.shape[1] != classes:
        raise ModelError(f"teacher {teacher} answers for {logits.shape[1]} classes, the data has {classes}")
    wrong = ~(logits.abs() <= LARGEST)  # NaN is wrong too
    if wrong.any():
        row = int(wrong.any(dim=1).nonzero()[0])
        value = float(logits[row][wrong[row]][0])
        raise ModelError(
            f"teacher {teacher} answers with a logit of {value:g}; float16 holds -{LARGEST:,.0f} to {LARGEST:,.0f}",
            where=f"image {train.ids[int(batch.indices[row])]}, view {int(batch.views[row])}",
            hint="teach without stored answers: leave `answers:` out of the step that learns",
        )


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def load_answers(folder: Path) -> Answers:
    """Map what `write_answers` wrote; no logit is read before it is asked for.

    Raises:
        ModelError: a file is missing or malformed, or the two do not belong together.
    """
    description = _read_description(folder / DESCRIPTION)
    path = folder / LOGITS
    try:
        logits = npy.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise ModelError(f"the stored logits cannot be read: {error}", where=str(path)) from error
    if (logits.dtype, logits.shape) != (DTYPE, description.shape):
        raise ModelError(
            f"the stored logits are {logits.dtype} {logits.shape}, expected float16 {description.shape}",
            where=str(path),
        )
    return Answers(logits, description)


def _read_description(path: Path) -> AnswersDescription:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        augmentation = Augmentation(**document.pop("augmentation"))
        teachers, classes = (tuple(document.pop(name)) for name in ("teachers", "classes"))
        return AnswersDescription(teachers, classes, augmentation=augmentation, **document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"the description of stored answers is malformed: {error}", where=str(path)) from error
