"""Who teaches in `distill` and `qat`: teachers that run, or answers that were stored, if they are of these teachers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.artifacts.manifest import Checkpoint, Metric, OnnxModel, TeacherOutputs
from compress.errors import DataError, ModelError, UsageError
from compress.pipeline.stage import Workspace
from compress.stages.answers import SECONDS_PER_IMAGE
from compress.stages.fitting import Teacher, load_teachers, settings_from_config
from compress.stages.training_config import TrainingConfig

if TYPE_CHECKING:
    from compress.data.datasets import Dataset
    from compress.training.answers import AnswersDescription
    from compress.training.loop import TrainSettings
    from compress.training.teacher import Teaching


def teaching_from(
    config: TrainingConfig,
    teachers: Sequence[Checkpoint | OnnxModel],
    answers: TeacherOutputs | None,
    data: "Dataset",
    workspace: Workspace,
    *,
    live_because: str = "",
) -> "tuple[Teaching, TrainSettings, list[Teacher]]":
    """Load teachers or, where answers are named, check and map these; no teacher is loaded then.

    Args:
        config: of the step that learns.
        teachers: whom it names, at least one.
        answers: what it names, if anything.
        data: that it learns from.
        workspace: seed and folder of the recipe.
        live_because: why teachers must run for every batch, as the end of a sentence; empty if nothing asks for it, as
            always where answers are named.

    Returns:
        Where logits come from; the settings of the training, whose augmentation is that of the answers; and the
        teachers that were loaded, none where answers are looked up.

    Raises:
        ModelError: a teacher does not fit the data, or the answers are other teachers'.
        DataError: the answers are to other images.
        UsageError: the step names another augmentation than the answers have.
    """
    from compress.training.answers import load_answers
    from compress.training.teacher import StoredLogits, TeacherLogits

    settings = settings_from_config(config, workspace.seed)
    if answers is None:
        loaded = load_teachers(teachers, data, workspace, settings.threads)
        modules = [one.module for one in loaded]
        return TeacherLogits(modules, settings, data.train, live_because=live_because), settings, loaded
    found = load_answers(answers.path)
    _check_teachers(found.description, teachers, answers)
    _check_images(found.description, data, answers)
    _check_augmentation(config, found.description, answers)
    seconds = next(metric.value for metric in answers.manifest.metrics if metric.name == SECONDS_PER_IMAGE)
    return StoredLogits(found.logits, seconds), replace(settings, augmentation=found.description.augmentation), []


def _check_teachers(
    description: "AnswersDescription", teachers: Sequence[Checkpoint | OnnxModel], answers: TeacherOutputs
) -> None:
    wanted = tuple(teacher.manifest.digest for teacher in teachers)
    if description.teachers != wanted:
        named = ", ".join(f"step {teacher.step!r} (digest {teacher.manifest.digest[:12]})" for teacher in teachers)
        stored = ", ".join(digest[:12] for digest in description.teachers)
        raise ModelError(
            f"the answers are those of another teacher: digest {stored}; this step's is {named}",
            where=f"step {answers.step!r}",
            hint="name the same teachers in both steps, in the same order",
        )


def _check_images(description: "AnswersDescription", data: "Dataset", answers: TeacherOutputs) -> None:
    from compress.training.answers import images_digest

    where, hint = f"step {answers.step!r}", "make the answers again with this recipe's `data:`"
    if description.classes != data.classes:
        got, expected = ", ".join(description.classes), ", ".join(data.classes)
        raise DataError(f"the answers are for the classes {got}; the data has {expected}", where=where, hint=hint)
    digest = images_digest(data.train)
    if description.images != digest:
        raise DataError(
            f"the answers are to other data: {description.samples} training images (digest {description.images[:12]});"
            f" here are {len(data.train)} (digest {digest[:12]})",
            where=where,
            hint=hint,
        )


def _check_augmentation(config: TrainingConfig, description: "AnswersDescription", answers: TeacherOutputs) -> None:
    wrong = [
        f"{name} is {getattr(config, name)}, the answers have {getattr(description.augmentation, name)}"
        for name in ("flip", "shift_px", "views")
        if name in config.model_fields_set and getattr(config, name) != getattr(description.augmentation, name)
    ]
    if wrong:
        raise UsageError(
            f"the answers are to other views: {'; '.join(wrong)}",
            where=f"step {answers.step!r}",
            hint="leave flip, shift_px and views out of this step: it takes them from the answers",
        )


def report_teaching(teaching: "Teaching", workspace: Workspace) -> list[Metric]:
    """Note where the soft targets came from; returns what looking them up saved."""
    workspace.notes.append(teaching.describe())
    saved = teaching.savings()
    return [
        Metric(name="teacher_hit_rate", value=saved.hit_rate, unit="fraction", split="train", n=saved.asked),
        Metric(name="teacher_cache", value=saved.size_bytes, unit="bytes"),
        Metric(name="teacher_saved", value=saved.seconds, unit="s (estimate)", split="train", n=saved.found),
    ]
