"""The knobs that `train`, `distill`, `qat` and `answers` share, and what `auto` becomes in them."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from compress.pipeline.machine import resolve_device, resolve_precision, resolve_threads
from compress.pipeline.stage import StageConfig


class ViewingConfig(StageConfig):
    """How training images are shown to a network, and what computes."""

    flip: bool = Field(default=False, description="mirror half of the images left to right")
    shift_px: int = Field(default=0, ge=0, description="largest random shift, pixels, zeros moved in")
    views: int | None = Field(
        default=None,
        ge=1,
        description="with shift_px: draw the flips and shifts of every image so many times, from the recipe's seed, and"
        " show one of these views each epoch, so that a teacher's answers come again; left out: drawn anew each epoch",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPU where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the processor has it"
    )
    threads: int | Literal["auto"] = Field(default="auto", description="CPU threads; another count gives other weights")

    @model_validator(mode="after")
    def _views_of_shifts(self) -> Self:
        if self.views is not None and self.shift_px == 0:
            images = "two, as it is and mirrored" if self.flip else "one"
            raise ValueError(f"views is {self.views}, but without shift_px an image has {images}: leave views out")
        return self


class TrainingConfig(ViewingConfig):
    """How weights are fitted; every rate is per step, every fraction in [0, 1]."""

    epochs: int = Field(ge=0, description="passes over the training split; 0 only where weights are brought")
    batch_size: int = Field(default=128, ge=2, description="samples per step")
    learning_rate: float = Field(default=0.1, gt=0, description="peak of the schedule, per step")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd is with Nesterov momentum")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; no unit")
    weight_decay: float = Field(default=5e-4, ge=0, description="per step, as the optimizer defines it")
    schedule: Literal["one_cycle", "cosine", "step"] = Field(default="one_cycle", description="of the learning rate")
    milestones: tuple[int, ...] = Field(
        default=(), description="schedule step: epochs after which the learning rate falls to a tenth, ascending"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the label spread over all classes")
    labels: Annotated[int, Field(ge=1, strict=True)] | Literal["all", "none"] = Field(
        default="all",
        description="how many training labels may be read, balanced over the classes; all others are hidden, and the"
        " last epoch is kept, because choosing one would read labels too",
    )

    @model_validator(mode="after")
    def _check_milestones(self) -> Self:
        given = self.milestones
        if bool(given) != (self.schedule == "step"):
            what = "needs `milestones`, e.g. [150, 180, 210] of 240 epochs" if not given else "takes no `milestones`"
            raise ValueError(f"schedule {self.schedule} {what}")
        if list(given) != [epoch for epoch in range(1, self.epochs) if epoch in given]:
            raise ValueError(
                f"milestones are {list(given)}, expected epochs in ascending order, from 1 to below {self.epochs}"
            )
        return self


class DistillationConfig(TrainingConfig):
    """Training with soft targets beside the labels."""

    temperature: float = Field(default=4.0, gt=0, description="softening of both logits; no unit")
    kd_weight: float = Field(default=0.9, ge=0, le=1, description="share of the soft loss; the rest is the hard loss")

    @property
    def hard_weight(self) -> float:
        """Largest weight of the loss that reads labels."""
        return 1 - self.kd_weight

    @model_validator(mode="after")
    def _labels_for_the_hard_loss(self) -> Self:
        if self.labels == "none" and self.hard_weight > 0:
            raise ValueError(
                f"labels is none, but the hard loss, which reads them, has the weight {self.hard_weight:.3g}; expected"
                " kd_weight: 1, or `losses` without `hard`"
            )
        return self


C = TypeVar("C", bound=ViewingConfig)


def resolve_training(config: C) -> C:
    """Replace every `auto` by what it becomes on this machine."""
    device = resolve_device(config.device)
    return config.model_copy(
        update={
            "device": device,
            "precision": resolve_precision(config.precision, device),
            "threads": resolve_threads(config.threads),
        }
    )
