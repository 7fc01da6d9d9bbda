"""`bring`: a classifier in an ONNX file from elsewhere, as a teacher or as what is quantized and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from compress.artifacts.manifest import Metric, OnnxModel
from compress.errors import ModelError, UsageError
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.contract import INPUT, OUTPUT, image_tensors, network_input

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from compress.data.datasets import Dataset

CHECKED_IMAGES = 256
SUM_TOLERANCE = 1e-3  # by which a row of probabilities may miss 1

Positive = Annotated[float, Field(gt=0)]


class BringConfig(StageConfig):
    """The file, and what it expects of its images."""

    onnx: str = Field(min_length=1, description="the file, relative to the recipe; its weights are inside")
    range: tuple[float, float] = Field(default=(0.0, 1.0), description="what it wants black and white to be")
    mean: tuple[float, ...] | None = Field(default=None, description="per channel, in units of `range`; subtracted")
    std: tuple[Positive, ...] | None = Field(default=None, description="per channel; the difference is divided by it")
    classes: tuple[str, ...] | None = Field(default=None, description="the order of its outputs, checked")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("expected mean and std together")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}, expected [black, white] with black < white")
        return self


@dataclass(frozen=True)
class BringInputs:
    """Nothing: it starts from a file."""


def source_files(config: BringConfig, base: Path) -> Sequence[Path]:
    """The file, whose content is part of the key."""
    return [base / config.onnx]


def run(config: BringConfig, inputs: BringInputs, workspace: Workspace) -> Metrics:
    """Check the file, put its preprocessing inside the graph, and ask it about validation images."""
    import numpy as np

    from compress.data.datasets import load_dataset
    from compress.onnx_graph.adoption import adopt_classifier, load_self_contained
    from compress.onnx_graph.loading import save_onnx
    from compress.training.evaluate import top1

    source, path = workspace.base / config.onnx, workspace.path / "model.onnx"
    data = load_dataset(workspace.data, workspace.base)
    _check_config(config, data, source)
    model = adopt_classifier(
        load_self_contained(source),
        data.image_shape,
        len(data.classes),
        value_range=config.range,
        mean=config.mean or (),
        std=config.std or (),
        where=str(source),
    )
    save_onnx(_prepared(model, workspace), path)
    if config.classes is None:
        workspace.notes.append("which class each logit stands for was not checked: `classes` are not given")
    validation = data.validation.take(np.arange(min(CHECKED_IMAGES, len(data.validation))))
    logits = _answers(path, network_input(validation.images), source)
    _check_logits(logits, len(data.classes), source)
    workspace.tensors = image_tensors(data.image_shape, len(data.classes))
    return [
        Metric(
            name="top1",
            value=top1(logits, validation.labels),
            unit="fraction",
            split="validation",
            n=len(validation),
        ),
        Metric(name="size", value=path.stat().st_size, unit="bytes"),
    ]


def _check_config(config: BringConfig, data: "Dataset", source: Path) -> None:
    channels = data.image_shape[0]
    if config.mean and config.std and not len(config.mean) == len(config.std) == channels:
        raise UsageError(
            f"mean and std have {len(config.mean)} and {len(config.std)} numbers; the images have {channels} channels"
        )
    if config.classes and config.classes != data.classes:
        raise ModelError(
            f"the file answers for the classes {', '.join(config.classes)}; the data has {', '.join(data.classes)}",
            where=str(source),
            hint="point `data:` at the data it was trained on; class folders are in alphabetical order",
        )


def _prepared(model: "onnx.ModelProto", workspace: Workspace) -> "onnx.ModelProto":
    """The graph in the form that `calibrate` takes; as it is, where it can teach but not be quantized."""
    from compress.quantization.foreign import prepare_foreign

    try:
        prepared, notes = prepare_foreign(model)
    except ModelError as error:
        workspace.notes.append(f"kept as it is, for teaching and measuring only: {error.message}")
        return model
    workspace.notes += notes
    return prepared


def _answers(path: Path, images: "NDArray[np.float32]", source: Path) -> "NDArray[np.float32]":
    from compress.engines.onnxruntime_session import OnnxRuntimeSession

    try:
        session = OnnxRuntimeSession.load(path)
        logits = session.run({INPUT: images})[OUTPUT]
    except ModelError as error:
        error.where = str(source)
        raise
    session.close()
    return logits


def _check_logits(logits: "NDArray[np.float32]", classes: int, source: Path) -> None:
    import numpy as np

    if logits.shape[1:] != (classes,):
        raise ModelError(
            f"the file answers with {logits.shape[1:]} for an image; expected ({classes},), a logit for each class",
            where=str(source),
        )
    if not np.isfinite(logits).all():
        raise ModelError(
            "the file answers validation images with NaN or infinity",
            where=str(source),
            hint="check `range`, `mean` and `std`: it may expect other values",
        )
    if (logits >= 0).all() and (np.abs(logits.sum(axis=1) - 1) < SUM_TOLERANCE).all():
        raise ModelError(
            "the file answers with probabilities, which add up to 1; expected logits",
            where=str(source),
            hint="export it without its last Softmax",
        )


BRING = Stage(
    name="bring",
    version=1,
    config=BringConfig,
    inputs=BringInputs,
    output=OnnxModel,
    libraries=("onnx", "onnxruntime", "numpy", "scikit-learn", "pillow"),
    run=run,
    splits=("validation",),
    sources=source_files,
)
