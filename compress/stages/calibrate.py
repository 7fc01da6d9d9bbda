"""`calibrate`: every tensor that needs a scale gets one, and the two int8 files are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifacts.manifest import Metric, OnnxModel, Quantization, QuantizedOnnx
from compress.log import progress
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.quantization.scheme import QUANTIZER_VERSION
from compress.stages.contract import network_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.data.split import Split

BATCH_SIZE = 64


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

    used: list[Split] = []

    def batches() -> "Iterator[NDArray[np.float32]]":
        # Read only where a tensor has no scale yet: after QAT no calibration set is needed.
        chosen, warnings = calibration_set(load_dataset(workspace.data, workspace.base).train, config.samples)
        used.append(chosen)
        workspace.notes += warnings
        images = network_input(chosen.images)
        with progress("calibration", len(images), "images") as bar:
            for start in range(0, len(images), BATCH_SIZE):
                yield images[start : start + BATCH_SIZE]
                bar.advance(len(images[start : start + BATCH_SIZE]))

    quantized = quantize_onnx(load_onnx(inputs.model.path / "model.onnx"), batches(), config.method)
    raise_on_errors(quantized.signed, target="tensorrt")
    raise_on_errors(quantized.unsigned, target="onnxruntime")

    save_onnx(quantized.signed, workspace.path / "model.onnx")
    save_onnx(quantized.unsigned, workspace.path / "model.ort.onnx")
    (workspace.path / "scales.json").write_text(quantized.scales.to_json())
    kept = f"{quantized.calibrated} tensors calibrated, {quantized.kept} scales kept from qat"
    workspace.notes += [kept, *quantized.notes]
    workspace.tensors = inputs.model.manifest.tensors
    coverage = summarize(quantized.signed)["qdq"]
    digests = sorted(digest for split in used for digest in split.digests())
    methods = [name for name, count in (("qat", quantized.kept), (config.method, quantized.calibrated)) if count]
    workspace.quantization = Quantization(
        scheme="int8-symmetric",
        method="+".join(methods),
        calibration_samples=len(digests),
        calibration_digest=sha256_bytes("".join(digests).encode()) if digests else None,
        float_layers=tuple(coverage["float_layers"]),
    )
    read: dict[str, Any] = {"split": "train", "n": len(digests)} if digests else {}
    return [
        Metric(name="tensors_calibrated", value=quantized.calibrated, unit="tensors", **read),
        Metric(name="scales_kept", value=quantized.kept, unit="tensors"),
        Metric(name="size", value=(workspace.path / "model.onnx").stat().st_size, unit="bytes"),
    ]


CALIBRATE = Stage(
    name="calibrate",
    version=QUANTIZER_VERSION,
    config=CalibrateConfig,
    inputs=CalibrateInputs,
    output=QuantizedOnnx,
    libraries=("onnx", "onnxruntime", "numpy", "scikit-learn", "pillow"),
    run=run,
    splits=("train",),
)
