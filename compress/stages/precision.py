"""`precision` of a `calibrate` step: which layers stay in float, and who decides that."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compress.artifacts.manifest import Metric, Precision
from compress.pipeline.machine import cpu
from compress.pipeline.stage import StageConfig, Workspace
from compress.stages.contract import network_input

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from compress.data.split import Split
    from compress.measure.candidates import LatencyRatio
    from compress.quantization.precision import PrecisionChoice
    from compress.quantization.quantize import Quantized
    from compress.quantization.search import Goal
    from compress.quantization.sensitivity import Batches
    from compress.quantization.settings import QuantizeSettings

BATCH_SIZE = 64
SAMPLES = 2000
CONFIRMING = 3  # times as long as one candidate
THREADS = 1  # of what is timed: `calibrate` has no threads of its own
LATENCY = "latency in ONNX Runtime over that of the all-int8 file"
Minimize = Literal["work", "latency"]


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
        description="adaptive: until both int8 files lose at most this much top-1 against the float graph on validation"
        " images, percentage points",
    )
    samples: int = Field(default=SAMPLES, ge=1, description="validation images that `budget_pp` is judged on, at most")
    minimize: Minimize = Field(
        default="work",
        description="of the choices that keep sqnr_db or budget_pp, which one: least multiply-accumulates in float, the"
        " same on every machine (work), or least latency in ONNX Runtime on this one, one thread, batch 1 (latency)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> "FloatLayersConfig":
        ways = ("float_layers", "sqnr_db", "budget_pp")
        given = [way for way in ways if getattr(self, way) not in ((), None)]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(ways)}, got {', '.join(given) or 'none'}")
        if self.samples != SAMPLES and self.budget_pp is None:
            raise ValueError("`samples` belongs to budget_pp")
        if self.minimize != "work" and self.float_layers:
            raise ValueError("`minimize` belongs to sqnr_db and budget_pp")
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


def times_candidates(config: PrecisionConfig) -> bool:
    """Whether the choice rests on latencies of the machine at hand."""
    return isinstance(config, FloatLayersConfig) and config.minimize == "latency"


@dataclass(frozen=True)
class Decision:
    """A choice, the samples that it rests on, and what was timed for it; None where nothing was measured."""

    choice: "PrecisionChoice"
    split: "Split | None" = None
    latency: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """`precision.json`."""
        from compress.quantization.precision import precision_document

        return {**precision_document(self.choice), **({"latency": self.latency} if self.latency else {})}

    def summary(self) -> str:
        """What a person should know, in one sentence."""
        text = self.choice.summary()
        return f"{text}; latency: {latency_text(self.latency)}" if self.latency else text


def decide(
    config: PrecisionConfig,
    model: "onnx.ModelProto",
    quantized: "Quantized",
    settings: "QuantizeSettings",
    workspace: Workspace,
    calibration: Callable[[], "Split"],
) -> Decision:
    """Choose the layers that stay in float, where the recipe leaves that to measurement.

    Args:
        config: what the recipe says.
        model: the graph that was quantized.
        quantized: the files, with everything in int8 but what a person has named.
        settings: with which they were made.
        workspace: knows the data.
        calibration: gives the calibration set; called only where it is needed.
    """
    from compress.quantization.precision import fixed_precision
    from compress.quantization.search import Goal

    if not isinstance(config, FloatLayersConfig) or config.float_layers:
        return Decision(fixed_precision(model, quantized, float_layers_of(config)))
    if config.budget_pp is not None:
        split = _validation(config.samples, workspace)
        goal, labels = Goal(budget_pp=config.budget_pp), split.labels
    else:
        split = calibration()
        goal, labels = Goal(sqnr_db=config.sqnr_db), None

    def batches() -> "Iterable[NDArray[np.float32]]":
        for start in range(0, len(split), BATCH_SIZE):
            yield network_input(split.images[start : start + BATCH_SIZE])

    feed = {quantized.unsigned.graph.input[0].name: network_input(split.images[:1])}
    decision = choose(model, quantized, goal, batches, labels, settings, config.minimize, feed)
    return replace(decision, split=split)


def choose(
    model: "onnx.ModelProto",
    quantized: "Quantized",
    goal: "Goal",
    batches: "Batches",
    labels: "NDArray[np.integer] | None",
    settings: "QuantizeSettings",
    minimize: Minimize,
    feed: "Mapping[str, NDArray[Any]]",
    *,
    fixed_batch: int | None = None,
) -> Decision:
    """Search for the layers that stay in float, and time the candidates where latency is what is kept small.

    The cheapest is timed longer beside the choice of least work, which is taken instead where it is faster there.

    `feed` is what one timed call is given; the other arguments are those of `choose_precision`.
    """
    from compress.measure.candidates import SECONDS, median_ratio, time_together
    from compress.quantization.precision import choose_precision
    from compress.quantization.sensitivity import MixedGraphs
    from compress.quantization.trials import Cost

    def compare(candidate: "onnx.ModelProto", best: "onnx.ModelProto") -> tuple[float, bool]:
        graphs = {"all_int8": quantized.unsigned, "candidate": candidate, "best": best}
        taken = time_together(graphs, feed, threads=THREADS)
        ratio = median_ratio(taken["candidate"], taken["all_int8"]).ratio
        return ratio, median_ratio(taken["candidate"], taken["best"]).faster

    confirmed: dict[str, LatencyRatio] = {}

    def confirm(chosen: "onnx.ModelProto", least_work: "onnx.ModelProto") -> bool:
        graphs = {"all_int8": quantized.unsigned, "chosen": chosen, "least_work": least_work}
        graphs["float"] = MixedGraphs(model, quantized, settings).float_graph
        taken = time_together(graphs, feed, threads=THREADS, seconds=CONFIRMING * SECONDS)
        base = taken.pop("all_int8")
        confirmed.update((name, median_ratio(samples, base)) for name, samples in taken.items())
        return not median_ratio(taken["least_work"], taken["chosen"]).faster

    cost = None if minimize == "work" else Cost(LATENCY, compare, confirm)
    choice = choose_precision(
        model, quantized, goal, batches, labels, settings=settings, cost=cost, fixed_batch=fixed_batch
    )
    return Decision(choice, latency=_latency(choice, confirmed, len(next(iter(feed.values())))) if cost else None)


def _latency(choice: "PrecisionChoice", confirmed: "Mapping[str, LatencyRatio]", batch: int) -> dict[str, Any]:
    """What was timed at the end, and longer: the least of several noisy figures is too low."""
    from compress.measure.candidates import TOLERANCE

    found = {name: ratio.as_json() for name, ratio in confirmed.items()}
    if choice.refuted:
        refuted = {"layers": list(choice.refuted), **found["chosen"]}
        found |= {"chosen": found["least_work"], "refuted": refuted}
    return {
        "cpu": cpu(),
        "threads": THREADS,
        "batch": batch,
        "tolerance": TOLERANCE,
        "least_work_layers": list(choice.least_work),
        **found,
    }


def latency_text(latency: "Mapping[str, Any]") -> str:
    """What was timed, in words; `latency` is that of `precision.json`."""
    chosen = latency["chosen"]
    within = "" if None in (chosen["low"], chosen["high"]) else f" ({chosen['low']:.2f} to {chosen['high']:.2f})"
    refuted = latency.get("refuted")
    instead = (
        f"; {', '.join(refuted['layers'])} in float seemed faster, timed longer {refuted['ratio']:.2f}"
        if refuted
        else ""
    )
    return (
        f"{chosen['ratio']:.2f}{within} of the all-int8 file's; with the least work in float "
        f"{latency['least_work']['ratio']:.2f}, all in float {latency['float']['ratio']:.2f}{instead}; "
        f"batch {latency['batch']}, {latency['threads']} thread, {latency['cpu']}"
    )


def _validation(samples: int, workspace: Workspace) -> "Split":
    from compress.data.datasets import load_dataset
    from compress.data.rules import subset

    dataset = load_dataset(workspace.data, workspace.base)
    everything = dataset.validation
    few = samples if samples < len(everything) else None
    return subset(everything, few, dataset.classes, "precision.samples")


def recorded(decision: Decision) -> Precision | None:
    """What the manifest says of a choice; None where everything that can be is int8."""
    choice, split = decision.choice, decision.split
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
        latency_to_int8=None if decision.latency is None else decision.latency["chosen"]["ratio"],
    )


def measured(decision: Decision) -> list[Metric]:
    """Figures of a choice: the share of work in int8, and what was lost and gained where that was measured."""
    choice, split = decision.choice, decision.split
    metrics = [Metric(name="int8_macs", value=choice.int8_macs, unit="fraction")]
    if choice.reached is not None and split is not None:
        score, n = choice.reached.score, len(split)
        metrics.append(Metric(name="sqnr", value=round(score.sqnr_db, 2), unit="dB", split=split.name, n=n))
        if score.loss_pp is not None:
            lost = round(score.loss_pp, 4)
            metrics.append(Metric(name="top1_loss", value=lost, unit="pp", split=split.name, n=n))
    if decision.latency is not None:
        metrics.append(Metric(name="latency_to_int8", value=decision.latency["chosen"]["ratio"], unit="fraction"))
    return metrics
