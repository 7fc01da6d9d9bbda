"""A weighted mixture of losses, whose numbers may change while training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from compress.distillation.features import (
    attention_transfer_loss,
    attention_weights_loss,
    check_attention_weights,
    feature_mse_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_loss,
)
from compress.distillation.losses import (
    confidence_weights,
    decoupled_loss,
    dist_loss,
    hard_loss,
    logits_from_teachers,
    logits_mse_loss,
    mean_logits,
    soft_target_loss,
)
from compress.distillation.taps import Adapter, Taps, features_of
from compress.errors import ModelError, UsageError

HARD = "hard"
LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": soft_target_loss,
    "dkd": decoupled_loss,
    "logits_mse": logits_mse_loss,
    "dist": dist_loss,
}
FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hints": feature_mse_loss,
    "attention_transfer": attention_transfer_loss,
    "attention_weights": attention_weights_loss,
    "relational_distance": relational_distance_loss,
    "relational_angle": relational_angle_loss,
    "similarity": similarity_loss,
}
WITH_LABELS = ("dkd",)
ADAPTED = ("hints",)  # compares features of one shape
OF_WEIGHTS = ("attention_weights",)  # takes nothing but what a softmax puts out
Combine = Literal["mean", "confidence"]


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` over the steps of a training, along a line or half a cosine."""

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, done: float) -> float:
        """The number after a share `done` of the steps, in [0, 1]."""
        part = done if self.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * part


Number = float | Schedule


def value_at(number: Number, done: float) -> float:
    """A number, or what its schedule gives after a share `done` of the steps."""
    return number.at(done) if isinstance(number, Schedule) else number


@dataclass(frozen=True)
class Term:
    """One loss of a mixture.

    Attributes:
        loss: `hard`, or a name in LOGIT_LOSSES or FEATURE_LOSSES.
        weight: of the loss in the sum, >= 0.
        options: further arguments of the loss by name, e.g. temperature.
        pairs: (module of the student, module of the teacher) of a loss of features, which is the mean over them.
    """

    loss: str
    weight: Number = 1.0
    options: Mapping[str, Number] = field(default_factory=dict[str, Number])
    pairs: tuple[tuple[str, str], ...] = ()


class Mixture(nn.Module):
    """The weighted sum of some losses; its parameters are those of adapters, to be trained along.

    Args:
        terms: what is added up.
        combine: several teachers' probabilities are averaged, or weighted by confidence, see `confidence_weights`.

    Raises:
        UsageError: there is no term, or all weights are zero from the first step to the last.
    """

    def __init__(self, terms: Sequence[Term], combine: Combine = "mean") -> None:
        super().__init__()
        if not any(value_at(term.weight, done) > 0 for term in terms for done in (0.0, 1.0)):
            listed = ", ".join(f"{term.loss} {term.weight}" for term in terms) or "there is none"
            raise UsageError(f"The weights of all losses are zero ({listed}): nothing would be learned.")
        self.terms = tuple(terms)
        self.names = _distinct([term.loss for term in terms])
        self.combine: Combine = combine
        self.adapters = nn.ModuleDict()
        self._taps: tuple[Taps, Taps] | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (module of the student, module of the teacher) that is tapped."""
        return list(dict.fromkeys(pair for term in self.terms for pair in term.pairs))

    def tap(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
        """Start to keep the features that the terms need, and build the adapters that these need.

        Args:
            student: whose modules the pairs name first.
            teacher: whose modules they name second.
            images: a few, (batch, channels, height, width), which both networks take; batch >= 3.

        Raises:
            UsageError: features cannot be tapped, or do not fit each other.
        """
        left = features_of(student, [ours for ours, _ in self.pairs], images)
        right = features_of(teacher, [theirs for _, theirs in self.pairs], images)
        for term in self.terms:
            for ours, theirs in term.pairs:
                self._fit_pair(term.loss, ours, theirs, left[ours], right[theirs])
        self._taps = Taps(student, [*left]), Taps(teacher, [*right])

    def _fit_pair(self, loss: str, ours: str, theirs: str, student: Tensor, teacher: Tensor) -> None:
        """Build the adapter of a pair of taps from examples of what they put out, and try the loss on these."""
        key, pair = _key(ours, theirs), f"{ours}: {theirs}"
        if loss in ADAPTED and key not in self.adapters:
            self.adapters[key] = Adapter(student, teacher, pair)
        try:
            self._feature_loss(loss, student, teacher, key)
            for one in (student, teacher) if loss in OF_WEIGHTS else ():
                check_attention_weights(one)
        except ValueError as error:
            raise UsageError(
                f"Taps {pair} do not suit {loss}: {error}.", hint="Tap modules whose outputs this loss can compare."
            ) from error

    def close(self) -> None:
        """Take the taps off both networks."""
        for taps in self._taps or ():
            taps.close()
        self._taps = None

    def forward(
        self, logits: Tensor, teachers: Tensor | None, labels: Tensor, done: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the losses of a batch that both networks have just answered.

        Args:
            logits: the student's, (batch, classes).
            teachers: constants, (teachers, batch, classes); None where no term asks for them.
            labels: (batch,), int64; -1 where a label may not be read.
            done: share of the training's steps that were taken, in [0, 1].

        Returns:
            The scalar loss, and the loss of every term whose weight is not zero now, before it is weighted.

        Raises:
            ModelError: the teachers answer for another number of classes.
        """
        if teachers is not None and teachers.shape[1:] != logits.shape:
            raise ModelError(
                f"the teacher answers for {teachers.shape[-1]} classes, the student for {logits.shape[-1]}",
                hint="train both on the same data",
            )
        parts: dict[str, Tensor] = {}
        total = None
        for name, term in zip(self.names, self.terms, strict=True):
            if weight := value_at(term.weight, done):
                parts[name] = self._loss(term, logits, teachers, labels, done)
                part = weight * parts[name]
                total = part if total is None else total + part
        return (logits.sum() * 0.0 if total is None else total), parts

    def _loss(self, term: Term, logits: Tensor, teachers: Tensor | None, labels: Tensor, done: float) -> Tensor:
        options = {name: value_at(number, done) for name, number in term.options.items()}
        if term.loss == HARD:
            return hard_loss(logits, labels, **options)
        if term.loss in LOGIT_LOSSES:
            assert teachers is not None, "somebody has to teach"
            weights = confidence_weights(teachers, labels) if self.combine == "confidence" else None
            softened = "temperature" in options
            teacher = (
                logits_from_teachers(teachers, options["temperature"], weights)
                if softened
                else mean_logits(teachers, weights)
            )
            given = (labels,) if term.loss in WITH_LABELS else ()
            return LOGIT_LOSSES[term.loss](logits, teacher, *given, **options)
        assert self._taps is not None, "features are tapped first"
        ours, theirs = (taps.features for taps in self._taps)
        each = [self._feature_loss(term.loss, ours[one], theirs[two], _key(one, two)) for one, two in term.pairs]
        return sum(each[1:], each[0]) / len(each)

    def _feature_loss(self, loss: str, ours: Tensor, theirs: Tensor, key: str) -> Tensor:
        # training may run in bfloat16, losses and adapters do not
        adapted = self.adapters[key](ours.float()) if loss in ADAPTED else ours
        return FEATURE_LOSSES[loss](adapted, theirs)


def _key(ours: str, theirs: str) -> str:
    return f"{ours}->{theirs}".replace(".", "/")  # names of modules in a ModuleDict have no dots


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names; one that comes again gets a number."""
    return [
        name if names[:i].count(name) == 0 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]
