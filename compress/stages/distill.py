"""`distill`: a student learns from one or several teachers and from the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress.artifacts.manifest import Checkpoint, TeacherOutputs
from compress.errors import ModelError
from compress.models.config import ModelConfig
from compress.pipeline.stage import Metrics, Stage, Workspace
from compress.stages.fitting import (
    LIBRARIES,
    check_fits,
    describe_network,
    fit_watched,
    learning_data,
    write_checkpoint,
)
from compress.stages.loss_config import FeatureConfig, MixtureConfig, largest, mixture_of
from compress.stages.teaching import report_teaching, teaching_from
from compress.stages.training_config import DistillationConfig, resolve_training

if TYPE_CHECKING:
    from torch import nn

    from compress.data.datasets import Dataset
    from compress.training.checkpoint import CheckpointDescription
    from compress.training.objectives import MixtureObjective
    from compress.training.teacher import Teaching

EXAMPLES = 4  # images that tell which shapes features have, unless batches are smaller


class DistillConfig(DistillationConfig, MixtureConfig):
    """The student, and how much it listens to whom."""

    model: ModelConfig
    epochs: int = Field(ge=1, description="passes over the training split")

    @property
    def hard_weight(self) -> float:
        """Largest weight of the loss that reads labels."""
        hard = [largest(one.weight) for one in self.losses if one.loss == "hard"]
        return max(hard, default=0.0) if self.losses else 1 - self.kd_weight

    @model_validator(mode="after")
    def _one_way(self) -> "DistillConfig":
        # not model_fields_set: a config that is read back has every field set
        fields = DistillConfig.model_fields
        changed = [name for name in ("temperature", "kd_weight") if getattr(self, name) != fields[name].default]
        if self.losses and changed:
            instead = {
                "temperature": "name it in each of the `losses` that take one",
                "kd_weight": "weigh the `losses`",
            }
            raise ValueError(f"`{changed[0]}` is of plain distillation: {instead[changed[0]]}, or leave these out")
        return self


@dataclass(frozen=True)
class DistillInputs:
    """Who teaches, what was answered beforehand, and where the student starts (default: from random weights)."""

    teacher: tuple[Checkpoint, ...]
    answers: TeacherOutputs | None = None
    student: Checkpoint | None = None


def source_files(config: DistillConfig, base: Path) -> Sequence[Path]:
    """The user's code, whose contents are part of the key."""
    from compress.models import catalogue

    return catalogue.source_files(config.model, base)


def _network(description: "CheckpointDescription") -> str:
    return f"{dict(description.model)}" + (" with fake-quant" if description.scheme else "")


def run(config: DistillConfig, inputs: DistillInputs, workspace: Workspace) -> Metrics:
    """Fit the student to its teachers and to the labels: to softened logits, or to a mixture of losses."""
    import torch

    from compress.models.catalogue import build_model, check_model
    from compress.models.normalized import Normalized
    from compress.training.checkpoint import load_checkpoint

    data = learning_data(config, workspace, taught=True)
    tapped = any(isinstance(one, FeatureConfig) for one in config.losses)
    why = "losses compare what layers put out" if tapped else ""
    teaching, settings = teaching_from(config, inputs.teacher, inputs.answers, data, workspace, live_because=why)
    torch.manual_seed(workspace.seed)
    net = build_model(config.model, image_shape=data.image_shape, classes=len(data.classes), base=workspace.base)
    mean, std = data.train.channel_statistics()
    if inputs.student:
        initial = load_checkpoint(inputs.student.path, workspace.base)
        check_fits(initial.description, data, f"step {inputs.student.step!r}")
        mean, std = initial.description.mean, initial.description.std
    module = Normalized(net, mean, std)
    check_model(module, data.image_shape, len(data.classes))
    description = describe_network(config.model, data, mean, std, workspace.base)
    if inputs.student:
        if initial.description.scheme or initial.description.model != description.model:
            raise ModelError(
                f"step {inputs.student.step!r} cannot be the initial student: its network is "
                f"{_network(initial.description)}, this step's is {_network(description)}",
                hint="give both steps the same `model:`, or leave `student:` out to start from random weights",
            )
        module.load_state_dict(initial.module.state_dict())
    objective = _objective(config, teaching, module, data)
    try:
        fitted = fit_watched(workspace, module, objective, data.train, data.validation, settings)
    finally:
        objective.mixture.close()
    return [*write_checkpoint(workspace, module, description, data, fitted), *report_teaching(teaching, workspace)]


def _objective(config: DistillConfig, teaching: "Teaching", module: "nn.Module", data: "Dataset") -> "MixtureObjective":
    """What the student minimises; its taps are on."""
    import torch

    from compress.training.objectives import MixtureObjective, distillation_objective
    from compress.training.teacher import TeacherLogits

    if not config.losses:
        return distillation_objective(
            teaching, config.temperature, config.kd_weight, config.label_smoothing, config.combine
        )
    running = teaching.modules if isinstance(teaching, TeacherLogits) else []
    student, *teachers = (_inner(one) for one in (module, *running))
    mixture = mixture_of(config, config.label_smoothing, student, teachers)
    if mixture.pairs:
        smallest = min(EXAMPLES, config.batch_size, len(data.train))
        mixture.tap(student, teachers[0], torch.zeros(smallest, *data.image_shape))
    return MixtureObjective(mixture, teaching)


def _inner(module: "nn.Module") -> "nn.Module":
    """The network whose modules taps name, inside of its normalisation; one with fake-quant has that in it."""
    from compress.models.normalized import Normalized

    return module.net if isinstance(module, Normalized) else module


DISTILL = Stage(
    name="distill",
    version=1,
    config=DistillConfig,
    inputs=DistillInputs,
    output=Checkpoint,
    libraries=LIBRARIES,
    run=run,
    splits=("train", "validation", "unlabelled"),
    seeded=True,
    resolve=resolve_training,
    sources=source_files,
)
