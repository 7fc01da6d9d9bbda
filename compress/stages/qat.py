"""`qat`: a trained network learns to live with int8, from labels and, where one is named, from its teacher."""

from dataclasses import dataclass, replace

from pydantic import Field

from compress.artifacts.manifest import Checkpoint, OnnxModel, Quantization, TeacherOutputs
from compress.errors import ModelError
from compress.pipeline.stage import Kinds, Metrics, Stage, Workspace
from compress.quantization.scheme import QUANTIZER_VERSION
from compress.stages.fitting import (
    LIBRARIES,
    check_fits,
    fit_watched,
    learning_data,
    settings_from_config,
    write_checkpoint,
)
from compress.stages.teaching import report_teaching, teaching_from
from compress.stages.training_config import DistillationConfig, resolve_training


class QatConfig(DistillationConfig):
    """Fine-tuning with fake-quant; temperature and kd_weight count only where a teacher is named."""

    epochs: int = Field(default=3, ge=1, description="passes over the training split")
    learning_rate: float = Field(default=0.01, gt=0, description="peak of the schedule, per step")
    weight_decay: float = Field(default=1e-4, ge=0, description="per step")
    freeze: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps, counted from the end, in which the ranges stay fixed"
    )


@dataclass(frozen=True)
class QatInputs:
    """Whose weights are fine-tuned, who teaches meanwhile, and what was answered beforehand."""

    student: Checkpoint
    teacher: Checkpoint | OnnxModel | None = None
    answers: TeacherOutputs | None = None


def check(config: QatConfig, roles: Kinds) -> list[str]:
    """What lacks a teacher that is not named."""
    if "teacher" in roles:
        return []
    wrong: list[str] = []
    if "answers" in roles:
        wrong.append("`answers` are those of a teacher, and none is named: name the step that made it as `teacher:`")
    if config.labels == "none":
        wrong.append(
            "labels is none and no teacher is named, so there is nothing to learn from: name a step as `teacher:`, or"
            " give `labels` a number"
        )
    return wrong


def run(config: QatConfig, inputs: QatInputs, workspace: Workspace) -> Metrics:
    """Insert fake-quant, fit, save the graph's weights with the scheme that rebuilds it."""
    import torch

    from compress.quantization.quantizer import prepare_qat, scheme_description
    from compress.training.checkpoint import load_checkpoint
    from compress.training.objectives import distillation_objective, hard_objective

    data = learning_data(config, workspace, taught=inputs.teacher is not None)
    student = load_checkpoint(inputs.student.path, workspace.base)
    check_fits(student.description, data, f"step {inputs.student.step!r}")
    if student.description.scheme:
        raise ModelError(
            f"step {inputs.student.step!r} has fake-quant already, expected a float checkpoint",
            hint="name the step before it as `student:`, with more epochs here",
        )
    torch.manual_seed(workspace.seed)
    prepared = prepare_qat(student.module, torch.zeros(2, *data.image_shape))
    settings = settings_from_config(config, workspace.seed)
    objective, teaching = hard_objective(config.label_smoothing), None
    if inputs.teacher:
        teaching, settings, _ = teaching_from(config, [inputs.teacher], inputs.answers, data, workspace)
        objective = distillation_objective(teaching, config.temperature, config.kd_weight, config.label_smoothing)
    settings = replace(settings, freeze=config.freeze)
    fitted = fit_watched(workspace, prepared, objective, data.train, data.validation, settings)
    scheme = scheme_description()
    workspace.quantization = Quantization(scheme=scheme["name"], method="qat")
    metrics = write_checkpoint(workspace, prepared, replace(student.description, scheme=scheme), data, fitted)
    return [*metrics, *(report_teaching(teaching, workspace) if teaching else ())]


QAT = Stage(
    name="qat",
    version=QUANTIZER_VERSION,
    config=QatConfig,
    inputs=QatInputs,
    output=Checkpoint,
    libraries=(*LIBRARIES, "onnxruntime"),
    run=run,
    splits=("train", "validation", "unlabelled"),
    seeded=True,
    resolve=resolve_training,
    check=check,
)
