"""`losses` of a `distill` step: a weighted mixture, whose numbers may follow a schedule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compress.artifacts.manifest import OnnxModel
from compress.pipeline.stage import Kinds, StageConfig

if TYPE_CHECKING:
    from torch import nn

    from compress.distillation.mixture import Mixture


class NotNegativeSchedule(StageConfig):
    """A number >= 0 that changes over the steps of the training."""

    start: float = Field(ge=0, allow_inf_nan=False, description="at the first step")
    end: float = Field(ge=0, allow_inf_nan=False, description="when all steps are taken")
    shape: Literal["linear", "cosine"] = Field(default="linear", description="the way there")


class PositiveSchedule(NotNegativeSchedule):
    """A number > 0 that changes over the steps of the training."""

    start: float = Field(gt=0, allow_inf_nan=False, description="at the first step")
    end: float = Field(gt=0, allow_inf_nan=False, description="when all steps are taken")


def _tag(value: Any) -> str:
    return "schedule" if isinstance(value, dict | StageConfig) else "number"


Weight = Annotated[
    Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)], Tag("number")]
    | Annotated[NotNegativeSchedule, Tag("schedule")],
    Discriminator(_tag),
]
Temperature = Annotated[
    Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)], Tag("number")]
    | Annotated[PositiveSchedule, Tag("schedule")],
    Discriminator(_tag),
]


class LossConfig(StageConfig):
    """What every loss has."""

    weight: Weight = Field(default=1.0, description="of this loss in the sum")


class HardConfig(LossConfig):
    """Cross-entropy with the labels; the step's label_smoothing counts."""

    loss: Literal["hard"]


class KdConfig(LossConfig):
    """Softened KL divergence (Hinton et al., 2015)."""

    loss: Literal["kd"]
    temperature: Temperature = Field(default=4.0, description="softening of both logits; no unit")


class DkdConfig(LossConfig):
    """Decoupled KD (Zhao et al., 2022)."""

    loss: Literal["dkd"]
    temperature: Temperature = Field(default=4.0, description="softening of both logits; no unit")
    alpha: Weight = Field(default=1.0, description="weight of the label's class against all others")
    beta: Weight = Field(default=8.0, description="weight of the other classes among themselves")


class LogitsMseConfig(LossConfig):
    """Mean squared difference of logits (Ba and Caruana, 2014)."""

    loss: Literal["logits_mse"]


class DistConfig(LossConfig):
    """Correlation of probabilities (DIST; Huang et al., 2022)."""

    loss: Literal["dist"]
    temperature: Temperature = Field(default=1.0, description="softening of both logits; no unit")
    beta: Weight = Field(default=1.0, description="weight of the relation between classes")
    gamma: Weight = Field(default=1.0, description="weight of the relation between samples")


class FeatureConfig(LossConfig):
    """A loss between what layers put out."""

    loss: Literal[
        "hints", "attention_transfer", "attention_weights", "relational_distance", "relational_angle", "similarity"
    ]
    taps: dict[str, str] = Field(
        min_length=1,
        description="module of the student: module of the teacher; names, or patterns (blocks.*) paired in order",
    )


LossesConfig = Annotated[
    HardConfig | KdConfig | DkdConfig | LogitsMseConfig | DistConfig | FeatureConfig, Field(discriminator="loss")
]


class MixtureConfig(StageConfig):
    """Which losses a student minimises, unless plain distillation with temperature and kd_weight is enough."""

    losses: tuple[LossesConfig, ...] = Field(
        default=(), description="a weighted mixture instead of temperature and kd_weight"
    )
    combine: Literal["mean", "confidence"] = Field(
        default="mean", description="several teachers: mean of their probabilities, or weighted by confidence"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "MixtureConfig":
        if self.losses and not any(largest(one.weight) > 0 for one in self.losses):
            raise ValueError("the weights of all losses are zero: nothing would be learned")
        return self


def wrong_teachers(config: MixtureConfig, roles: Kinds) -> list[str]:
    """What these losses have against the teachers that are named, or against answers that were stored."""
    teachers, wrong = roles["teacher"], list[str]()
    for loss in dict.fromkeys(one.loss for one in config.losses if isinstance(one, FeatureConfig)):
        layers = f"`{loss}` compares layers with those of"
        instead = "or use losses of logits: kd, dkd, logits_mse, dist"
        if "answers" in roles:
            wrong.append(f"{layers} a teacher that runs, and `answers` are stored logits: leave them out, {instead}")
        if len(teachers) > 1:
            wrong.append(f"{layers} one teacher, but {len(teachers)} are named: name one, {instead}")
        elif issubclass(teachers[0], OnnxModel):
            wrong.append(f"{layers} its teacher, an ONNX file, which has none to tap: name a checkpoint, {instead}")
    if config.combine != "mean" and len(teachers) == 1:
        wrong.append(f"combine is {config.combine}, which weighs several teachers, but one is named: leave it out")
    return wrong


def largest(number: "float | NotNegativeSchedule") -> float:
    """The number, or the largest one of its schedule."""
    return max(number.start, number.end) if isinstance(number, NotNegativeSchedule) else number


def mixture_of(
    config: MixtureConfig, label_smoothing: float, student: "nn.Module", teachers: "Sequence[nn.Module]"
) -> "Mixture":
    """The mixture that a recipe asks for; tap it before training.

    Args:
        config: with losses.
        label_smoothing: of the hard loss, in [0, 1).
        student: whose modules taps name.
        teachers: the one whose modules they name; several where nothing is tapped.

    Raises:
        UsageError: a module that is not there, or patterns that do not pair.
    """
    from compress.distillation.mixture import Mixture, Term
    from compress.distillation.taps import pairs_named

    terms: list[Term] = []
    for one in config.losses:
        given = one.model_dump(exclude={"loss", "weight", "taps"})
        options = {name: number_of(getattr(one, name)) for name in given}
        if one.loss == "hard":
            options["label_smoothing"] = label_smoothing
        pairs = pairs_named(student, teachers[0], one.taps) if isinstance(one, FeatureConfig) else []
        terms.append(Term(one.loss, number_of(one.weight), options, tuple(pairs)))
    return Mixture(terms, config.combine)


def number_of(value: "float | NotNegativeSchedule") -> Any:
    """The number, or its schedule as plain values."""
    from compress.distillation.mixture import Schedule

    return Schedule(value.start, value.end, value.shape) if isinstance(value, NotNegativeSchedule) else value
