"""Turns an artifact into something that runs here, or into the reason why it cannot."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifacts.manifest import Artifact, Checkpoint, Engine, OnnxModel, QuantizedOnnx
from compress.errors import UnavailableError
from compress.stages.contract import INPUT, OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.engines.session import Session

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Runnable:
    """One variant's session, or the reason for having none; `label` says what runs it and where."""

    artifact: Artifact
    file: Path
    label: str
    session: "Session | None"
    reason: str | None = None

    def logits(self, images: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Run all images, (n, channels, height, width) in [0, 1], in batches; returns (n, classes)."""
        import numpy as np

        assert self.session is not None
        starts = range(0, len(images), EVALUATION_BATCH)
        parts = [self.session.run({INPUT: images[start : start + EVALUATION_BATCH]})[OUTPUT] for start in starts]
        return np.concatenate(parts)


def runnable_from_artifact(artifact: Artifact, base: Path, *, device: str, threads: int) -> Runnable:
    """Load an artifact into the session of its kind; an engine that cannot run here keeps its reason."""
    if isinstance(artifact, Checkpoint):
        from compress.engines.torch_session import TorchSession
        from compress.training.checkpoint import load_checkpoint

        module = load_checkpoint(artifact.path, base).module
        session = TorchSession.load(module, device, threads=threads)
        return Runnable(artifact, artifact.path / "weights.safetensors", f"torch {device}", session)
    if isinstance(artifact, OnnxModel | QuantizedOnnx):
        from compress.engines.onnxruntime_session import OnnxRuntimeSession

        file = artifact.path / ("model.onnx" if isinstance(artifact, OnnxModel) else "model.ort.onnx")
        # A signed Q/DQ graph is what TensorRT reads: here it is computed node by node, as ONNX defines it.
        signed = isinstance(artifact, OnnxModel) and artifact.manifest.quantization is not None
        label = "onnxruntime cpu, unoptimized" if signed else "onnxruntime cpu"
        return Runnable(artifact, file, label, OnnxRuntimeSession.load(file, threads=threads, optimized=not signed))
    assert isinstance(artifact, Engine), artifact
    from compress.engines.availability import why_not
    from compress.engines.tensorrt_session import TensorRTSession

    file, backend = artifact.path / "model.plan", artifact.manifest.config["backend"]
    if reason := why_not(backend):
        return Runnable(artifact, file, f"{backend} cuda", None, reason)
    try:
        return Runnable(artifact, file, f"{backend} cuda", TensorRTSession.load(file))
    except UnavailableError as error:
        return Runnable(artifact, file, f"{backend} cuda", None, error.message)
