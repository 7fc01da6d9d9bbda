"""A network that is taught by the moving average of its own weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compress.data.loader import Batch
from compress.distillation.mixture import Mixture, Number, Schedule, Term
from compress.training.objectives import MixtureObjective
from compress.training.teacher import logits_of, placed


class AveragedTeacher:
    """Callable from a batch to the logits of the average of a network's weights so far, (1, batch, classes).

    The mean teacher of Tarvainen and Valpola (2017, arXiv:1703.01780): at each call, one a step, the weights that the
    last step left are averaged in, then the average answers in evaluation mode without gradients. It starts as the
    plain mean over the steps, and is the exponential one as soon as that looks back less far. Statistics of batch-norm
    are averaged like weights; counts are copied.

    Args:
        module: in training; images in [0, 1] to logits.
        decay: of the average per step, in [0, 1).
        precision: fp32, or bf16 for bfloat16 autocast.
    """

    def __init__(self, module: nn.Module, decay: float, precision: str = "fp32") -> None:
        self.module = module
        self.decay = decay
        self.precision = precision
        self.steps = 0
        self.average = copy.deepcopy(module).eval().requires_grad_(False)

    def __call__(self, batch: Batch) -> Tensor:
        """Average, then answer: logits, float32, on the device of the batch's images."""
        if not self.steps:
            placed(self.average, batch.images.device)
        self._follow()
        return logits_of(self.average, batch.images, self.precision).unsqueeze(0)

    @torch.no_grad()
    def _follow(self) -> None:
        self.steps += 1
        decay = min(self.decay, 1 - 1 / self.steps)
        for mean, now in zip(self.average.state_dict().values(), self.module.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


def self_distillation_objective(
    module: nn.Module,
    decay: float,
    temperature: float,
    kd_weight: Number,
    label_smoothing: float = 0.0,
    precision: str = "fp32",
) -> MixtureObjective:
    """kd_weight x soft-target loss against the network's own average + (1 - kd_weight) x cross-entropy with the labels.

    Args:
        module: the network that is going to be trained.
        decay: of the average per step, in [0, 1).
        temperature: softening factor of both sides, > 0, no unit.
        kd_weight: share of the soft-target loss, in [0, 1]; a schedule may let it grow as the average gets better
            (Kim et al., 2021, arXiv:2006.12000).
        label_smoothing: of the hard loss, in [0, 1).
        precision: of the average's answers, fp32 or bf16.

    Returns:
        An objective with the parts `kd` (scaled by temperature squared) and `hard`: nats per sample, mean over the
        batch.
    """
    rest = (
        Schedule(1 - kd_weight.start, 1 - kd_weight.end, kd_weight.shape)
        if isinstance(kd_weight, Schedule)
        else 1 - kd_weight
    )
    soft = Term("kd", kd_weight, {"temperature": temperature})
    hard = Term("hard", rest, {"label_smoothing": label_smoothing})
    return MixtureObjective(Mixture([soft, hard]), AveragedTeacher(module, decay, precision))
