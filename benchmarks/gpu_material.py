"""What the sections of `gpu_check.py` share: settings, the network in its forms, its engines, and how failures end."""

from __future__ import annotations

import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from promises import ROOT

from compress.errors import UnavailableError

Precision = Literal["int8", "int8+fp16", "fp16", "fp32"]
ENGINES: tuple[Precision, ...] = ("int8", "int8+fp16", "fp16", "fp32")
CALIBRATION, CHUNK = 512, 64
SMI = "name,driver_version,pstate,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used,utilization.gpu"
Answer = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How large the network is and how long is measured; batches are samples per call."""

    scale: int = 4
    widths: tuple[int, ...] = (64, 128, 256)
    epochs: int = 8
    batches: tuple[int, ...] = (1, 32, 256)
    blocks: int = 20
    slot_ms: float = 50.0
    warmup_ms: float = 500.0
    build_s: float = 400.0
    compiled: bool = True


QUICK = Settings(
    scale=1, widths=(8, 16), epochs=1, batches=(1,), blocks=2, slot_ms=1, warmup_ms=1, build_s=120, compiled=False
)


@dataclass
class Material:
    """What sections hand on; empty where the section that makes it failed. Images are float32 in [0, 1]."""

    settings: Settings
    folder: Path
    teacher: Any = None
    images: Any = None  # of the test split, (n, 1, side, side)
    labels: Any = None
    files: dict[str, Path] = field(default_factory=dict)  # ONNX: float, int8, int8 unsigned
    plans: dict[str, Path] = field(default_factory=dict)

    def need(self, what: str) -> Any:
        """What an earlier section made.

        Raises:
            UnavailableError: it made nothing.
        """
        found = getattr(self, what)
        if found is None or (isinstance(found, dict) and not found):
            raise UnavailableError(f"an earlier section made no {what}")
        return found


def guarded(work: Callable[[], Answer]) -> Answer:
    """Do some work; what it finds, or why it found nothing, with `status` done, not run or failed."""
    start = time.monotonic()
    found: Answer
    try:
        found = {"status": "done", **work()}
    except UnavailableError as error:
        found = {"status": "not run", "reason": error.message}
    except Exception as error:  # a failure is a result of this check
        traceback.print_exc()
        found = {"status": "failed", "error": type(error).__name__, "message": str(error)[:2000]}
    return {**found, "seconds": round(time.monotonic() - start, 2)}


def smi() -> str | None:
    """What nvidia-smi says of the GPU at this moment; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).strip()


def device() -> str:
    """Where torch runs here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_gpu() -> None:
    """Refuse without a GPU.

    Raises:
        UnavailableError: there is none, with the reason.
    """
    from compress.engines.availability import check_gpu
    from compress.nvml import query_machine

    found = check_gpu(query_machine())
    if not found.available:
        raise UnavailableError(found.explanation)


def make_models(material: Material) -> Answer:
    """Train the network, export it, quantize it."""
    import numpy as np
    import torch

    from compress.data.config import DataConfig
    from compress.data.datasets import load_dataset
    from compress.models.catalogue import build_model, count_parameters
    from compress.models.normalized import Normalized
    from compress.onnx_graph.export import export_onnx
    from compress.onnx_graph.loading import load_onnx, save_onnx
    from compress.quantization.quantize import quantize_onnx

    settings, folder = material.settings, material.folder
    data = load_dataset(DataConfig(dataset="digits"), ROOT)

    def enlarged(pixels: Any) -> Any:
        images = pixels.astype(np.float32) / 255
        return np.ascontiguousarray(images.repeat(settings.scale, axis=2).repeat(settings.scale, axis=3))

    train, material.images, material.labels = enlarged(data.train.images), enlarged(data.test.images), data.test.labels
    torch.manual_seed(0)
    options = {"name": "resnet", "widths": list(settings.widths), "depths": [2] * len(settings.widths)}
    net = build_model(options, image_shape=train.shape[1:], classes=len(data.classes), base=ROOT)
    teacher = Normalized(net, *data.train.channel_statistics())
    fit(teacher, train, data.train.labels, settings.epochs)
    material.teacher = teacher
    files = {name: folder / f"{name}.onnx" for name in ("float", "int8", "int8 unsigned")}
    export_onnx(teacher, torch.zeros(2, *train.shape[1:]), files["float"])
    chunks = [train[start : start + CHUNK] for start in range(0, CALIBRATION, CHUNK)]
    quantized = quantize_onnx(load_onnx(files["float"]), chunks)
    save_onnx(quantized.signed, files["int8"])
    save_onnx(quantized.unsigned, files["int8 unsigned"])
    material.files = files
    return {
        "model": options,
        "input": list(train.shape[1:]),
        "parameters": count_parameters(teacher),
        "calibration_samples": CALIBRATION,
        "notes": quantized.notes,
        "bytes": {name: path.stat().st_size for name, path in files.items()},
    }


def fit(module: Any, images: Any, labels: Any, epochs: int) -> None:
    """A few epochs of AdamW, on the GPU where torch has one; ends on the processor, in evaluation mode."""
    import torch
    from torch.nn import functional as F

    where = device()
    module.to(where).train()
    inputs, targets = torch.from_numpy(images).to(where), torch.from_numpy(labels).to(where)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[chosen.to(where)]), targets[chosen.to(where)]).backward()
            optimizer.step()
    module.cpu().eval()


def build_engines(material: Material) -> Answer:
    """Engines of four precisions from the float and the signed graph; none of them needs a GPU to be built."""
    from compress.engines.tensorrt_builder import build_engine

    files, settings = material.need("files"), material.settings

    def build(name: Precision) -> Answer:
        source, plan = files["int8" if "int8" in name else "float"], material.folder / f"{name}.plan"
        batch = (1, sorted(settings.batches)[len(settings.batches) // 2], max(*settings.batches, CHUNK))
        sidecar = build_engine(source, plan, batch=batch, timeout_s=settings.build_s, precision=name)
        material.plans[name] = plan
        counts = sidecar.get("operand_types") or {}
        return {
            **{key: sidecar.get(key) for key in ("backend", "backend_version", "compute_capabilities", "plan_bytes")},
            **{kind: counts.get(kind) for kind in ("convolutions", "gemms")},
            "messages": sidecar.get("messages"),
        }

    return {name: guarded(lambda name=name: build(name)) for name in ENGINES}
