"""`distill`: a student learns from one or several teachers and from the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifacts.manifest import Checkpoint
from compress.errors import ModelError
from compress.models.config import ModelConfig
from compress.pipeline.stage import Metrics, Stage, Workspace
from compress.stages.fitting import (
    LIBRARIES,
    check_fits,
    describe_network,
    fit_watched,
    load_teachers,
    settings_from_config,
    write_checkpoint,
)
from compress.stages.training_config import DistillationConfig, resolve_training

if TYPE_CHECKING:
    from compress.training.checkpoint import CheckpointDescription


class DistillConfig(DistillationConfig):
    """The student, and how much it listens to whom."""

    model: ModelConfig
    epochs: int = Field(ge=1, description="passes over the training split")


@dataclass(frozen=True)
class DistillInputs:
    """Who teaches, and where the student starts (default: from random weights)."""

    teacher: tuple[Checkpoint, ...]
    student: Checkpoint | None = None


def source_files(config: DistillConfig, base: Path) -> Sequence[Path]:
    """The user's code, whose contents are part of the key."""
    from compress.models import catalogue

    return catalogue.source_files(config.model, base)


def _network(description: "CheckpointDescription") -> str:
    return f"{dict(description.model)}" + (" with fake-quant" if description.scheme else "")


def run(config: DistillConfig, inputs: DistillInputs, workspace: Workspace) -> Metrics:
    """Fit the student to the softened logits of the teachers, averaged, and to the labels."""
    import torch

    from compress.data.datasets import load_dataset
    from compress.models.catalogue import build_model, check_model
    from compress.models.normalized import Normalized
    from compress.training.checkpoint import load_checkpoint
    from compress.training.objectives import distillation_objective
    from compress.training.teacher import TeacherLogits

    data = load_dataset(workspace.data, workspace.base)
    teachers = load_teachers(inputs.teacher, data, workspace)
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
    settings = settings_from_config(config, workspace.seed)
    teaching = TeacherLogits([one.module for one in teachers], settings, data.train)
    objective = distillation_objective(teaching, config.temperature, config.kd_weight, config.label_smoothing)
    fitted = fit_watched(workspace, module, objective, data.train, data.validation, settings)
    workspace.notes.append(teaching.describe())
    return write_checkpoint(workspace, module, description, data, fitted)


DISTILL = Stage(
    name="distill",
    version=1,
    config=DistillConfig,
    inputs=DistillInputs,
    output=Checkpoint,
    libraries=LIBRARIES,
    run=run,
    splits=("train", "validation"),
    seeded=True,
    resolve=resolve_training,
    sources=source_files,
)
