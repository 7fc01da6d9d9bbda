"""`calibrate`: every tensor that needs a scale gets one, and the two int8 files are written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from compress.artifacts.manifest import Metric, OnnxModel, Quantization, QuantizedOnnx
from compress.log import progress
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.quantization.settings import CACHE_VERSION, Granularity, Method, QuantizeSettings, WeightMethod
from compress.stages.contract import network_input
from compress.stages.precision import (
    Decision,
    PrecisionConfig,
    decide,
    float_layers_of,
    measured,
    recorded,
    times_candidates,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.data.split import Split

BATCH_SIZE = 64


class CalibrateConfig(StageConfig):
    """How tensors that QAT gave no scale get one."""

    samples: int = Field(default=512, ge=1, description="calibration images, class-balanced, from the training split")
    method: Method = Field(
        default="mse",
        description="how the range of an activation is chosen: the largest |x| (minmax), a moving average of the"
        " largest |x| of each batch, a percentile of |x|, least information loss (entropy), least squared error (mse)",
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="of |x|, in %, for method percentile")
    weights: WeightMethod = Field(
        default="max", description="how the range of a weight is chosen: the largest |w|, or least squared error (mse)"
    )
    granularity: Granularity = Field(
        default="per_channel", description="scales of a weight: one per output channel, or one per tensor"
    )
    precision: PrecisionConfig = Field(
        default="int8",
        description="which layers stay in float: none that can be int8, those named in float_layers, or those that a"
        " measurement chooses, to keep sqnr_db or budget_pp",
    )

    cache_version: str = Field(
        default=CACHE_VERSION,
        pattern=r"^([7-9]|10)\.\d{1,2}\.\d{1,2}$",
        description="TensorRT that calibration.cache is for: any other skips it without an error",
    )

    @model_validator(mode="after")
    def _check_percentile(self) -> "CalibrateConfig":
        # not model_fields_set: a config that is read back has every field set
        if self.percentile != CalibrateConfig.model_fields["percentile"].default and self.method != "percentile":
            raise ValueError(f"`percentile` belongs to method percentile, not {self.method}")
        return self

    def settings(self) -> QuantizeSettings:
        """The same as the library takes it."""
        return QuantizeSettings(
            method=self.method,
            percentile=self.percentile,
            weights=self.weights,
            granularity=self.granularity,
            float_layers=float_layers_of(self.precision),
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
    from compress.onnx_graph.loading import load_onnx
    from compress.quantization.quantize import quantize_onnx

    known: list[Split] = []  # the calibration set, once somebody needed it
    used: list[Split] = []  # the same, once ranges were measured on it

    def calibration() -> "Split":
        if not known:
            chosen, warnings = calibration_set(load_dataset(workspace.data, workspace.base).train, config.samples)
            known.append(chosen)
            workspace.notes += warnings
        return known[0]

    def batches() -> "Iterator[NDArray[np.float32]]":
        # Read only where a tensor has no scale yet: after QAT no calibration set is needed.
        chosen = calibration()
        used.append(chosen)
        with progress("calibration", len(chosen), "images") as bar:
            for start in range(0, len(chosen), BATCH_SIZE):
                images = network_input(chosen.images[start : start + BATCH_SIZE])
                yield images
                bar.advance(len(images))

    model, settings = load_onnx(inputs.model.path / "model.onnx"), config.settings()
    quantized = quantize_onnx(model, batches(), settings)
    decision = decide(config.precision, model, quantized, settings, workspace, calibration)
    quantized = decision.choice.quantized
    _write(decision, config.cache_version, workspace)
    kept = f"{quantized.calibrated} tensors calibrated, {quantized.kept} scales kept from qat"
    workspace.notes += [kept, decision.summary(), *quantized.notes]
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
        precision=recorded(decision),
    )
    read: dict[str, Any] = {"split": "train", "n": len(digests)} if digests else {}
    counts = [
        Metric(name="tensors_calibrated", value=quantized.calibrated, unit="tensors", **read),
        Metric(name="scales_kept", value=quantized.kept, unit="tensors"),
    ]
    return [
        *sorted(counts, key=lambda metric: -metric.value),  # the first is what a run shows: after QAT, not a bare 0
        Metric(name="size", value=(workspace.path / "model.onnx").stat().st_size, unit="bytes"),
        *measured(decision),
    ]


def _write(decision: Decision, cache_version: str, workspace: Workspace) -> None:
    from compress.onnx_graph.calibration_cache import FILE_NAME, calibration_cache
    from compress.onnx_graph.lint import raise_on_errors
    from compress.onnx_graph.loading import save_onnx

    quantized = decision.choice.quantized
    raise_on_errors(quantized.signed, target="tensorrt")
    raise_on_errors(quantized.unsigned, target="onnxruntime")
    save_onnx(quantized.signed, workspace.path / "model.onnx")
    save_onnx(quantized.unsigned, workspace.path / "model.ort.onnx")
    (workspace.path / "scales.json").write_text(quantized.scales.to_json())
    cache = calibration_cache(quantized.scales, quantized.activations, cache_version)
    (workspace.path / FILE_NAME).write_text(cache)
    document = json.dumps(decision.document(), indent=1, allow_nan=False)
    (workspace.path / "precision.json").write_text(document + "\n")


CALIBRATE = Stage(
    name="calibrate",
    version=5,
    config=CalibrateConfig,
    inputs=CalibrateInputs,
    output=QuantizedOnnx,
    libraries=("onnx", "onnxruntime", "numpy", "scikit-learn", "pillow"),
    run=run,
    splits=("train", "validation"),
    facts=("cpu",),
    needs_facts=lambda config: times_candidates(config.precision),
)
