"""`precision` of a `calibrate` step: which layers stay in float, and who decides that."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compress.artifacts.manifest import Metric, Precision
from compress.pipeline.stage import StageConfig, Workspace
from compress.stages.contract import network_input

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from compress.data.split import Split
    from compress.quantization.precision import PrecisionChoice
    from compress.quantization.quantize import Quantized
    from compress.quantization.settings import QuantizeSettings

BATCH_SIZE = 64
SAMPLES = 2000


class FloatLayersConfig(StageConfig):
    """Which layers stay in float: by name, until the logits are close enough, or until top-1 is kept."""

    float_layers: tuple[str, ...] = Field(
        default=(), description="by hand: names of nodes of the exported graph (conv_3), or patterns (conv_*)"
    )
    sqnr_db: float | None = Field(
        default=None,
        gt=0,
        le=150,
        description="mixed: the layers that disturb the logits most, until their SQNR on the calibration images is this"
        " many dB; needs no labels",
    )
    budget_pp: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="adaptive: as little work as possible, so that both int8 files lose at most this much top-1 against"
        " the float graph on validation images, percentage points",
    )
    samples: int = Field(default=SAMPLES, ge=1, description="validation images that `budget_pp` is judged on, at most")

    @model_validator(mode="after")
    def _one_way(self) -> "FloatLayersConfig":
        ways = ("float_layers", "sqnr_db", "budget_pp")
        given = [way for way in ways if getattr(self, way) not in ((), None)]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(ways)}, got {', '.join(given) or 'none'}")
        if self.samples != SAMPLES and self.budget_pp is None:
            raise ValueError("`samples` belongs to budget_pp")
        return self


def _tag(value: Any) -> str | None:
    if isinstance(value, Mapping | FloatLayersConfig):
        return "layers"
    return "int8" if value == "int8" else None


PrecisionConfig = Annotated[
    Annotated[Literal["int8"], Tag("int8")] | Annotated[FloatLayersConfig, Tag("layers")],
    Discriminator(
        _tag,
        custom_error_type="precision",
        custom_error_message="expected int8, or a mapping with one of float_layers, sqnr_db, budget_pp",
    ),
]


def float_layers_of(config: PrecisionConfig) -> tuple[str, ...]:
    """Names and patterns of the layers that a person leaves in float."""
    return config.float_layers if isinstance(config, FloatLayersConfig) else ()


def decide(
    config: PrecisionConfig,
    model: "onnx.ModelProto",
    quantized: "Quantized",
    settings: "QuantizeSettings",
    workspace: Workspace,
    calibration: Callable[[], "Split"],
) -> tuple["PrecisionChoice", "Split | None"]:
    """Choose the layers that stay in float, where the recipe leaves that to measurement.

    Args:
        config: what the recipe says.
        model: the graph that was quantized.
        quantized: the files, with everything in int8 but what a person has named.
        settings: with which they were made.
        workspace: knows the data.
        calibration: gives the calibration set; called only where it is needed.

    Returns:
        The choice, and the samples that it rests on, None where nothing was measured.
    """
    from compress.quantization.precision import choose_precision, fixed_precision
    from compress.quantization.search import Goal

    if not isinstance(config, FloatLayersConfig) or config.float_layers:
        return fixed_precision(model, quantized, float_layers_of(config)), None
    if config.budget_pp is not None:
        split = _validation(config.samples, workspace)
        goal, labels = Goal(budget_pp=config.budget_pp), split.labels
    else:
        split = calibration()
        goal, labels = Goal(sqnr_db=config.sqnr_db), None

    def batches() -> "Iterable[NDArray[np.float32]]":
        for start in range(0, len(split), BATCH_SIZE):
            yield network_input(split.images[start : start + BATCH_SIZE])

    return choose_precision(model, quantized, goal, batches, labels, settings=settings), split


def _validation(samples: int, workspace: Workspace) -> "Split":
    from compress.data.datasets import load_dataset
    from compress.data.rules import subset

    dataset = load_dataset(workspace.data, workspace.base)
    everything = dataset.validation
    few = samples if samples < len(everything) else None
    return subset(everything, few, dataset.classes, "precision.samples")


def recorded(choice: "PrecisionChoice", split: "Split | None") -> Precision | None:
    """What the manifest says of a choice; None where everything that can be is int8."""
    if choice.mode == "int8":
        return None
    score = None if choice.reached is None else choice.reached.score
    return Precision(
        mode=choice.mode,
        goal=None if choice.goal is None else str(choice.goal),
        int8_macs=round(choice.int8_macs, 6),
        loss_pp=None if score is None or score.loss_pp is None else round(score.loss_pp, 4),
        sqnr_db=None if score is None else round(score.sqnr_db, 2),
        split=None if split is None else split.name,
        n=None if split is None else len(split),
    )


def measured(choice: "PrecisionChoice", split: "Split | None") -> list[Metric]:
    """Figures of a choice: the share of work in int8, and what was lost where that was measured."""
    metrics = [Metric(name="int8_macs", value=choice.int8_macs, unit="fraction")]
    if choice.reached is not None and split is not None:
        score, n = choice.reached.score, len(split)
        metrics.append(Metric(name="sqnr", value=round(score.sqnr_db, 2), unit="dB", split=split.name, n=n))
        if score.loss_pp is not None:
            lost = round(score.loss_pp, 4)
            metrics.append(Metric(name="top1_loss", value=lost, unit="pp", split=split.name, n=n))
    return metrics
