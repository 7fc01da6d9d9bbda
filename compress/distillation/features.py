"""Losses between what layers of a student and of a teacher put out.

Every function takes the student's features, through which gradients flow, and the teacher's, which are constants. The
first axis is the batch; maps of convolutions are (batch, channels, height, width), tokens of transformers (batch,
tokens, channels).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MAP_RANK = 4  # axes of maps, and of attention weights
HUBER_EDGE = 1.0
EPSILON = 1e-12  # what is shorter counts as nothing
SUM_TOLERANCE = 0.02  # of a row of attention weights: bfloat16 has 8 bits


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
    Where sizes differ, both maps are averaged to the smaller height and width before they are scaled. As in the
    authors' code the squared differences are averaged over positions.

    Args:
        student: maps, (batch, channels, height, width).
        teacher: maps of the same batch.

    Returns:
        Scalar, mean over batch and positions.

    Raises:
        ValueError: not maps, or batches that differ.
    """
    if student.ndim != MAP_RANK or teacher.ndim != MAP_RANK or len(student) != len(teacher):
        raise ValueError(f"expected (batch, channels, height, width) twice, got {_shapes(student, teacher)}")
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return (_attention_map(student, size) - _attention_map(teacher.detach(), size)).square().mean()


def _attention_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    pooled = F.adaptive_avg_pool2d(features.float().square().mean(dim=1), size)
    return _unit(pooled.flatten(1))


def attention_weights_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of attention weights (MiniLM; Wang et al., 2020, arXiv:2002.10957, section 3.1).

    Where the numbers of heads differ, both sides are averaged over heads first.

    Args:
        student: weights behind the softmax, (batch, heads, tokens, tokens), each row adds up to 1.
        teacher: the same, of as many tokens.

    Returns:
        Scalar, nats per row of weights, mean over batch, heads and rows.

    Raises:
        ValueError: four axes are not there, or the numbers of samples or tokens differ. Values are not looked at, see
            `check_attention_weights`.
    """
    ranks = student.ndim, teacher.ndim
    if ranks != (MAP_RANK, MAP_RANK) or len(student) != len(teacher) or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"expected (batch, heads, tokens, tokens) of as many tokens, got {_shapes(student, teacher)}")
    ours, theirs = student.float(), teacher.detach().float()
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(dim=1), theirs.mean(dim=1)
    smallest = torch.finfo(torch.float32).tiny
    log_ours, log_theirs = ours.clamp_min(smallest).log(), theirs.clamp_min(smallest).log()
    return (theirs * (log_theirs - log_ours)).sum(dim=-1).mean()


def check_attention_weights(weights: Tensor) -> None:
    """Refuse what no softmax over the last axis puts out.

    Args:
        weights: (batch, heads, tokens, tokens).

    Raises:
        ValueError: a weight is negative or not finite, or a row does not add up to 1.
    """
    sums = weights.float().sum(dim=-1)
    if not (bool((weights >= 0).all()) and bool(((sums - 1).abs() <= SUM_TOLERANCE).all())):
        raise ValueError(
            f"expected weights behind a softmax, rows of numbers >= 0 that add up to 1, got rows that add up to "
            f"{sums.min().item():.3g} to {sums.max().item():.3g}, the smallest number {weights.min().item():.3g}"
        )


def relational_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D: Huber loss of pairwise distances over their mean (Park et al., 2019, arXiv:1904.05068, section 3.2.1).

    Args:
        student: features, (batch, ...), flattened here; batch >= 2.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all pairs of samples.

    Raises:
        ValueError: fewer than two samples, or batches that differ.
    """
    ours, theirs = (_relative(torch.pdist(one)) for one in _embeddings(student, teacher, 2))
    return F.smooth_l1_loss(ours, theirs, beta=HUBER_EDGE)


def _relative(distances: Tensor) -> Tensor:
    return distances / distances.mean().clamp_min(EPSILON)


def relational_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A: Huber loss of the cosines of all angles between three samples (Park et al., 2019, section 3.2.2).

    Args:
        student: features, (batch, ...), flattened here; batch >= 3.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all triplets of samples, as in the authors' code also those that name a sample twice, which
        add nothing.

    Raises:
        ValueError: fewer than three samples, or batches that differ.
    """
    ours, theirs = (_cosines(one) for one in _embeddings(student, teacher, 3))
    return F.smooth_l1_loss(ours, theirs, beta=HUBER_EDGE)


def _cosines(embeddings: Tensor) -> Tensor:
    """Of the angle at sample j between i and k, (batch, batch, batch) as [j, i, k]; 0 where i or k coincides with j.

    By the law of cosines: the differences of all pairs would take batch times the memory of the features.
    """
    count = len(embeddings)
    first, second = torch.triu_indices(count, count, 1, device=embeddings.device)
    upper = embeddings.new_zeros(count, count).index_put((first, second), torch.pdist(embeddings))
    distances = upper + upper.T
    apart = distances > 0
    inverse = torch.where(apart, distances, 1.0).reciprocal() * apart
    squares = distances.square()
    doubled = squares.unsqueeze(2) + squares.unsqueeze(1) - squares.unsqueeze(0)
    return (doubled * inverse.unsqueeze(2) * inverse.unsqueeze(1) / 2).clamp(-1, 1)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, 2019, arXiv:1907.09682).

    Args:
        student: features, (batch, ...), flattened here.
        teacher: features of the same batch, of any other shape.

    Returns:
        Scalar, mean over all pairs of samples of the squared difference of row-normalised similarities.

    Raises:
        ValueError: batches differ.
    """
    ours, theirs = _embeddings(student, teacher, 1)
    similar, wanted = (_unit(one @ one.T) for one in (ours, theirs))
    return (similar - wanted).square().mean()


def _unit(rows: Tensor) -> Tensor:
    """Each row at length 1; one of zeros stays, and its gradient does not explode as that of F.normalize would."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > EPSILON, length, 1.0)


def _embeddings(student: Tensor, teacher: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    """Both sides as (batch, values), float32."""
    if min(student.ndim, teacher.ndim) < 2:
        raise ValueError(f"expected values for each sample, (batch, ...), got {_shapes(student, teacher)}")
    if len(student) != len(teacher) or len(student) < fewest:
        raise ValueError(f"expected the same {fewest} or more samples, got {len(student)} and {len(teacher)}")
    return student.float().flatten(1), teacher.detach().float().flatten(1)


def _shapes(student: Tensor, teacher: Tensor) -> str:
    return f"{tuple(student.shape)} and {tuple(teacher.shape)}"
