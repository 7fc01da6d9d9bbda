"""What `train`, `distill` and `qat` do alike: build settings, load teachers, write a checkpoint."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifacts.manifest import Checkpoint, Metric, OnnxModel
from compress.errors import ModelError, UsageError
from compress.models.config import ModelConfig
from compress.pipeline.keys import name_sources
from compress.pipeline.stage import Workspace
from compress.stages.contract import INPUT, OUTPUT, image_tensors
from compress.stages.training_config import TrainingConfig, ViewingConfig

if TYPE_CHECKING:
    from torch import nn

    from compress.data.datasets import Dataset
    from compress.data.loader import Augmentation
    from compress.data.split import Split
    from compress.training.checkpoint import CheckpointDescription, Loaded
    from compress.training.loop import FitResult, TrainSettings
    from compress.training.objectives import Objective

PROBE_IMAGES = 8
BEST_EPOCH = "best_epoch"  # metric of a checkpoint: the epoch whose weights it has, the last one with few labels
LIBRARIES = ("torch", "torchao", "lightning-fabric", "safetensors", "numpy", "scikit-learn", "pillow")


def augmentation_of(config: ViewingConfig, seed: int) -> "Augmentation":
    """How images are changed; a finite set of views is drawn from the recipe's seed."""
    from compress.data.loader import Augmentation

    return Augmentation(config.flip, config.shift_px, config.views, seed if config.views is not None else 0)


def settings_from_config(config: TrainingConfig, seed: int) -> "TrainSettings":
    """The plain values that the training loop takes."""
    from compress.training.loop import TrainSettings

    assert isinstance(config.threads, int), "the stage's resolve replaces auto"
    return TrainSettings(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        milestones=config.milestones,
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        seed=seed,
        augmentation=augmentation_of(config, seed),
        keep="best" if config.labels == "all" else "last",
    )


def learning_data(config: TrainingConfig, workspace: Workspace, *, taught: bool, unlabelled: bool = True) -> "Dataset":
    """The data as a step may see them: labels that it may not read are hidden before anything else happens.

    Args:
        config: says which labels may be read.
        workspace: of the step.
        taught: whether there are soft targets for images without label; otherwise the others are learned from alone,
            repeated to as many steps an epoch.
        unlabelled: whether images that never had a label are taught too.

    Raises:
        DataError: the data cannot be read, or have too few images for so many labels.
        UsageError: images would be shifted out of sight.
    """
    from dataclasses import replace

    from compress.data.datasets import load_dataset
    from compress.data.labels import hide_labels, labelled_alone
    from compress.data.split import HIDDEN

    whole = load_dataset(workspace.data, workspace.base)
    check_shift(config, whole, workspace.step)
    data = hide_labels(whole, config.labels, f"steps.{workspace.step}.labels", unlabelled=taught and unlabelled)
    labelled = int((data.train.labels != HIDDEN).sum())
    if labelled < len(data.train):
        workspace.notes.append(f"labels of {labelled} of {len(data.train)} training images were read")
    if config.labels != "all":
        workspace.notes.append("the last epoch is kept; validation labels gave its top-1, and chose nothing")
    return data if taught else replace(data, train=labelled_alone(data.train))


def check_shift(config: ViewingConfig, data: "Dataset", step: str) -> None:
    """Refuse shifts as large as an image.

    Raises:
        UsageError: names the step, and how large they may be.
    """
    side = min(data.image_shape[1:])
    if config.shift_px >= side:
        raise UsageError(
            f"steps.{step}.shift_px is {config.shift_px}, expected less than the images' {side} pixels",
            hint=f"--set steps.{step}.shift_px={max(1, side // 8)}",
        )


def describe_network(
    model: ModelConfig, data: "Dataset", mean: Sequence[float], std: Sequence[float], base: Path
) -> "CheckpointDescription":
    """What rebuilds a network: its `model:` entry, with a folder relative to the recipe's, and its code's digests."""
    from compress.artifacts.fingerprint import sha256_file
    from compress.models.catalogue import source_files
    from compress.training.checkpoint import CheckpointDescription

    entry = model.model_dump(mode="json")
    if entry.get("folder"):
        entry["folder"] = Path(os.path.relpath(base / entry["folder"], base)).as_posix()
    return CheckpointDescription(
        model=entry,
        image_shape=data.image_shape,
        classes=data.classes,
        mean=tuple(mean),
        std=tuple(std),
        sources={name: sha256_file(path) for name, path in name_sources(source_files(model, base), base).items()},
    )


@dataclass(frozen=True)
class Teacher:
    """Somebody to learn from.

    Attributes:
        step: that made it.
        module: images in [0, 1] to logits.
        loaded: the checkpoint; None of an ONNX file, which has no layers to look at.
    """

    step: str
    module: "nn.Module"
    loaded: "Loaded | None"


def load_teachers(
    teachers: Sequence[Checkpoint | OnnxModel], data: "Dataset", workspace: Workspace, threads: int = 1
) -> list[Teacher]:
    """Load checkpoints and ONNX files that teach on this data; files run in ONNX Runtime on the processor.

    Args:
        teachers: of which steps.
        data: whose classes and image shape they share.
        workspace: of the step that learns.
        threads: of ONNX Runtime.

    Raises:
        ModelError: a teacher answers for other classes, or in another order, or takes other images.
    """
    from compress.training.checkpoint import load_checkpoint

    found: list[Teacher] = []
    for teacher in teachers:
        where = f"step {teacher.step!r}"
        if isinstance(teacher, OnnxModel):
            shapes = {tensor.name: tensor.shape[1:] for tensor in teacher.manifest.tensors}
            _check_shapes(shapes[INPUT], shapes[OUTPUT], data, where)
            found.append(Teacher(teacher.step, _module_from_onnx(teacher, threads), None))
            continue
        loaded = load_checkpoint(teacher.path, workspace.base)
        check_fits(loaded.description, data, where)
        found.append(Teacher(teacher.step, loaded.module, loaded))
    return found


def network_of(module: "nn.Module") -> "nn.Module":
    """The network inside its normalisation, whose modules recipes name; a graph with fake-quant is all one."""
    from compress.models.normalized import Normalized

    return module.net if isinstance(module, Normalized) else module


def _module_from_onnx(teacher: OnnxModel, threads: int) -> "nn.Module":
    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.engines.session_module import SessionModule

    float_graph = teacher.manifest.quantization is None
    session = OnnxRuntimeSession.load(teacher.path / "model.onnx", threads=threads, optimized=float_graph)
    return SessionModule(session, INPUT, OUTPUT)


def _check_shapes(
    image_shape: Sequence[int | str], logits_shape: Sequence[int | str], data: "Dataset", where: str
) -> None:
    """Refuse a teacher that takes other images, or answers for another number of classes."""
    if tuple(logits_shape) != (len(data.classes),):
        raise ModelError(
            f"the network answers for {logits_shape[0]} classes, the data has {len(data.classes)}: "
            f"{', '.join(data.classes)}",
            where=where,
            hint="train it on this data, or point `data:` at the data it was trained on",
        )
    if tuple(image_shape) != data.image_shape:
        raise ModelError(
            f"the network takes images of shape {tuple(image_shape)}, the data has {data.image_shape}",
            where=where,
        )


def check_fits(description: "CheckpointDescription", data: "Dataset", where: str) -> None:
    """Refuse a checkpoint whose classes or image shape are not the data's."""
    got, expected = tuple(description.classes), data.classes
    _check_shapes(description.image_shape, (len(got),), data, where)
    if got != expected:
        raise ModelError(
            f"the checkpoint answers for classes in the order {', '.join(got)}, the data has {', '.join(expected)}",
            where=where,
            hint="train it on this data, or point `data:` at the data it was trained on",
        )


def fit_watched(
    workspace: Workspace,
    module: "nn.Module",
    objective: "Objective",
    train: "Split",
    validation: "Split",
    settings: "TrainSettings",
) -> "FitResult":
    """`fit`, leaving and telling meanwhile what the run's `Watch` asks for.

    Raises:
        OSError: the traces cannot be written.
        CompressError: as `fit`.
    """
    from compress.training.loop import fit
    from compress.training.traces import event_file, profiled

    watch, on_step = workspace.watch, None
    listeners: list[Callable[[dict[str, Any]], None]] = [watch.on_epoch]
    with ExitStack() as stack:
        if watch.traces is not None:
            listeners.insert(0, stack.enter_context(event_file(watch.traces)))  # written even if a listener raises
        if watch.traces is not None and watch.profile:
            on_step = stack.enter_context(profiled(watch.traces, settings.device))

        def on_epoch(record: dict[str, Any]) -> None:
            for listener in listeners:
                listener(record)

        return fit(module, objective, train, validation, settings, on_epoch=on_epoch, on_step=on_step)


def write_checkpoint(
    workspace: Workspace,
    module: Any,
    description: "CheckpointDescription",
    data: "Dataset",
    fitted: "FitResult | None",
) -> list[Metric]:
    """Save weights, description, probe and history; returns the metrics that every checkpoint has."""
    import numpy as np

    from compress.models.catalogue import count_parameters
    from compress.training.checkpoint import save_checkpoint
    from compress.training.evaluate import predict_logits, top1

    probe = data.validation.take(np.arange(min(PROBE_IMAGES, len(data.validation))))
    save_checkpoint(workspace.path, module, description, probe.images, fitted.history if fitted else ())
    workspace.tensors = image_tensors(data.image_shape, len(data.classes))
    n = len(data.validation.labels)
    accuracy = top1(predict_logits(module, data.validation), data.validation.labels)
    metrics = [
        Metric(name="top1", value=accuracy, unit="fraction", split="validation", n=n),
        Metric(name="parameters", value=count_parameters(module), unit="parameters"),
    ]
    if fitted:
        metrics.append(Metric(name=BEST_EPOCH, value=fitted.best_epoch, unit="epoch"))
    return metrics
