"""`engine`: an ONNX file becomes a TensorRT plan with a sidecar that says what is in it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from compress.artifacts.manifest import Engine, Metric, OnnxModel, QuantizedOnnx
from compress.log import get_logger
from compress.pipeline.machine import FACTS
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.contract import INPUT


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
    """Which builder, and for which batch sizes."""

    backend: Literal["tensorrt_rtx", "tensorrt"] = "tensorrt_rtx"
    batch: BatchRange = BatchRange()
    target: str = Field(
        default="auto",
        description="compute capability of the GPU, e.g. 8.9; auto: portable for tensorrt_rtx, this GPU for tensorrt",
    )
    timeout_s: float = Field(default=900, gt=0, description="of the build, seconds")
    workspace_bytes: int | None = Field(
        default=None, gt=0, description="scratch memory of the builder; None: its default"
    )


@dataclass(frozen=True)
class EngineInputs:
    """The graph that is built; of a quantized one the signed file."""

    model: OnnxModel | QuantizedOnnx


def resolve(config: EngineConfig) -> EngineConfig:
    """Say which GPUs the plan is for: it cannot be told apart from another one by its other settings."""
    return config.model_copy(update={"target": _default_target(config)}) if config.target == "auto" else config


def _default_target(config: EngineConfig) -> str:
    return "portable" if config.backend == "tensorrt_rtx" else str(FACTS["compute_capability"]())


def _float_layers(model: OnnxModel | QuantizedOnnx) -> tuple[str, ...]:
    return model.manifest.quantization.float_layers if model.manifest.quantization else ()


def run(config: EngineConfig, inputs: EngineInputs, workspace: Workspace) -> Metrics:
    """Lint, build in a child process, write plan and sidecar."""
    from compress.engines.tensorrt_builder import build_engine
    from compress.onnx_graph.lint import raise_on_errors
    from compress.onnx_graph.loading import load_onnx

    onnx_path, plan_path = inputs.model.path / "model.onnx", workspace.path / "model.plan"
    raise_on_errors(load_onnx(onnx_path), target="tensorrt")
    sidecar = build_engine(
        onnx_path,
        plan_path,
        backend=config.backend,
        batch=(config.batch.min, config.batch.opt, config.batch.max),
        input_name=INPUT,
        timeout_s=config.timeout_s,
        workspace_bytes=config.workspace_bytes,
        compute_capabilities=() if config.target == _default_target(config) else (config.target,),
    )
    workspace.tensors = inputs.model.manifest.tensors
    workspace.quantization = inputs.model.manifest.quantization
    metrics = [Metric(name="size", value=plan_path.stat().st_size, unit="bytes")]
    operands = sidecar["operand_types"]
    if operands is None:
        workspace.notes.append(f"{config.backend} plans do not tell their operand types without a GPU")
        return metrics
    floats = sorted(set(operands["float_nodes"]) - set(_float_layers(inputs.model)))
    if isinstance(inputs.model, QuantizedOnnx) and floats:
        get_logger(__name__).warning("%s: quantized layers that run in float: %s", workspace.step, ", ".join(floats))
        workspace.notes.append(f"quantized layers that run in float: {', '.join(floats)}")
    for kind in ("convolutions", "gemms"):
        int8, total = operands[kind]["int8"], operands[kind]["total"]
        workspace.notes.append(f"{int8} of {total} {kind} have int8 operands")
        metrics += [
            Metric(name=f"int8_{kind}", value=int8, unit=kind),
            Metric(name=kind, value=total, unit=kind),
        ]
    kinds = [operands[kind] for kind in ("convolutions", "gemms")]
    if total := sum(kind["total"] for kind in kinds):
        share = sum(kind["int8"] for kind in kinds) / total
        metrics.insert(0, Metric(name="int8_operands", value=share, unit="fraction", n=total))
    return metrics


ENGINE = Stage(
    name="engine",
    version=1,
    config=EngineConfig,
    inputs=EngineInputs,
    output=Engine,
    libraries=("onnx", "tensorrt-rtx-cu13", "tensorrt"),
    run=run,
    resolve=resolve,
)
