"""`engine`: an ONNX file becomes TensorRT plans, each with a sidecar that says what is in it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from compress.artifacts.manifest import Engine, Metric, OnnxModel, QuantizedOnnx
from compress.errors import UnavailableError
from compress.log import get_logger, progress
from compress.pipeline.machine import FACTS
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.contract import INPUT

_KINDS = ("convolutions", "gemms")


def _as_text(value: Any) -> Any:
    # YAML reads 8.6 as a number.
    return str(value) if isinstance(value, float) else value


Target = Annotated[str, BeforeValidator(_as_text), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})]


class BatchRange(StageConfig):
    """The optimization profile's batch sizes, samples."""

    min: int = Field(default=1, ge=1)
    opt: int = Field(default=8, ge=1)
    max: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "BatchRange":
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class EngineConfig(StageConfig):
    """Which builder, for which batch sizes, in which precision and for which GPUs."""

    backend: Literal["tensorrt_rtx", "tensorrt"] = "tensorrt_rtx"
    batch: BatchRange | tuple[BatchRange, ...] = Field(
        default=BatchRange(), description="one range, or several: an optimization profile of each"
    )
    precision: Literal["auto", "fp32", "fp16", "int8", "int8+fp16"] = Field(
        default="auto",
        description="fp32 or fp16 of a float model, int8 or int8+fp16 (what is not quantized in 16 bits) of a "
        "quantized one; auto: fp32 or int8, as the model is, and int8+fp16 where layers of it were left in float",
    )
    target: Target = Field(
        default="auto",
        description="compute capability of the GPU, e.g. 8.9; auto: portable for tensorrt_rtx, this GPU for tensorrt",
    )
    targets: tuple[Target, ...] = Field(
        default=(), description="several compute capabilities instead: a plan of each, built side by side"
    )
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        default="none", description="other GPUs that may run the engine too (tensorrt)"
    )
    version_compatible: bool = Field(
        default=False,
        description="later versions may run the engine too, with the lean runtime of the version that built it, which "
        "the sessions here do not load",
    )
    timing_cache: str | None = Field(
        default=None, description="file of an earlier build for the same GPU and version (tensorrt)"
    )
    runtime_cache: str = Field(
        default="none",
        pattern="^(none|here.*)$",
        description="here: compile the engine for this machine's GPU already now (tensorrt_rtx)",
    )
    timeout_s: float = Field(default=900, gt=0, description="of each build, seconds")
    workspace_bytes: int | None = Field(
        default=None, gt=0, description="scratch memory of the builder; None: its default"
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "EngineConfig":
        if self.targets and self.target != "auto":
            raise ValueError("expected target or targets, got both")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets names one twice: {', '.join(self.targets)}")
        if isinstance(self.batch, tuple) and not self.batch:
            raise ValueError("batch is an empty list, expected at least one range")
        if self.runtime_cache != "none" and self.backend == "tensorrt":
            raise ValueError("runtime_cache needs backend tensorrt_rtx: tensorrt compiles everything when it builds")
        if self.runtime_cache != "none" and len(self.targets) > 1:
            raise ValueError(
                "runtime_cache compiles for the GPU that is here, and at most one plan runs on it: "
                f"expected one target, got {', '.join(self.targets)}"
            )
        return self


@dataclass(frozen=True)
class EngineInputs:
    """The graph that is built; of a quantized one the signed file."""

    model: OnnxModel | QuantizedOnnx


def resolve(config: EngineConfig) -> EngineConfig:
    """Say which GPUs the plan is for: it cannot be told apart from another one by its other settings.

    Raises:
        UnavailableError: it is to be compiled for a GPU of this machine, and there is none.
    """
    update: dict[str, Any] = {}
    if config.target == "auto" and not config.targets:
        update["target"] = _default_target(config)
    if config.runtime_cache == "here":
        gpu = FACTS["gpu"]()
        if gpu is None:
            raise UnavailableError("runtime_cache: here needs a GPU, and there is none", hint="leave runtime_cache out")
        update["runtime_cache"] = f"here: {gpu}, driver {FACTS['driver']()}"
    return config.model_copy(update=update) if update else config


def sources(config: EngineConfig, base: Path) -> Sequence[Path]:
    """The timings of an earlier build: they choose kernels."""
    return [base / config.timing_cache] if config.timing_cache else []


def _default_target(config: EngineConfig) -> str:
    return "portable" if config.backend == "tensorrt_rtx" else str(FACTS["compute_capability"]())


def _float_layers(model: OnnxModel | QuantizedOnnx) -> tuple[str, ...]:
    return model.manifest.quantization.float_layers if model.manifest.quantization else ()


def run(config: EngineConfig, inputs: EngineInputs, workspace: Workspace) -> Metrics:
    """Lint, build each plan in a child process, write plans and sidecars."""
    from compress.onnx_graph.lint import raise_on_errors
    from compress.onnx_graph.loading import load_onnx

    onnx_path = inputs.model.path / "model.onnx"
    raise_on_errors(load_onnx(onnx_path), target="tensorrt")
    capabilities = () if config.target in ("auto", _default_target(config)) else (config.target,)
    plans = {workspace.path / f"model-{target}.plan": (target,) for target in config.targets} or {
        workspace.path / "model.plan": capabilities
    }
    if config.precision == "auto" and _float_layers(inputs.model):
        config = config.model_copy(update={"precision": "int8+fp16"})  # they are in float for accuracy, not for range
    sidecars = _build_all(config, onnx_path, plans, workspace.base)
    workspace.tensors = inputs.model.manifest.tensors
    workspace.quantization = inputs.model.manifest.quantization
    floats = _float_layers(inputs.model)
    if floats and all(sidecar["precision"] == "int8" for sidecar in sidecars.values()):
        workspace.notes.append(
            f"layers left in float compute in fp32: {', '.join(floats)}; precision: int8+fp16 would run them in fp16"
        )
    metrics = [Metric(name="size", value=sum(plan.stat().st_size for plan in plans), unit="bytes")]
    told = [sidecar for sidecar in sidecars.values() if sidecar["operand_types"] is not None]
    if not told:
        workspace.notes.append(f"{config.backend} plans do not tell their operand types without a GPU")
        return metrics
    for plan, sidecar in sidecars.items():
        _note(f"{plan.stem.partition('-')[2]}: " if config.targets else "", sidecar, inputs.model, workspace)
    return _operand_metrics(min(told, key=_int8_share)["operand_types"], metrics)


def _build_all(
    config: EngineConfig, onnx_path: Path, plans: dict[Path, tuple[str, ...]], base: Path
) -> dict[Path, dict[str, Any]]:
    """Build every plan in a child process of its own, side by side; the first error or a signal ends all of them."""
    from compress.engines.runtime_cache import write_runtime_cache
    from compress.engines.tensorrt_builder import build_engine

    ranges = config.batch if isinstance(config.batch, tuple) else (config.batch,)

    def build(plan: Path, stop: Event | None = None) -> dict[str, Any]:
        sidecar = build_engine(
            onnx_path,
            plan,
            backend=config.backend,
            batch=[(batch.min, batch.opt, batch.max) for batch in ranges],
            input_name=INPUT,
            precision=None if config.precision == "auto" else config.precision,
            timeout_s=config.timeout_s,
            stop=stop,
            workspace_bytes=config.workspace_bytes,
            compute_capabilities=plans[plan],
            hardware_compatibility=None if config.hardware_compatibility == "none" else config.hardware_compatibility,
            version_compatible=config.version_compatible,
            timing_cache=base / config.timing_cache if config.timing_cache else None,
        )
        if config.runtime_cache != "none":
            write_runtime_cache(plan)
        return sidecar

    if len(plans) == 1:
        return {plan: build(plan) for plan in plans}
    return _side_by_side(build, tuple(plans))


def _side_by_side(build: Callable[[Path, Event], dict[str, Any]], plans: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    stop = Event()
    with progress("engines", len(plans), "plans") as bar, ThreadPoolExecutor(max_workers=len(plans)) as pool:
        try:
            building = {plan: pool.submit(build, plan, stop) for plan in plans}
            for future in as_completed(building.values()):
                future.result()
                bar.advance()
            return {plan: future.result() for plan, future in building.items()}
        finally:
            stop.set()  # after an error or a signal: the pool waits for every build


def _note(prefix: str, sidecar: dict[str, Any], model: OnnxModel | QuantizedOnnx, workspace: Workspace) -> None:
    operands = sidecar["operand_types"]
    if operands is None:
        return
    floats = sorted(set(operands["float_nodes"]) - set(_float_layers(model)))
    if isinstance(model, QuantizedOnnx) and floats:
        text = f"{prefix}quantized layers that run in float: {', '.join(floats)}"
        get_logger(__name__).warning("%s: %s", workspace.step, text)
        workspace.notes.append(text)
    for kind in _KINDS:
        int8, total = operands[kind]["int8"], operands[kind]["total"]
        workspace.notes.append(f"{prefix}{int8} of {total} {kind} have int8 operands")
    if sidecar["precision"].endswith("fp16"):
        workspace.notes.append(f"{prefix}what is not int8 computes in 16 bits, sums and exponentials in 32")


def _int8_share(sidecar: dict[str, Any]) -> float:
    kinds = [sidecar["operand_types"][kind] for kind in _KINDS]
    return sum(kind["int8"] for kind in kinds) / max(1, sum(kind["total"] for kind in kinds))


def _operand_metrics(operands: dict[str, Any], metrics: list[Metric]) -> list[Metric]:
    """Counts of one plan; of several the one with the fewest int8 layers."""
    for kind in _KINDS:
        metrics += [
            Metric(name=f"int8_{kind}", value=operands[kind]["int8"], unit=kind),
            Metric(name=kind, value=operands[kind]["total"], unit=kind),
        ]
    if total := sum(operands[kind]["total"] for kind in _KINDS):
        share = sum(operands[kind]["int8"] for kind in _KINDS) / total
        metrics.insert(0, Metric(name="int8_operands", value=share, unit="fraction", n=total))
    return metrics


ENGINE = Stage(
    name="engine",
    version=4,
    config=EngineConfig,
    inputs=EngineInputs,
    output=Engine,
    libraries=("onnx", "tensorrt-rtx-cu13", "tensorrt"),
    run=run,
    resolve=resolve,
    sources=sources,
)
