"""`calibrate`: every tensor that needs a scale gets one, and the two int8 files are written."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from compress.artifacts.manifest import Metric, OnnxModel, Quantization, QuantizedOnnx
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.contract import network_input


class CalibrateConfig(StageConfig):
    """How activations that QAT gave no scale get one."""

    samples: int = Field(default=512, ge=1, description="calibration images, class-balanced, from the training split")
    method: Literal["minmax", "entropy"] = Field(
        default="entropy", description="how a range is chosen from a histogram"
    )


@dataclass(frozen=True)
class CalibrateInputs:
    """The graph that is quantized."""

    model: OnnxModel


def run(config: CalibrateConfig, inputs: CalibrateInputs, workspace: Workspace) -> Metrics:
    """Keep the scales that are there, calibrate the rest, lint both files for their runtimes."""
    from compress.artifacts.fingerprint import sha256_bytes
    from compress.data.calibration_set import calibration_set
    from compress.data.datasets import load_dataset
    from compress.onnx_graph.inspect import summarize
    from compress.onnx_graph.lint import raise_on_errors
    from compress.onnx_graph.loading import load_onnx, save_onnx
    from compress.quantization.quantize import quantize_onnx

    chosen, warnings = calibration_set(load_dataset(workspace.data, workspace.base).train, config.samples)
    images = network_input(chosen.images)
    batches = (images[start : start + 64] for start in range(0, len(images), 64))
    quantized = quantize_onnx(load_onnx(inputs.model.path / "model.onnx"), batches, config.method)
    raise_on_errors(quantized.signed, target="tensorrt")
    raise_on_errors(quantized.unsigned, target="onnxruntime")

    save_onnx(quantized.signed, workspace.path / "model.onnx")
    save_onnx(quantized.unsigned, workspace.path / "model.ort.onnx")
    (workspace.path / "scales.json").write_text(quantized.scales.to_json())
    kept = f"{quantized.calibrated} tensors calibrated, {quantized.kept} scales kept from qat"
    workspace.notes += [kept, *(warnings if quantized.calibrated else ()), *quantized.notes]
    workspace.tensors = inputs.model.manifest.tensors
    coverage = summarize(quantized.signed)["qdq"]
    workspace.quantization = Quantization(
        scheme="int8-symmetric",
        method=config.method if quantized.calibrated else "qat",
        calibration_samples=len(images) if quantized.calibrated else 0,
        calibration_digest=sha256_bytes("".join(sorted(chosen.digests())).encode()) if quantized.calibrated else None,
        float_layers=tuple(coverage["float_layers"]),
    )
    return [
        Metric(name="tensors_calibrated", value=quantized.calibrated, unit="tensors", split="train", n=len(images)),
        Metric(name="scales_kept", value=quantized.kept, unit="tensors"),
        Metric(name="size", value=(workspace.path / "model.onnx").stat().st_size, unit="bytes"),
    ]


CALIBRATE = Stage(
    name="calibrate",
    version=1,
    config=CalibrateConfig,
    inputs=CalibrateInputs,
    output=QuantizedOnnx,
    libraries=("onnx", "onnxruntime", "numpy"),
    run=run,
    splits=("train",),
)
