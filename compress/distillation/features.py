"""Losses between what layers of a student and of a teacher put out.

Every function takes the student's features, through which gradients flow, and the teacher's, which are constants. The
first axis is the batch; maps of convolutions are (batch, channels, height, width), tokens of transformers (batch,
tokens, channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ATTENTION_RANK = 4  # axes of maps, and of attention weights
HUBER_EDGE = 1.0


def feature_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features of one shape.

    Of maps these are the hints of FitNets (Romero et al., 2015, arXiv:1412.6550, equation 3, as a mean), of tokens the
    hidden states of TinyBERT (Jiao et al., 2020, arXiv:1909.10351, equation 8).

    Args:
        student: features, already of the teacher's shape, see `Adapter`.
        teacher: features.

    Returns:
        Scalar, mean over all elements.

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected two features of one shape, got {_shapes(student, teacher)}")
    return F.mse_loss(student.float(), teacher.detach().float())


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of normalised attention maps (Zagoruyko and Komodakis, 2017, arXiv:1612.03928, equation 2).

    The map of a sample is the mean over channels of the squared features, scaled to length 1; channels may differ.
    Where sizes differ, both are pooled to the smaller height and width first. As in the authors' code the squared
    differences are averaged over positions.

    Args:
        student: maps, (batch, channels, height, width).
        teacher: maps of the same batch.

    Returns:
        Scalar, mean over batch and positions.

    Raises:
        ValueError: not maps.
    """
    if student.ndim != ATTENTION_RANK or teacher.ndim != ATTENTION_RANK:
        raise ValueError(f"expected (batch, channels, height, width), got {_shapes(student, teacher)}")
    size = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    return (_attention_map(student, size) - _attention_map(teacher.detach(), size)).square().mean()


def _attention_map(features: Tensor, size: Sequence[int]) -> Tensor:
    pooled = F.adaptive_avg_pool2d(features.float().square().mean(dim=1), list(size))
    return F.normalize(pooled.flatten(1), dim=1)


def attention_weights_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of attention weights (Wang et al., 2020, MiniLM, arXiv:2002.10957, equation 4).

    Where the numbers of heads differ, both sides are averaged over heads first.

    Args:
        student: weights behind the softmax, (batch, heads, tokens, tokens), each row adds up to 1.
        teacher: the same, of as many tokens.

    Returns:
        Scalar, nats per row of weights, mean over batch, heads and rows.

    Raises:
        ValueError: not such weights, or of another number of tokens.
    """
    if student.ndim != ATTENTION_RANK or teacher.ndim != ATTENTION_RANK or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"expected (batch, heads, tokens, tokens) of as many tokens, got {_shapes(student, teacher)}")
    ours, theirs = student.float(), teacher.detach().float()
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(dim=1), theirs.mean(dim=1)
    smallest = torch.finfo(torch.float32).tiny
    log_ours, log_theirs = ours.clamp_min(smallest).log(), theirs.clamp_min(smallest).log()
    return (theirs * (log_theirs - log_ours)).sum(dim=-1).mean()


def relational_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D: Huber loss of pairwise distances, each over its mean (Park et al., 2019, arXiv:1904.05068, equations 5, 6).

    Args:
        student: features, (batch, ...), flattened here; batch >= 2.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all pairs of samples.

    Raises:
        ValueError: fewer than two samples, or batches that differ.
    """
    ours, theirs = _embeddings(student, teacher, 2)
    return F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs), beta=HUBER_EDGE)


def _relative_distances(embeddings: Tensor) -> Tensor:
    """Distances of all pairs over their mean, (batch * (batch - 1) / 2,)."""
    distances = torch.pdist(embeddings)
    return distances / distances.mean().clamp_min(1e-12)


def relational_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A: Huber loss of the cosines of all angles between three samples (Park et al., 2019, equations 7, 8).

    Args:
        student: features, (batch, ...), flattened here; batch >= 3.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all triplets of samples, those with two equal members included, which add nothing.

    Raises:
        ValueError: fewer than three samples, or batches that differ.
    """
    ours, theirs = _embeddings(student, teacher, 3)
    return F.smooth_l1_loss(_cosines(ours), _cosines(theirs), beta=HUBER_EDGE)


def _cosines(embeddings: Tensor) -> Tensor:
    """Of the angle at sample j between i and k, (batch, batch, batch) as [j, i, k]."""
    directions = F.normalize(embeddings.unsqueeze(0) - embeddings.unsqueeze(1), dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, 2019, arXiv:1907.09682, equations 2 to 4).

    Args:
        student: features, (batch, ...), flattened here.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all pairs of samples of the squared difference of row-normalised similarities.

    Raises:
        ValueError: batches differ.
    """
    ours, theirs = _embeddings(student, teacher, 1)
    similar, wanted = (F.normalize(one @ one.T, dim=1) for one in (ours, theirs))
    return (similar - wanted).square().mean()


def _embeddings(student: Tensor, teacher: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    """Both sides as (batch, values), float32."""
    if len(student) != len(teacher) or len(student) < fewest:
        raise ValueError(f"expected the same {fewest} or more samples, got {len(student)} and {len(teacher)}")
    return student.float().flatten(1), teacher.detach().float().flatten(1)


def _shapes(student: Tensor, teacher: Tensor) -> str:
    return f"{tuple(student.shape)} and {tuple(teacher.shape)}"
