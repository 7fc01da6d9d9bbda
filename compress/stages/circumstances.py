"""What a report says beside its figures: where they come from, and what must be equal to compare them with others."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifacts.fingerprint import sha256_bytes
from compress.artifacts.manifest import Artifact, Checkpoint
from compress.pipeline.machine import FACTS, library_version, machine_state
from compress.report.document import Curve, Epoch, Lineage, Variant
from compress.stages.fitting import BEST_EPOCH
from compress.stages.ladder import find

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.data.split import Split

MACHINE = ("cpu", "threads", "gpu", "driver")
LIBRARIES = (
    *("torch", "torchao", "onnx", "onnxruntime", "tensorrt-rtx-cu13", "tensorrt", "pycuda"),
    *("numpy", "scipy", "pillow", "scikit-learn"),
)


def lineage_of(artifact: Artifact, ancestors: Mapping[str, Artifact]) -> Lineage:
    """One artifact and the steps that it was made from."""
    manifest = artifact.manifest
    return Lineage(
        step=artifact.step,
        stage=manifest.stage,
        kind=manifest.kind,
        key=manifest.key,
        digest=manifest.digest,
        inputs={
            role: [found.step for ref in refs if (found := find(ref, ancestors))]
            for role, refs in manifest.inputs.items()
        },
    )


def environment(device: str, threads: int) -> dict[str, Any]:
    """The machine, its state while measuring, and the versions of what ran."""
    import platform

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: FACTS[name]() for name in MACHINE},
        "session_threads": threads,
        "device": device,
        **machine_state(),
        "libraries": {name: library_version(name) for name in LIBRARIES},
    }


def fingerprint(
    surroundings: Mapping[str, Any],
    batches: Sequence[int],
    test: "Split",
    images: "NDArray[np.float32]",
    slots: Mapping[str, Any],
) -> dict[str, Any]:
    """What two reports must share before a difference between them says anything about the models.

    Args:
        surroundings: from `environment`.
        batches: samples per call, in any order.
        test: the split that accuracy is measured on.
        images: what the sessions are fed, (n, channels, height, width).
        slots: settings that change a median of a fresh process (how long it is timed, not how many there are).
    """
    from compress.measure.latency import HARNESS_VERSION

    names = ("cpu", "threads", "gpu", "driver", "session_threads", "device", "spinning", "libraries")
    return {
        "harness": HARNESS_VERSION,
        **{name: surroundings[name] for name in names},
        "batches": sorted(batches),
        "slots": dict(slots),
        "input_shape": list(images.shape[1:]),
        "input_digest": sha256_bytes(images[: max(batches, default=1)].tobytes()),
        "samples_digest": sha256_bytes("".join(test.digests()).encode() + test.labels.tobytes()),
    }


def curves_of(artifacts: Iterable[Artifact]) -> list[Curve]:
    """What every training step among them logged, epoch by epoch; none for weights that were only brought."""
    return [
        Curve(step=one.step, epochs=_epochs(one), kept=_kept(one)) for one in artifacts if isinstance(one, Checkpoint)
    ]


def _kept(checkpoint: Checkpoint) -> int | None:
    """The epoch that training kept: not always the best one by validation."""
    found = [metric.value for metric in checkpoint.manifest.metrics if metric.name == BEST_EPOCH]
    return int(found[0]) if found else None


def _epochs(checkpoint: Checkpoint) -> list[Epoch]:
    history = checkpoint.path / "history.json"
    rows: list[dict[str, Any]] = json.loads(history.read_bytes()) if history.is_file() else []
    return [
        Epoch(
            epoch=row["epoch"],
            values={name: value for name, value in row.items() if name != "epoch" and isinstance(value, int | float)},
        )
        for row in rows
    ]


def pictures_of(variants: Iterable[Variant], test: "Split") -> dict[str, str]:
    """The samples that changed most, as PNG data URIs by id."""
    import base64
    import io

    from PIL import Image

    wanted = {sample.id for variant in variants for sample in variant.changed}
    found: dict[str, str] = {}
    for position, name in enumerate(test.ids):
        if name in wanted:
            pixels = test.images[position].transpose(1, 2, 0)
            buffer = io.BytesIO()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
            found[name] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
