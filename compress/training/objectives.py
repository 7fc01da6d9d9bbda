"""What a training step minimises: functions of a network's output and the batch it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from compress.data.loader import Batch
from compress.distillation.losses import hard_loss
from compress.distillation.mixture import Combine, Mixture, Term
from compress.errors import UsageError

Parts = dict[str, Tensor]
TeacherAnswers = Callable[[Batch], Tensor]  # -> logits, (teachers, batch, classes)


class Objective(Protocol):
    """What the loop calls after each forward pass; where it is an nn.Module, its parameters are trained along."""

    def __call__(self, logits: Tensor, batch: Batch, done: float = 0.0, /) -> tuple[Tensor, Parts]:
        """Map logits, (batch, classes), their batch and the share of steps taken to a scalar loss and its parts."""
        ...


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
    _check_smoothing(label_smoothing)

    def objective(logits: Tensor, batch: Batch, done: float = 0.0) -> tuple[Tensor, Parts]:
        loss = hard_loss(logits, batch.labels, label_smoothing)
        return loss, {"hard": loss}

    return objective


class MixtureObjective(nn.Module):
    """A mixture of losses whose teachers answer each batch.

    Args:
        mixture: the losses; tapped already where they need features.
        teacher_logits: answers a batch, (teachers, batch, classes), and runs the tapped teacher with it; None where no
            loss asks a teacher.
    """

    def __init__(self, mixture: Mixture, teacher_logits: TeacherAnswers | None) -> None:
        super().__init__()
        self.mixture = mixture
        self.teacher_logits = teacher_logits

    def forward(self, logits: Tensor, batch: Batch, done: float = 0.0) -> tuple[Tensor, Parts]:
        """See `Mixture.forward`."""
        teachers = None if self.teacher_logits is None else self.teacher_logits(batch)
        return self.mixture(logits, teachers, batch.labels, done)


def distillation_objective(
    teacher_logits: TeacherAnswers,
    temperature: float,
    kd_weight: float,
    label_smoothing: float = 0.0,
    combine: Combine = "mean",
) -> MixtureObjective:
    """kd_weight x soft-target loss + (1 - kd_weight) x cross-entropy with the labels.

    Args:
        teacher_logits: gives a batch's logits, (teachers, batch, classes); constants.
        temperature: softening factor of both sides, > 0, no unit.
        kd_weight: share of the soft-target loss, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1).
        combine: how several teachers become one.

    Returns:
        An objective with the parts `kd` (scaled by temperature squared) and `hard`: nats per sample, mean over the
        batch.

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
    _check_smoothing(label_smoothing)
    soft = Term("kd", kd_weight, {"temperature": temperature})
    hard = Term("hard", 1 - kd_weight, {"label_smoothing": label_smoothing})
    return MixtureObjective(Mixture([soft, hard], combine), teacher_logits)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing is {label_smoothing}, expected 0 or more and below 1")
