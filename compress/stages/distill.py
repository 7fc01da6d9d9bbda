"""`distill`: a student learns from one or several teachers and from the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress.artifacts.manifest import Checkpoint, OnnxModel, TeacherOutputs
from compress.errors import ModelError
from compress.models.config import ModelConfig
from compress.pipeline.stage import Kinds, Metrics, Stage, Workspace
from compress.stages.fitting import (
    LIBRARIES,
    Teacher,
    check_fits,
    describe_network,
    fit_watched,
    learning_data,
    load_teachers,
    network_of,
    write_checkpoint,
)
from compress.stages.init_config import InitConfig, source_of_layers, take_layers, wrong_source
from compress.stages.loss_config import FeatureConfig, MixtureConfig, largest, mixture_of, wrong_teachers
from compress.stages.teaching import report_teaching, teaching_from
from compress.stages.training_config import DistillationConfig, resolve_training

if TYPE_CHECKING:
    from torch import nn

    from compress.data.datasets import Dataset
    from compress.models.normalized import Normalized
    from compress.training.checkpoint import CheckpointDescription, Loaded
    from compress.training.objectives import MixtureObjective
    from compress.training.teacher import Teaching

EXAMPLES = 4  # images that tell which shapes features have, unless batches are smaller


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
            instead = {
                "temperature": "name it in each of the `losses` that take one",
                "kd_weight": "weigh the `losses`",
            }
            raise ValueError(f"`{changed[0]}` is of plain distillation: {instead[changed[0]]}, or leave these out")
        return self


@dataclass(frozen=True)
class DistillInputs:
    """Who teaches, what was answered beforehand, and whose weights the student starts from: all, or those of `init`."""

    teacher: tuple[Checkpoint | OnnxModel, ...]
    answers: TeacherOutputs | None = None
    student: Checkpoint | None = None


def source_files(config: DistillConfig, base: Path) -> Sequence[Path]:
    """The user's code, whose contents are part of the key."""
    from compress.models import catalogue

    return catalogue.source_files(config.model, base)


def check(config: DistillConfig, roles: Kinds) -> list[str]:
    """What losses and `init` have against the steps that are named."""
    return wrong_teachers(config, roles) + (wrong_source(config.init, roles) if config.init else [])


def _network(description: "CheckpointDescription") -> str:
    return f"{dict(description.model)}" + (" with fake-quant" if description.scheme else "")


def run(config: DistillConfig, inputs: DistillInputs, workspace: Workspace) -> Metrics:
    """Fit the student to its teachers and to the labels: to softened logits, or to a mixture of losses."""
    data = learning_data(config, workspace, taught=True)
    tapped = any(isinstance(one, FeatureConfig) for one in config.losses)
    why = "losses compare what layers put out" if tapped else ""
    teaching, settings, teachers = teaching_from(
        config, inputs.teacher, inputs.answers, data, workspace, live_because=why
    )
    if config.init and inputs.answers:  # nobody teaches, but layers are taken over
        teachers = load_teachers(inputs.teacher, data, workspace)
    module, description = _student(config, inputs, teachers, data, workspace)
    objective = _objective(config, teaching, module, teachers, data)
    try:
        fitted = fit_watched(workspace, module, objective, data.train, data.validation, settings)
    finally:
        objective.mixture.close()
    return [*write_checkpoint(workspace, module, description, data, fitted), *report_teaching(teaching, workspace)]


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
    teaching: "Teaching",
    module: "nn.Module",
    teachers: Sequence[Teacher],
    data: "Dataset",
) -> "MixtureObjective":
    """What the student minimises; its taps are on."""
    import torch

    from compress.training.objectives import MixtureObjective, distillation_objective

    if not config.losses:
        return distillation_objective(
            teaching, config.temperature, config.kd_weight, config.label_smoothing, config.combine
        )
    student, networks = network_of(module), [network_of(one.module) for one in teachers]
    mixture = mixture_of(config, config.label_smoothing, student, networks)
    if mixture.pairs:
        smallest = min(EXAMPLES, config.batch_size, len(data.train))
        mixture.tap(student, networks[0], torch.zeros(smallest, *data.image_shape))
    return MixtureObjective(mixture, teaching)


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
    check=check,
)
