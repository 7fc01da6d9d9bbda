"""`export`: a checkpoint becomes an ONNX file: float, or Q/DQ where it was trained with fake-quant."""

import json
from dataclasses import asdict, dataclass

from compress.artifacts.manifest import Checkpoint, Metric, OnnxModel, Quantization
from compress.errors import ModelError
from compress.pipeline.stage import Metrics, Stage, StageConfig, Workspace
from compress.stages.contract import INPUT, OUTPUT, image_tensors, network_input

PARITY_SAMPLES = 256
MIN_SQNR_DB = 30.0  # float exports keep 130 dB and more, converted ones 60 and more; below, another function came out


class ExportConfig(StageConfig):
    """Nothing to choose yet: opset 20 is what both runtimes take."""


@dataclass(frozen=True)
class ExportInputs:
    """What is exported."""

    model: Checkpoint


def run(config: ExportConfig, inputs: ExportInputs, workspace: Workspace) -> Metrics:
    """Export, then hold ONNX Runtime's logits against torch's on real validation images."""
    import numpy as np
    import torch

    from compress.data.datasets import load_dataset
    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.measure.fidelity import parity
    from compress.onnx_graph.export import export_onnx
    from compress.quantization.quantizer import FakeQuantNetwork, convert_qat
    from compress.training.checkpoint import load_checkpoint
    from compress.training.evaluate import predict_logits
    from compress.training.runtime import cpu_threads

    loaded = load_checkpoint(inputs.model.path, workspace.base)
    scheme = loaded.description.scheme
    module = convert_qat(loaded.module) if isinstance(loaded.module, FakeQuantNetwork) else loaded.module
    path = workspace.path / "model.onnx"
    example = torch.zeros(2, *loaded.description.image_shape)
    export_onnx(module, example, path)

    everything = load_dataset(workspace.data, workspace.base).validation
    validation = everything.take(np.arange(min(PARITY_SAMPLES, len(everything))))
    with cpu_threads(1):  # the recorded parity must not depend on how many the process happens to have
        expected = predict_logits(module, validation)
    session = OnnxRuntimeSession.load(path, optimized=not scheme)
    images = network_input(validation.images)
    got = session.run({INPUT: images})[OUTPUT]
    session.close()
    distance = parity(got, expected)
    if distance.sqnr_db < MIN_SQNR_DB:
        raise ModelError(
            f"the exported graph answers {len(images)} validation images differently from torch: "
            f"SQNR {distance.sqnr_db:.1f} dB, expected at least {MIN_SQNR_DB:.0f}",
            hint="look for code in the network that depends on tracing, on the batch size or on random numbers",
        )
    flipped = int((got.argmax(1) != expected.argmax(1)).sum())
    (workspace.path / "parity.json").write_text(
        json.dumps({"split": "validation", "n": len(images), **asdict(distance), "flipped": flipped}, sort_keys=True)
    )
    workspace.tensors = image_tensors(loaded.description.image_shape, len(loaded.description.classes))
    if scheme:
        workspace.quantization = Quantization(scheme=scheme["name"], method="qat")
    n = len(images)
    return [
        Metric(name="parity_max_abs", value=distance.max_abs, unit="logit", split="validation", n=n),
        Metric(name="parity_sqnr", value=distance.sqnr_db, unit="dB", split="validation", n=n),
        Metric(name="flipped_argmax", value=flipped, unit="samples", split="validation", n=n),
        Metric(name="size", value=path.stat().st_size, unit="bytes"),
    ]


EXPORT = Stage(
    name="export",
    version=3,
    config=ExportConfig,
    inputs=ExportInputs,
    output=OnnxModel,
    libraries=("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "scikit-learn", "pillow"),
    run=run,
    splits=("validation",),
)
