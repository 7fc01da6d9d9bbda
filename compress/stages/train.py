"""`train`: a network learns from labels, or brings the weights that the user trained elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress.artifacts.manifest import Checkpoint
from compress.models.config import ModelConfig
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.fitting import (
    LIBRARIES,
    check_fits,
    describe_network,
    fit_watched,
    learning_data,
    settings_from_config,
    write_checkpoint,
)
from compress.stages.loss_config import NotNegativeSchedule, Weight, largest, number_of
from compress.stages.training_config import TrainingConfig, resolve_training

if TYPE_CHECKING:
    from torch import nn

    from compress.training.objectives import Objective


class SelfDistillationConfig(StageConfig):
    """How a network is taught by the average of its own weights (Tarvainen and Valpola, 2017)."""

    decay: float = Field(default=0.999, ge=0, lt=1, description="of the average, per step; no unit")
    temperature: float = Field(default=4.0, gt=0, description="softening of both logits; no unit")
    kd_weight: Weight = Field(
        default=NotNegativeSchedule(start=0.0, end=0.8),
        description="share of the soft loss, at most 1; the rest is the hard loss",
    )

    @model_validator(mode="after")
    def _a_share(self) -> "SelfDistillationConfig":
        if largest(self.kd_weight) > 1:
            raise ValueError(f"kd_weight reaches {largest(self.kd_weight):g}, expected at most 1")
        return self


class TrainConfig(TrainingConfig):
    """A network, where its weights come from, and how they are fitted."""

    model: ModelConfig
    epochs: int = Field(default=0, ge=0, description="passes over the training split; may be 0 with `weights`")
    weights: str | None = Field(
        default=None, description="safetensors or .pt file to start from, relative to the recipe"
    )
    mean: tuple[float, ...] | None = Field(default=None, description="per channel, of pixel / 255; default: see `std`")
    std: tuple[float, ...] | None = Field(
        default=None, description="per channel; default: of the training split, or none where weights are brought"
    )
    self_distillation: SelfDistillationConfig | None = Field(
        default=None, description="soft targets from the moving average of the network's own weights"
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="the order of the brought weights' outputs, checked"
    )

    @model_validator(mode="after")
    def _complete(self) -> "TrainConfig":
        if self.weights is None and self.epochs == 0:
            raise ValueError("expected epochs >= 1, or weights to bring")
        if self.epochs and self.labels == "none":
            raise ValueError("labels is none, and `train` learns from labels alone; expected a number, or `distill`")
        if self.self_distillation and not self.epochs:
            raise ValueError("self_distillation happens while training; expected epochs >= 1")
        if (self.mean is None) != (self.std is None):
            raise ValueError("expected mean and std together")
        return self


@dataclass(frozen=True)
class TrainInputs:
    """Nothing: it starts from data."""


def source_files(config: TrainConfig, base: Path) -> Sequence[Path]:
    """The user's code and weights, whose contents are part of the key."""
    from compress.models import catalogue

    weights = [base / config.weights] if config.weights else []
    return [*catalogue.source_files(config.model, base), *weights]


def run(config: TrainConfig, inputs: TrainInputs, workspace: Workspace) -> Metrics:
    """Build, load what is brought, fit, save."""
    import torch

    from compress.models.catalogue import build_model, check_model
    from compress.models.normalized import Normalized
    from compress.models.pretrained import load_weights

    # its own average can teach images whose label is hidden, as long as it sees some labels
    data = learning_data(config, workspace, taught=config.self_distillation is not None, unlabelled=False)
    torch.manual_seed(workspace.seed)
    net = build_model(config.model, image_shape=data.image_shape, classes=len(data.classes), base=workspace.base)
    if config.weights:
        load_weights(net, workspace.base / config.weights)
    channels = data.image_shape[0]
    if config.mean and config.std:
        mean, std = config.mean, config.std
    elif config.weights:
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = data.train.channel_statistics()
    module = Normalized(net, mean, std)
    check_model(module, data.image_shape, len(data.classes))
    description = describe_network(config.model, data, mean, std, workspace.base)
    if config.classes:
        description = replace(description, classes=config.classes)
    check_fits(description, data, f"step {workspace.step!r}")
    fitted = None
    if config.epochs:
        settings = settings_from_config(config, workspace.seed)
        objective = _objective(config, module, workspace)
        fitted = fit_watched(workspace, module, objective, data.train, data.validation, settings)
    return write_checkpoint(workspace, module, description, data, fitted)


def _objective(config: TrainConfig, module: "nn.Module", workspace: Workspace) -> "Objective":
    from compress.training.objectives import hard_objective
    from compress.training.self_distillation import self_distillation_objective

    own = config.self_distillation
    if own is None:
        return hard_objective(config.label_smoothing)
    workspace.notes.append(f"soft targets from the moving average of its own weights, decay {own.decay:g} per step")
    return self_distillation_objective(
        module, own.decay, own.temperature, number_of(own.kd_weight), config.label_smoothing, config.precision
    )


TRAIN = Stage(
    name="train",
    version=1,
    config=TrainConfig,
    inputs=TrainInputs,
    output=Checkpoint,
    libraries=LIBRARIES,
    run=run,
    splits=("train", "validation"),
    seeded=True,
    resolve=resolve_training,
    sources=source_files,
)
