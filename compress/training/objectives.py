"""What a training step minimises: functions of a network's output and the batch it came from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from compress.data.loader import Batch
from compress.distillation.losses import logits_from_teachers, soft_target_loss
from compress.errors import ModelError, UsageError

Parts = dict[str, Tensor]
Objective = Callable[[Tensor, Batch], tuple[Tensor, Parts]]  # logits, batch -> scalar loss, its named parts


def hard_objective(label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy with the labels.

    Args:
        label_smoothing: share of each label spread evenly over all classes, in [0, 1)
            (Szegedy et al., 2016, arXiv:1512.00567).

    Returns:
        An objective with one part, `hard`: nats per sample, mean over the batch.

    Raises:
        UsageError: label_smoothing is outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing is {label_smoothing}, expected 0 or more and below 1")

    def objective(logits: Tensor, batch: Batch) -> tuple[Tensor, Parts]:
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
        return loss, {"hard": loss}

    return objective


def distillation_objective(
    teacher_logits: Callable[[Batch], Tensor], temperature: float, kd_weight: float, label_smoothing: float = 0.0
) -> Objective:
    """kd_weight x soft-target loss + (1 - kd_weight) x cross-entropy with the labels.

    Args:
        teacher_logits: gives a batch's logits, (batch, classes), or (teachers, batch, classes), of which the
            softened probabilities are averaged; constants.
        temperature: softening factor of both sides, > 0, no unit.
        kd_weight: share of the soft-target loss, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1).

    Returns:
        An objective with the parts `soft` (scaled by temperature squared) and `hard`: nats per sample,
        mean over the batch.

    Raises:
        UsageError: a number is outside its range.
        ModelError: at the first batch, teacher and student answer for different numbers of classes.
    """
    if not temperature > 0:
        raise UsageError(
            f"temperature is {temperature}, expected > 0",
            hint="1 compares plain probabilities; 2 to 8 show more of the teacher's doubts",
        )
    if not 0 <= kd_weight <= 1:
        raise UsageError(
            f"kd_weight is {kd_weight}, expected 0 to 1", hint="0 learns from labels alone, 1 from the teacher alone"
        )
    hard = hard_objective(label_smoothing)

    def objective(logits: Tensor, batch: Batch) -> tuple[Tensor, Parts]:
        teacher = teacher_logits(batch)
        if teacher.ndim == 3:
            teacher = logits_from_teachers(teacher, temperature)
        if teacher.shape != logits.shape:
            raise ModelError(
                f"the teacher answers for {teacher.shape[-1]} classes, the student for {logits.shape[-1]}",
                hint="train both on the same data",
            )
        soft = soft_target_loss(logits, teacher, temperature)
        hard_loss, _ = hard(logits, batch)
        return kd_weight * soft + (1 - kd_weight) * hard_loss, {"soft": soft, "hard": hard_loss}

    return objective
