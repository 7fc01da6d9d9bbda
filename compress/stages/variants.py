"""Turns an artifact into something that runs here, or into the reason why it cannot."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifacts.manifest import Artifact, Checkpoint, Engine, OnnxModel, QuantizedOnnx
from compress.errors import UnavailableError
from compress.log import progress
from compress.pipeline.machine import FACTS
from compress.stages.contract import INPUT, OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.engines.session import Session

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Runnable:
    """One variant's session, or the reason for having none.

    `label` says what runs it and where; `smallest` and `largest` are the batch sizes that it takes, in samples, and
    `ranges` says it of each profile of an engine that has several, with gaps between them.
    """

    artifact: Artifact
    file: Path
    label: str
    session: "Session | None"
    reason: str | None = None
    smallest: int = 1
    largest: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    def takes(self, batch: int) -> bool:
        """Whether it runs here, and with that batch size."""
        return self.session is not None and self._filled(batch) == batch

    def _filled(self, batch: int) -> int | None:
        """The smallest batch that it takes and that holds this one; None where none does."""
        ranges = self.ranges or ((self.smallest, self.largest or max(batch, self.smallest)),)
        return min((max(batch, low) for low, high in ranges if batch <= high), default=None)

    def logits(self, images: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """Run all images, (n, channels, height, width) in [0, 1], in batches; returns (n, classes)."""
        import numpy as np

        assert self.session is not None
        size = min(EVALUATION_BATCH, self.largest or EVALUATION_BATCH)
        parts: list[NDArray[np.float32]] = []
        with progress(f"{self.artifact.step}: images", len(images), "images") as bar:
            for start in range(0, len(images), size):
                chunk = images[start : start + size]
                # A last batch that no profile takes is filled up, and the filling's answers are dropped.
                fed = np.resize(chunk, (self._filled(len(chunk)) or len(chunk), *chunk.shape[1:]))
                parts.append(self.session.run({INPUT: fed})[OUTPUT][: len(chunk)])
                bar.advance(len(chunk))
        return np.concatenate(parts)


def file_of(artifact: Artifact) -> Path:
    """The file of an artifact that runs here."""
    if isinstance(artifact, Checkpoint):
        return artifact.path / "weights.safetensors"
    if isinstance(artifact, OnnxModel | QuantizedOnnx):
        return artifact.path / ("model.onnx" if isinstance(artifact, OnnxModel) else "model.ort.onnx")
    assert isinstance(artifact, Engine), artifact
    from compress.engines.sidecar import find_plan

    return find_plan(artifact.path, FACTS["compute_capability"]())


def runnable_from_artifact(
    artifact: Artifact, base: Path, *, device: str, threads: int, cuda_graphs: bool = False
) -> Runnable:
    """Load an artifact into the session of its kind; an engine that cannot run here keeps its reason.

    Args:
        artifact: of a step.
        base: folder that a user's `module:callable` starts from.
        device: of torch sessions.
        threads: CPU threads of every session.
        cuda_graphs: start each batch of an engine as one CUDA graph, where the engine allows it.
    """
    if isinstance(artifact, Checkpoint):
        from compress.engines.torch_session import TorchSession
        from compress.training.checkpoint import load_checkpoint

        module = load_checkpoint(artifact.path, base).module
        session = TorchSession.load(module, device, threads=threads)
        return Runnable(artifact, file_of(artifact), f"torch {device}", session)
    if isinstance(artifact, OnnxModel | QuantizedOnnx):
        from compress.engines.onnxruntime_session import OnnxRuntimeSession

        file = file_of(artifact)
        # A signed Q/DQ graph is what TensorRT reads: here it is computed node by node, as ONNX defines it.
        signed = isinstance(artifact, OnnxModel) and artifact.manifest.quantization is not None
        label = "onnxruntime cpu, unoptimized" if signed else "onnxruntime cpu"
        return Runnable(artifact, file, label, OnnxRuntimeSession.load(file, threads=threads, optimized=not signed))
    assert isinstance(artifact, Engine), artifact
    from compress.engines.availability import why_not
    from compress.engines.tensorrt_session import TensorRTSession

    backend = artifact.manifest.config["backend"]
    file = file_of(artifact)
    if reason := why_not(backend):
        return Runnable(artifact, file, f"{backend} cuda", None, reason)
    batch = artifact.manifest.config["batch"]
    wanted = [batch] if isinstance(batch, dict) else batch
    ranges = tuple((entry["min"], entry["max"]) for entry in wanted)
    smallest, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    try:
        session = TensorRTSession.load(file, graphs=cuda_graphs)
        return Runnable(artifact, file, f"{backend} cuda", session, smallest=smallest, largest=largest, ranges=ranges)
    except UnavailableError as error:
        return Runnable(artifact, file, f"{backend} cuda", None, error.message)
