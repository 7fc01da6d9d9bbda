"""`answers`: what teachers say to every view of every training image, for all the students that learn from it."""

from dataclasses import dataclass

from pydantic import Field, model_validator

from compress.artifacts.manifest import Checkpoint, Metric, OnnxModel, TeacherOutputs, Tensor
from compress.pipeline.stage import Metrics, Stage, Workspace
from compress.stages.fitting import LIBRARIES, augmentation_of, check_shift, load_teachers
from compress.stages.training_config import ViewingConfig, resolve_training

SECONDS_PER_IMAGE = "seconds_per_image"


class AnswersConfig(ViewingConfig):
    """Which views there are; the steps that learn from the answers take them over."""

    batch_size: int = Field(default=256, ge=1, description="images at a time")

    @model_validator(mode="after")
    def _finite(self) -> "AnswersConfig":
        if self.shift_px > 0 and self.views is None:
            raise ValueError("shift_px needs views: so many images of each training image get an answer, e.g. 8")
        return self


@dataclass(frozen=True)
class AnswersInputs:
    """Who answers."""

    teacher: tuple[Checkpoint | OnnxModel, ...]


def run(config: AnswersConfig, inputs: AnswersInputs, workspace: Workspace) -> Metrics:
    """Run every teacher on every view; the time that it took is what the steps that look answers up save."""
    from compress.data.datasets import load_dataset
    from compress.data.labels import hide_labels
    from compress.training.answers import LOGITS, AnswersDescription, images_digest, write_answers

    whole = load_dataset(workspace.data, workspace.base)
    check_shift(config, whole, workspace.step)
    data = hide_labels(whole, "none", f"steps.{workspace.step}", unlabelled=True)  # no answer depends on a label
    assert isinstance(config.threads, int), "the stage's resolve replaces auto"
    teachers = load_teachers(inputs.teacher, data, workspace, config.threads)
    description = AnswersDescription(
        teachers=tuple(teacher.manifest.digest for teacher in inputs.teacher),
        classes=data.classes,
        images=images_digest(data.train),
        samples=len(data.train),
        augmentation=augmentation_of(config, workspace.seed),
    )
    seconds = write_answers(
        workspace.path,
        [one.module for one in teachers],
        data.train,
        description,
        batch_size=config.batch_size,
        device=config.device,
        precision=config.precision,
        threads=config.threads,
    )
    views, n = description.shape[1], len(data.train)
    workspace.tensors = [Tensor(name="logits", dtype="float16", shape=description.shape)]
    whose = "1 teacher" if len(teachers) == 1 else f"{len(teachers)} teachers"
    shown = "1 view" if views == 1 else f"{views} views"
    workspace.notes.append(f"logits of {whose} for {shown} of {n} training images")
    return [
        Metric(name="answers", value=len(teachers) * views * n, unit="answers", split="train", n=n),
        Metric(name="size", value=(workspace.path / LOGITS).stat().st_size, unit="bytes"),
        Metric(name=SECONDS_PER_IMAGE, value=seconds, unit="s", split="train", n=views * n),
    ]


ANSWERS = Stage(
    name="answers",
    version=1,
    config=AnswersConfig,
    inputs=AnswersInputs,
    output=TeacherOutputs,
    libraries=(*LIBRARIES, "onnxruntime"),
    run=run,
    splits=("train", "unlabelled"),
    seeded=True,
    resolve=resolve_training,
)
