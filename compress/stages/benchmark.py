"""`benchmark`: every variant on the same test images and in the same interleaved blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from compress.artifacts.manifest import (
    Artifact,
    Checkpoint,
    Engine,
    Metric,
    OnnxModel,
    QuantizedOnnx,
    Report,
)
from compress.errors import ModelError
from compress.log import progress
from compress.pipeline.machine import resolve_device, resolve_threads
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.circumstances import (
    LIBRARIES,
    MACHINE,
    curves_of,
    environment,
    fingerprint,
    lineage_of,
    pictures_of,
)
from compress.stages.contract import INPUT, network_input
from compress.stages.ladder import edges_to, line_of, parent_of
from compress.stages.variants import Runnable, runnable_from_artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.data.split import Split
    from compress.measure.latency import Measurement
    from compress.report.document import ColdStart, FreshRow, ReportDocument


class LatencyConfig(StageConfig):
    """How long is measured; the defaults are for figures that are published."""

    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 32), min_length=1, description="samples per call, each size once"
    )
    blocks: int = Field(default=20, ge=6, description="every variant in every round of each, in random order")
    slot_iterations: int = Field(default=50, ge=1, description="calls of a variant in a block, at least")
    slot_ms: float = Field(default=50, gt=0, description="duration of the same, at least")
    warmup_ms: float = Field(default=2000, ge=0, description="of every variant and batch, at least")
    processes: int = Field(
        default=5,
        ge=2,
        description="fresh ones that measure each variant again, for cold start, memory and `compress compare`",
    )

    @model_validator(mode="after")
    def _each_batch_once(self) -> Self:
        if len(set(self.batches)) < len(self.batches):
            raise ValueError(f"a batch size is named twice: {', '.join(map(str, self.batches))}")
        return self


class BenchmarkConfig(StageConfig):
    """What is measured, and on what."""

    split: Literal["test"] = Field(default="test", description="the samples that nothing was trained or calibrated on")
    latency: LatencyConfig = LatencyConfig()
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="of torch sessions")
    threads: int | Literal["auto"] = Field(default="auto", description="CPU threads of every session")
    cuda_graphs: bool = Field(
        default=False, description="start each batch of an engine as one CUDA graph; needs a GPU, and saves launches"
    )


@dataclass(frozen=True)
class BenchmarkInputs:
    """The reference, the float twin of the int8 variants, the variants, and all that led to them."""

    reference: Checkpoint | OnnxModel
    variants: tuple[Checkpoint | OnnxModel | QuantizedOnnx | Engine, ...]
    ancestors: dict[str, Artifact]
    float_twin: OnnxModel | None = None


def resolve(config: BenchmarkConfig) -> BenchmarkConfig:
    """Replace every `auto` by what it becomes on this machine."""
    update = {"device": resolve_device(config.device), "threads": resolve_threads(config.threads)}
    return config.model_copy(update=update)


def run(config: BenchmarkConfig, inputs: BenchmarkInputs, workspace: Workspace) -> Metrics:
    """Accuracy of every variant and of every hop, latency of every variant, one document."""
    from compress.data.datasets import load_dataset
    from compress.engines.session import ran_as
    from compress.report.document import ReportDocument, report_json
    from compress.stages.evidence import Evidence, hop_from, parameters_of, variant_from

    assert isinstance(config.threads, int), "resolve replaces auto"
    surroundings = environment(config.device, config.threads)  # before any load of our own
    dataset = load_dataset(workspace.data, workspace.base)
    test = dataset.test
    listed = [inputs.reference, *inputs.variants, *([inputs.float_twin] if inputs.float_twin else [])]
    variants = list({artifact.step: artifact for artifact in listed}.values())
    _check_float_twin(inputs)
    edges = edges_to(variants, inputs.ancestors)
    how = {"device": config.device, "threads": config.threads, "cuda_graphs": config.cuda_graphs}
    runnables = {edge.child.step: runnable_from_artifact(edge.child, workspace.base, **how) for edge in edges}
    images = network_input(test.images)
    logits = {name: one.logits(images) for name, one in runnables.items() if one.session}
    timings = {batch: _time(runnables, variants, images, batch, config, workspace) for batch in config.latency.batches}
    surroundings["gpu_state"] = _gpu_state(runnables.values())
    fresh = _fresh([runnables[one.step] for one in variants], images, config, workspace)

    evidence = Evidence(
        reference=inputs.reference.step,
        float_twin=inputs.float_twin.step if inputs.float_twin else None,
        labels=test.labels,
        classes=dataset.classes,
        ids=tuple(test.ids),
        logits=logits,
        timings=timings,
        fresh=fresh,
        sessions={name: ran_as(one.label, one.session) for name, one in runnables.items()},
        parameters={edge.child.step: parameters_of(edge.child, inputs.ancestors) for edge in edges},
    )
    measured = [variant_from(runnables[one.step], evidence) for one in variants]
    document = ReportDocument(
        reference=evidence.reference,
        float_twin=evidence.float_twin,
        split=test.name,
        n=len(test),
        variants=measured,
        ladder=[hop_from(edge, evidence) for edge in edges],
        environment=surroundings,
        lineage=[lineage_of(edge.child, inputs.ancestors) for edge in edges],
        fingerprint=fingerprint(
            surroundings, config.latency.batches, test, images, {"slot_ms": config.latency.slot_ms}
        ),
        curves=curves_of({**inputs.ancestors, **{one.step: one for one in variants}}.values()),
        pictures=pictures_of(measured, test),
    )
    (workspace.path / "report.json").write_bytes(report_json(document))
    _write_samples(workspace, test, logits, timings)
    for one in runnables.values():
        if one.session:
            one.session.close()
    return _metrics(document, workspace)


def _check_float_twin(inputs: BenchmarkInputs) -> None:
    """Refuse a twin that is no float form of the model that the quantized variants were made from.

    Raises:
        ModelError: the twin is quantized itself, or comes from another checkpoint.
    """
    twin = inputs.float_twin
    if twin is None:
        return
    if twin.manifest.quantization is not None:
        raise ModelError(
            f"the float twin {twin.step!r} is quantized, expected the export of the model before quantization",
            hint="name an `export` step of the float checkpoint as float_twin",
        )
    everything = {**inputs.ancestors, **{one.step: one for one in inputs.variants}}
    source = parent_of(twin, everything)
    for variant in inputs.variants:
        quantized = variant.manifest.quantization is not None
        if quantized and source is not None and source not in line_of(variant, everything):
            raise ModelError(
                f"the float twin {twin.step!r} is made from {source.step!r}, and {variant.step!r} is not",
                hint="compare int8 with the export of the checkpoint that it was quantized from",
            )


def _time(
    runnables: dict[str, Runnable],
    variants: list[Artifact],
    images: "NDArray[np.float32]",
    batch: int,
    config: BenchmarkConfig,
    workspace: Workspace,
) -> "Measurement":
    """Latency of every variant that runs here, at one batch size, in one series of blocks."""
    import numpy as np

    from compress.measure.latency import measure_stable

    feed = {INPUT: np.resize(images, (batch, *images.shape[1:]))}
    sessions = {one.step: runnables[one.step].session for one in variants if runnables[one.step].takes(batch)}
    calls = {name: session.timed(feed) for name, session in sessions.items() if session}
    with progress(f"latency at batch {batch}", config.latency.blocks, "blocks") as bar:
        return measure_stable(
            calls,
            blocks=config.latency.blocks,
            slot_iterations=config.latency.slot_iterations,
            slot_ms=config.latency.slot_ms,
            warmup_ms=config.latency.warmup_ms,
            seed=workspace.seed,
            on_block=bar.show,
        )


def _gpu_state(runnables: "Iterable[Runnable]") -> dict[str, Any] | None:
    """Clocks, power and temperature of the GPU that has just been timed; None where no engine runs here."""
    for one in runnables:
        if tell := getattr(one.session, "telemetry", None):
            return tell()
    return None


def _fresh(
    runnables: "Sequence[Runnable]", images: "NDArray[np.float32]", config: BenchmarkConfig, workspace: Workspace
) -> "dict[str, tuple[list[FreshRow], ColdStart]]":
    """Every variant that runs here once more, in processes of its own."""
    from compress.stages.fresh_process import FreshSlot, fresh_variant, measure_fresh

    assert isinstance(config.threads, int), "resolve replaces auto"
    latency = config.latency
    variants = [
        fresh_variant(
            one,
            images,
            latency.batches,
            base=workspace.base,
            device=config.device,
            threads=config.threads,
            cuda_graphs=config.cuda_graphs,
        )
        for one in runnables
        if one.session
    ]
    return measure_fresh(
        variants, processes=latency.processes, slot=FreshSlot(slot_ms=latency.slot_ms), seed=workspace.seed
    )


def _write_samples(
    workspace: Workspace, test: "Split", logits: "dict[str, NDArray[np.float32]]", timings: "dict[int, Measurement]"
) -> None:
    """Keep what every figure was computed from: logits per sample and latency per call, without pickles."""
    import numpy as np

    arrays: dict[str, NDArray[Any]] = {"labels": test.labels, "ids": np.array(test.ids)}
    arrays |= {f"logits/{name}": values for name, values in logits.items()}
    for batch, measurement in timings.items():
        for name, samples in measurement.samples.items():
            arrays[f"latency_ms/{name}/{batch}"] = np.array(samples.samples_ms)
            arrays[f"block_ms/{name}/{batch}"] = np.array(samples.block_ms)
    np.savez_compressed(workspace.path / "samples.npz", allow_pickle=False, **arrays)


def _metrics(document: "ReportDocument", workspace: Workspace) -> list[Metric]:
    """Top-1 of every variant; a variant that did not run becomes a note with its reason."""
    metrics: list[Metric] = []
    for variant in reversed(document.variants):  # what is deployed comes first, the reference last
        if variant.top1 is None:
            workspace.notes.append(f"{variant.name} not run: {variant.reason}")
        else:
            metrics.append(
                Metric(name=f"top1/{variant.name}", value=variant.top1, unit="fraction", split="test", n=document.n)
            )
    return metrics


BENCHMARK = Stage(
    name="benchmark",
    version=3,
    config=BenchmarkConfig,
    inputs=BenchmarkInputs,
    output=Report,
    libraries=LIBRARIES,
    run=run,
    splits=("test",),
    facts=MACHINE,
    measured=True,
    seeded=True,
    resolve=resolve,
)
