"""Losses between a student's and a teacher's logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.split import HIDDEN

EPSILON = 1e-8  # a deviation below it is none


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
    log_student, log_teacher = _softened(student, teacher, temperature)
    return _divergence(log_student, log_teacher) * temperature**2


def decoupled_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., 2022, arXiv:2203.08679, equation 7), times temperature squared.

    alpha weighs the divergence of (label's class, all others), beta that of the other classes among themselves; with
    alpha = 1 and beta = 1 - the teacher's probability of the label's class this is the plain soft-target loss. With
    two classes the second part is 0. A sample without a label takes the teacher's answer for it.

    Args:
        student: logits, (batch, classes), float; gradients flow.
        teacher: logits, (batch, classes), float; a constant.
        labels: (batch,), int64; -1 where there is none.
        temperature: softening factor, > 0, no unit.
        alpha: weight of the target class's part, >= 0.
        beta: weight of the other classes' part, >= 0.

    Returns:
        Scalar, nats per sample, mean over the batch.

    Raises:
        ValueError: shapes differ, or temperature <= 0.
    """
    log_student, log_teacher = _softened(student, teacher, temperature)
    target = torch.where(labels == HIDDEN, teacher.detach().argmax(dim=1), labels)
    chosen = F.one_hot(target, student.shape[1]).bool()
    binary = [_target_or_not(one, chosen) for one in (log_student, log_teacher)]
    others = [F.log_softmax(one.masked_fill(chosen, -torch.inf), dim=1)[~chosen] for one in (log_student, log_teacher)]
    rest = [one.reshape(len(student), -1) for one in others]
    return (alpha * _divergence(*binary) + beta * _divergence(*rest)) * temperature**2


def _target_or_not(log_probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Log of (probability of the chosen class, that of all others), (batch, 2)."""
    target = log_probabilities[chosen]
    others = torch.logsumexp(log_probabilities.masked_fill(chosen, -torch.inf), dim=1)
    return torch.stack([target, others], dim=1)


def logits_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits (Ba and Caruana, 2014, arXiv:1312.6184).

    Args:
        student: logits, (batch, classes), float; gradients flow.
        teacher: logits, (batch, classes), float; a constant.

    Returns:
        Scalar, mean over batch and classes.

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(student, teacher)
    return F.mse_loss(student.float(), teacher.detach().float())


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """1 - Pearson correlation of softened probabilities (DIST; Huang et al., 2022, arXiv:2205.10536).

    beta weighs the relation between the classes of each sample, gamma that between the samples of each class; both are
    multiplied by temperature squared, as in the authors' code. Where all values are equal, e.g. in a batch of one,
    there is no correlation, and its part is the constant 1.

    Args:
        student: logits, (batch, classes), float; gradients flow.
        teacher: logits, (batch, classes), float; a constant.
        temperature: softening factor, > 0, no unit.
        beta: weight of the relation between classes, >= 0.
        gamma: weight of the relation between samples, >= 0.

    Returns:
        Scalar, no unit, from 0 to 2 (beta + gamma) times temperature squared.

    Raises:
        ValueError: shapes differ, or temperature <= 0.
    """
    log_student, log_teacher = _softened(student, teacher, temperature)
    ours, theirs = log_student.exp(), log_teacher.exp()
    between_classes = 1 - _correlation(ours, theirs).mean()
    between_samples = 1 - _correlation(ours.T, theirs.T).mean()
    return (beta * between_classes + gamma * between_samples) * temperature**2


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's coefficient of each row, (rows,)."""
    left, right = (one - one.mean(dim=1, keepdim=True) for one in (left, right))
    return F.cosine_similarity(left, right, dim=1, eps=EPSILON)


def hard_loss(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels, over the samples that have one.

    Args:
        student: logits, (batch, classes), float; gradients flow.
        labels: (batch,), int64; -1 where the label may not be read.
        label_smoothing: share of each label spread evenly over all classes, in [0, 1)
            (Szegedy et al., 2016, arXiv:1512.00567).

    Returns:
        Scalar, nats per labelled sample, mean over these; 0 where there is none.
    """
    if bool((labels == HIDDEN).all()):
        return student.float().sum() * 0.0
    return F.cross_entropy(student.float(), labels, ignore_index=HIDDEN, label_smoothing=label_smoothing)


def logits_from_teachers(logits: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Merge several teachers into one whose softened probabilities are the weighted mean of theirs.

    Probabilities are averaged, not logits: a teacher's logits may carry any offset and scale, and the mean
    of probabilities is what an ensemble answers.

    Args:
        logits: (teachers, batch, classes), float.
        temperature: at which the mean is taken, > 0, no unit.
        weights: (teachers, batch), >= 0, each column adds up to 1; None weighs all teachers alike.

    Returns:
        (batch, classes): for one teacher its own logits; otherwise logits z with
        softmax(z / temperature) = weighted mean over teachers of softmax(logits / temperature).

    Raises:
        ValueError: not three axes, or temperature <= 0.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected (teachers, batch, classes), got {tuple(logits.shape)}")
    _check_temperature(temperature)
    if len(logits) == 1:
        return logits[0]
    log_probabilities = F.log_softmax(logits.float() / temperature, dim=2)
    if weights is None:
        return temperature * (torch.logsumexp(log_probabilities, dim=0) - math.log(len(logits)))
    return temperature * torch.logsumexp(log_probabilities + weights.log().unsqueeze(2), dim=0)


def mean_logits(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Merge several teachers into the weighted mean of their logits, for a loss that compares logits as they are.

    Args:
        logits: (teachers, batch, classes), float.
        weights: (teachers, batch), >= 0, each column adds up to 1; None weighs all teachers alike.

    Returns:
        (batch, classes), float32.

    Raises:
        ValueError: not three axes.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected (teachers, batch, classes), got {tuple(logits.shape)}")
    return logits.float().mean(dim=0) if weights is None else (weights.unsqueeze(2) * logits.float()).sum(dim=0)


def confidence_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """How much each of several teachers is listened to, sample by sample.

    A teacher weighs the less, the larger its cross-entropy with the label is:
    (1 - softmax over teachers of the cross-entropies) / (teachers - 1) (CA-MKD; Zhang et al., 2022,
    arXiv:2201.00007). Where a sample has no label, the entropy of the teacher's own answer takes its place.

    Args:
        logits: (teachers, batch, classes), float.
        labels: (batch,), int64; -1 where there is none.

    Returns:
        (teachers, batch), each column adds up to 1; of a single teacher ones.

    Raises:
        ValueError: not three axes.
    """
    if logits.ndim != 3:
        raise ValueError(f"expected (teachers, batch, classes), got {tuple(logits.shape)}")
    if len(logits) == 1:
        return torch.ones(logits.shape[:2], device=logits.device)
    log_probabilities = F.log_softmax(logits.float(), dim=2)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=2)
    wanted = labels.clamp(min=0).expand(len(logits), -1).unsqueeze(2)
    surprise = torch.where(labels == HIDDEN, entropy, -log_probabilities.gather(2, wanted).squeeze(2))
    return (1 - surprise.softmax(dim=0)) / (len(logits) - 1)


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log probabilities of both at a temperature, float32; the teacher's are constants."""
    _check_shapes(student, teacher)
    _check_temperature(temperature)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    return log_student, F.log_softmax(teacher.detach().float() / temperature, dim=1)


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"expected two (batch, classes), got {tuple(student.shape)} and {tuple(teacher.shape)}")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected > 0")
