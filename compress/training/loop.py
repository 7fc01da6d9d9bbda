"""The one training loop: train, distil and quantization-aware training differ by objective and network."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.data.labels import labelled_per_batch
from compress.data.loader import Augmentation, Batch, batch_count, batches
from compress.data.split import Split
from compress.errors import DataError, ModelError
from compress.log import get_logger, progress
from compress.quantization.quantizer import FakeQuantNetwork, calibrate_ranges
from compress.training.evaluate import cross_entropy, predict_logits, top1
from compress.training.objectives import Objective
from compress.training.runtime import cpu_threads, fabric_on

RANGE_IMAGES = 512  # from which fake-quant ranges start

Record = dict[str, Any]


@dataclass(frozen=True)
class TrainSettings:
    """How weights are fitted.

    Attributes:
        epochs: passes over the training split, >= 1.
        batch_size: samples per step, >= 2; an incomplete last batch is left out.
        learning_rate: peak of the schedule, > 0, per step.
        optimizer: sgd (with Nesterov momentum) or adamw.
        schedule: one_cycle rises for 30 % of the steps, then falls to nothing; cosine falls from the start; step falls
            to a tenth after each of the milestones.
        milestones: of schedule step, epochs.
        weight_decay: per step, as the optimizer defines it; biases and batch-norm are exempt.
        momentum: of sgd, in [0, 1).
        device: cpu or cuda.
        precision: fp32, or bf16 for bfloat16 autocast in training steps; validation is always float32.
        threads: CPU threads, >= 1; another count gives other weights.
        seed: of order, augmentation and dropout; initial weights are the caller's.
        augmentation: random changes to training images, or None.
        keep: the weights of the best epoch by validation, which reads its labels, or of the last epoch.
        freeze: share of the steps, counted from the end, in which fake-quant ranges stay fixed, in [0, 1].
        freeze_batch_norm: the same for the statistics of batch-norm in networks with fake-quant. Only where the
            learning rate is small: a network whose statistics no longer follow it can diverge (at 0.8 of a peak of
            0.01 a small ResNet did, with and without fake-quant).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["one_cycle", "cosine", "step"] = "one_cycle"
    milestones: tuple[int, ...] = ()
    weight_decay: float = 5e-4
    momentum: float = 0.9
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    seed: int = 0
    augmentation: Augmentation | None = None
    keep: Literal["best", "last"] = "best"
    freeze: float = 0.5
    freeze_batch_norm: float = 0.2


@dataclass(frozen=True)
class FitResult:
    """What training left.

    Attributes:
        module: the network given, in evaluation mode, on the CPU, with the weights of the epoch that is kept.
        best_epoch: which that was, from 1.
        history: one record an epoch: epoch, learning_rate (of its last step), loss (mean over its steps) and parts
            (each a mean over the steps in which it counted), in the objective's units, validation_top1 (fraction),
            validation_loss (nats per sample). The same bytes for the same inputs.
        seconds: wall time of each epoch, validation included; kept apart because it is never the same.
    """

    module: nn.Module
    best_epoch: int
    history: list[Record]
    seconds: list[float] = field(compare=False)


def fit(
    module: nn.Module,
    objective: Objective,
    train: Split,
    validation: Split,
    settings: TrainSettings,
    *,
    on_epoch: Callable[[Record], None] | None = None,
    on_step: Callable[[], object] | None = None,
) -> FitResult:
    """Train a network in place and leave it with the weights of its best epoch, or of its last one (`keep`).

    The best epoch has the highest validation top-1; ties go to the lower validation loss, then to the later epoch.
    Where some labels are hidden, each batch gets images that have one (`labelled_per_batch`). A network with fake-quant
    first gets its ranges from unaugmented training images. The same inputs and thread count give the same bytes.

    Args:
        module: takes images in [0, 1], (batch, channels, height, width), and gives logits, (batch, classes).
        objective: maps logits, their batch and the share of steps taken to a scalar loss and its named parts; the
            parameters of an objective that is an nn.Module are trained along, and are no part of the module.
        train: images to learn from.
        validation: images to choose the epoch by.
        settings: how.
        on_epoch: called after each epoch with its record of the history.
        on_step: called after each training step.

    Returns:
        The module, its best epoch and its history.

    Raises:
        ModelError: a training or validation loss is not finite; nothing useful is left in the module.
        DataError: fewer than two training images, or no validation image.
        UnavailableError: the settings ask for a GPU that is not here.
    """
    if len(train) < 2 or len(validation) < 1:
        raise DataError(
            f"got {len(train)} training and {len(validation)} validation images, expected at least 2 and 1",
            hint="take more samples",
        )
    history, seconds, weights, best = list[Record](), list[float](), dict[str, Tensor](), (-1.0, 0.0, 0)
    with cpu_threads(settings.threads):
        torch.manual_seed(settings.seed)
        run = _Run(module, objective, train, settings)
        with progress("training", settings.epochs * run.steps_per_epoch, "steps") as bar:
            for epoch in range(1, settings.epochs + 1):
                started = time.perf_counter()
                record = run.train_epoch(epoch, bar, on_step) | _validate(module, validation, epoch, run.learning_rate)
                seconds.append(time.perf_counter() - started)
                history.append(record)
                rank = (0.0, 0.0, epoch) if settings.keep == "last" else _rank(record)
                if rank > best:
                    best, weights = rank, {key: value.clone() for key, value in module.state_dict().items()}
                if on_epoch is not None:
                    on_epoch(record)
        module.load_state_dict(weights)
        module.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    top = history[best[2] - 1]["validation_top1"]
    get_logger(__name__).info(f"{settings.keep} epoch {best[2]} of {settings.epochs}: validation top-1 {top:.4f}")
    return FitResult(module, best[2], history, seconds)


def _rank(record: Record) -> tuple[float, float, int]:
    return record["validation_top1"], -record["validation_loss"], record["epoch"]


def _validate(module: nn.Module, validation: Split, epoch: int, learning_rate: float) -> Record:
    logits = predict_logits(module, validation)
    loss = cross_entropy(logits, validation.labels)
    if not math.isfinite(loss):
        raise _not_finite(f"the validation loss is {loss} after epoch {epoch}, at", learning_rate)
    return {"validation_top1": top1(logits, validation.labels), "validation_loss": loss}


def _not_finite(what: str, learning_rate: float) -> ModelError:
    return ModelError(
        f"{what} learning rate {learning_rate:.3g}; training stopped and nothing is kept",
        hint=f"lower the learning rate, e.g. to {learning_rate / 10:.1g}",
    )


class _Run:
    """A network with its optimizer on a device, and the count of steps taken."""

    def __init__(self, module: nn.Module, objective: Objective, train: Split, settings: TrainSettings) -> None:
        self.fabric = fabric_on(settings.device, settings.precision)
        self.module, self.objective, self.train, self.settings = module, objective, train, settings
        self.batch_size = min(settings.batch_size, len(train))
        self.steps_per_epoch = batch_count(len(train), self.batch_size, drop_last=True)
        self.labelled = labelled_per_batch(train, self.batch_size)
        self.step = 0
        self.learning_rate = settings.learning_rate
        # Convolutions run faster on this layout; the caller gets contiguous weights back.
        module.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(module, FakeQuantNetwork):
            count = math.ceil(RANGE_IMAGES / self.batch_size)
            calibrate_ranges(module, islice(self._images(), count))
        learned = [*module.parameters()]
        if isinstance(objective, nn.Module):  # e.g. adapters of features: trained along, never part of the network
            learned += objective.to(settings.device).parameters()
        self.forward, self.optimizer = self.fabric.setup(module, _optimizer(module, learned, settings))

    def _images(self) -> Iterator[Tensor]:
        for batch in batches(self.train, self.batch_size, seed=self.settings.seed, epoch=0, shuffle=True):
            yield self._moved(batch).images

    def _moved(self, batch: Batch) -> Batch:
        device = self.fabric.device
        images = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        return batch._replace(images=images, labels=batch.labels.to(device))

    def train_epoch(self, epoch: int, bar: Any, on_step: Callable[[], object] | None) -> Record:
        """Take one pass over the training split; returns the training half of the epoch's record."""
        settings, sums, counts = self.settings, dict[str, float](), Counter[str]()
        total = settings.epochs * self.steps_per_epoch
        self.module.train()
        for batch in batches(
            self.train,
            self.batch_size,
            seed=settings.seed,
            epoch=epoch,
            augment=settings.augmentation,
            shuffle=True,
            drop_last=True,
            labelled=self.labelled,
        ):
            self.learning_rate = learning_rate_at(self.step, total, settings)
            if isinstance(self.module, FakeQuantNetwork):
                left = 1 - self.step / total
                self.module.freeze(ranges=left <= settings.freeze, batch_norm=left <= settings.freeze_batch_norm)
            for name, value in self._take_step(self._moved(batch), epoch, self.step / total).items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] += 1
            self.step += 1
            bar.advance()
            if on_step is not None:
                on_step()
        means = {name: value / counts[name] for name, value in sums.items()}
        loss = means.pop("loss")
        bar.update(epoch=epoch, loss=loss)
        return {"epoch": epoch, "learning_rate": self.learning_rate, "loss": loss, "parts": means}

    def _take_step(self, batch: Batch, epoch: int, done: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad()
        loss, parts = self.objective(self.forward(batch.images), batch, done)
        value = loss.item()
        if not math.isfinite(value):
            step = self.step % self.steps_per_epoch + 1
            raise _not_finite(f"the loss is {value} in epoch {epoch}, step {step}, at", self.learning_rate)
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"loss": value} | {name: part.item() for name, part in parts.items()}


def _optimizer(module: nn.Module, learned: Sequence[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in learned if parameter.requires_grad]
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(f"{type(module).__name__} has no trainable weight")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


def learning_rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of one step.

    `one_cycle` rises along a cosine from 1/25 of the peak to the peak in the first 30 % of the steps and falls along a
    cosine to 1/10000 of it (Smith and Topin, 2017, arXiv:1708.07120, with constant momentum); `cosine` falls from the
    peak towards 0 (Loshchilov and Hutter, 2016, arXiv:1608.03983, without restarts); `step` is the peak until the first
    milestone, and a tenth of what it was after each (He et al., 2016, arXiv:1512.03385).

    Args:
        step: from 0.
        steps: of the whole training, > step.
        settings: peak, kind of schedule, epochs and milestones.
    """
    peak = settings.learning_rate
    if settings.schedule == "step":
        return peak * 0.1 ** sum(step * settings.epochs >= milestone * steps for milestone in settings.milestones)
    if settings.schedule == "cosine":
        return _cosine(peak, 0.0, step / steps)
    rise = max(1.0, 0.3 * steps)
    if step < rise:
        return _cosine(peak / 25, peak, step / rise)
    return _cosine(peak, peak / 10_000, (step - rise) / max(1.0, steps - 1 - rise))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
