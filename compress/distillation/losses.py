"""Losses between a student's and a teacher's logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened logits, times temperature squared (Hinton et al., 2015, arXiv:1503.02531).

    The square keeps the gradient's size when the temperature changes.

    Args:
        student: logits, (batch, classes), float; gradients flow.
        teacher: logits, (batch, classes), float; a constant.
        temperature: softening factor, > 0, no unit.

    Returns:
        Scalar, nats per sample, mean over the batch.

    Raises:
        ValueError: shapes differ, or temperature <= 0.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"expected two (batch, classes), got {tuple(student.shape)} and {tuple(teacher.shape)}")
    _check_temperature(temperature)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def logits_from_teachers(logits: Tensor, temperature: float) -> Tensor:
    """Merge several teachers into one whose softened probabilities are the mean of theirs.

    Probabilities are averaged, not logits: a teacher's logits may carry any offset and scale, and the mean
    of probabilities is what an ensemble answers.

    Args:
        logits: (teachers, batch, classes), float.
        temperature: at which the mean is taken, > 0, no unit.

    Returns:
        (batch, classes): for one teacher its own logits; otherwise logits z with
        softmax(z / temperature) = mean over teachers of softmax(logits / temperature).

    Raises:
        ValueError: not three axes, or temperature <= 0.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected (teachers, batch, classes), got {tuple(logits.shape)}")
    _check_temperature(temperature)
    if len(logits) == 1:
        return logits[0]
    log_probabilities = F.log_softmax(logits.float() / temperature, dim=2)
    return temperature * (torch.logsumexp(log_probabilities, dim=0) - math.log(len(logits)))


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected > 0")
