"""Turns an artifact into something that runs here, or into the reason why it cannot."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifacts.manifest import Artifact, Checkpoint, Engine, OnnxModel, QuantizedOnnx
from compress.errors import UnavailableError
from compress.log import progress
from compress.stages.contract import INPUT, OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.engines.session import Session

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Runnable:
    """One variant's session, or the reason for having none.

    `label` says what runs it and where; `smallest` and `largest` are the batch sizes that it takes, in samples.
    """

    artifact: Artifact
    file: Path
    label: str
    session: "Session | None"
    reason: str | None = None
    smallest: int = 1
    largest: int | None = None

    def takes(self, batch: int) -> bool:
        """Whether it runs here, and with that batch size."""
        return self.session is not None and self.smallest <= batch <= (self.largest or batch)

    def logits(self, images: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Run all images, (n, channels, height, width) in [0, 1], in batches; returns (n, classes)."""
        import numpy as np

        assert self.session is not None
        size = min(EVALUATION_BATCH, self.largest or EVALUATION_BATCH)
        parts: list[NDArray[np.float32]] = []
        with progress(f"{self.artifact.step}: test images", len(images), "images") as bar:
            for start in range(0, len(images), size):
                chunk = images[start : start + size]
                # A last batch below the engine's smallest one is filled up, and the filling's answers are dropped.
                fed = np.resize(chunk, (max(len(chunk), self.smallest), *chunk.shape[1:]))
                parts.append(self.session.run({INPUT: fed})[OUTPUT][: len(chunk)])
                bar.advance(len(chunk))
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
    batch = artifact.manifest.config["batch"]
    try:
        session = TensorRTSession.load(file)
        return Runnable(artifact, file, f"{backend} cuda", session, smallest=batch["min"], largest=batch["max"])
    except UnavailableError as error:
        return Runnable(artifact, file, f"{backend} cuda", None, error.message)
