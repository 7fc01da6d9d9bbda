"""`distill`: a student learns from one or several teachers and from the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress.artifacts.manifest import Checkpoint, OnnxModel
from compress.errors import ModelError, UsageError
from compress.models.config import ModelConfig
from compress.pipeline.stage import Metrics, Stage, Workspace
from compress.stages.fitting import (
    LIBRARIES,
    Teacher,
    check_fits,
    describe_network,
    learning_data,
    load_teachers,
    network_of,
    settings_from_config,
    write_checkpoint,
)
from compress.stages.init_config import InitConfig, source_of_layers, take_layers
from compress.stages.loss_config import FeatureConfig, MixtureConfig, largest, mixture_of
from compress.stages.training_config import DistillationConfig, resolve_training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.data.datasets import Dataset
    from compress.models.normalized import Normalized
    from compress.training.checkpoint import CheckpointDescription, Loaded
    from compress.training.objectives import MixtureObjective
    from compress.training.teacher import TeacherLogits

EXAMPLES = 4  # images that tell which shapes features have


class DistillConfig(DistillationConfig, MixtureConfig):
    """The student, and how much it listens to whom."""

    model: ModelConfig
    epochs: int = Field(ge=1, description="passes over the training split")
    init: InitConfig | None = Field(default=None, description="layers that the student starts from")

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
            raise ValueError(f"`{changed[0]}` belongs to plain distillation; with `losses`, say it there")
        return self


@dataclass(frozen=True)
class DistillInputs:
    """Who teaches, and whose weights the student starts from: all of them, or the layers that `init` names."""

    teacher: tuple[Checkpoint | OnnxModel, ...]
    student: Checkpoint | None = None


def source_files(config: DistillConfig, base: Path) -> Sequence[Path]:
    """The user's code, whose contents are part of the key."""
    from compress.models import catalogue

    return catalogue.source_files(config.model, base)


def _network(description: "CheckpointDescription") -> str:
    return f"{dict(description.model)}" + (" with fake-quant" if description.scheme else "")


def run(config: DistillConfig, inputs: DistillInputs, workspace: Workspace) -> Metrics:
    """Fit the student to the softened logits of the teachers, combined, and to the labels."""
    from compress.training.loop import fit
    from compress.training.teacher import TeacherLogits

    data = learning_data(config, workspace, taught=True)
    settings = settings_from_config(config, workspace.seed)
    teachers = load_teachers(inputs.teacher, data, workspace, settings.threads)
    module, description = _student(config, inputs, teachers, data, workspace)
    tapped = any(isinstance(one, FeatureConfig) for one in config.losses)
    why = "losses compare what layers put out" if tapped else None
    teaching = TeacherLogits([one.module for one in teachers], settings, data.train, live=why)
    objective = _objective(config, teaching, module, teachers, data)
    try:
        fitted = fit(module, objective, data.train, data.validation, settings)
    finally:
        objective.mixture.close()
    workspace.notes.append(teaching.describe())
    return write_checkpoint(workspace, module, description, data, fitted)


def _student(
    config: DistillConfig, inputs: DistillInputs, teachers: list[Teacher], data: "Dataset", workspace: Workspace
) -> "tuple[Normalized, CheckpointDescription]":
    """The student before its first step: from random weights, another student, or layers of either."""
    import torch

    from compress.models.catalogue import build_model, check_model
    from compress.models.normalized import Normalized
    from compress.training.checkpoint import load_checkpoint

    torch.manual_seed(workspace.seed)
    net = build_model(config.model, image_shape=data.image_shape, classes=len(data.classes), base=workspace.base)
    source = None
    if inputs.student:
        source = load_checkpoint(inputs.student.path, workspace.base)
        check_fits(source.description, data, f"step {inputs.student.step!r}")
    if config.init:
        source = source_of_layers(config.init, teachers, source)
    # layers that are taken over go on to see what they were trained on
    known = (source.description.mean, source.description.std) if source else data.train.channel_statistics()
    module = Normalized(net, *known)
    check_model(module, data.image_shape, len(data.classes))
    description = describe_network(config.model, data, *known, workspace.base)
    if config.init and source:
        workspace.notes.append(take_layers(config.init, module, source))
    elif inputs.student and source:
        _take_all(module, description, source, inputs.student.step)
    return module, description


def _take_all(module: "nn.Module", description: "CheckpointDescription", initial: "Loaded", step: str) -> None:
    if initial.description.scheme or initial.description.model != description.model:
        raise ModelError(
            f"step {step!r} cannot be the initial student: its network is {_network(initial.description)}, this "
            f"step's is {_network(description)}",
            hint="give both steps the same `model:`, name layers in `init: {from: student}`, or leave `student:` out to"
            " start from random weights",
        )
    module.load_state_dict(initial.module.state_dict())


def _objective(
    config: DistillConfig,
    teaching: "TeacherLogits",
    module: "nn.Module",
    teachers: list[Teacher],
    data: "Dataset",
) -> "MixtureObjective":
    """What the student minimises; its taps are on."""
    from compress.training.objectives import MixtureObjective, distillation_objective

    if not config.losses:
        return distillation_objective(
            teaching, config.temperature, config.kd_weight, config.label_smoothing, config.combine
        )
    # names are those of the networks, inside of their normalisation
    student, networks = network_of(module), [network_of(one.module) for one in teachers]
    _refuse_taps_of_files(config, teachers)
    mixture = mixture_of(config, config.label_smoothing, student, networks)
    if mixture.pairs:
        mixture.tap(student, networks[0], _example(data))
    return MixtureObjective(mixture, teaching)


def _refuse_taps_of_files(config: DistillConfig, teachers: Sequence[Teacher]) -> None:
    tapped = [one.loss for one in config.losses if isinstance(one, FeatureConfig)]
    files = [one.step for one in teachers if one.loaded is None]
    if tapped and files:
        raise UsageError(
            f"`{tapped[0]}` compares layers, and the teacher of step {files[0]!r} is an ONNX file, whose layers cannot"
            " be tapped",
            hint="name a checkpoint as teacher, or use losses of logits: kd, dkd, logits_mse, dist",
        )


def _example(data: "Dataset") -> "Tensor":
    import torch

    return torch.from_numpy(data.train.images[:EXAMPLES]).float() / 255


DISTILL = Stage(
    name="distill",
    version=1,
    config=DistillConfig,
    inputs=DistillInputs,
    output=Checkpoint,
    libraries=(*LIBRARIES, "onnxruntime"),
    run=run,
    splits=("train", "validation", "unlabelled"),
    seeded=True,
    resolve=resolve_training,
    sources=source_files,
)
