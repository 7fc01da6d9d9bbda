"""What every test may use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.engines.sidecar import IoTensor, Profile, Sidecar, sidecar_path, write_sidecar

# Idle threads must not spin: several test processes share the processor.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `compress` in a process of its own: `cli("plan", recipe, cwd=..., timeout=...)`."""

    def run(*arguments: str | Path, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "compress", *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="session")
def matmul_onnx() -> Callable[..., Path]:
    """Save a network of matrix products: `matmul_onnx(path, features=8, hidden=(), classes=4, batch="batch")`."""

    def save(
        path: Path, *, features: int = 8, hidden: Sequence[int] = (), classes: int = 4, batch: int | str = "batch"
    ) -> Path:
        random = np.random.default_rng(0)
        sizes = list(pairwise((features, *hidden, classes)))
        weights = [
            numpy_helper.from_array(random.random(size, dtype=np.float32) / size[0], f"weight{i}")
            for i, size in enumerate(sizes)
        ]
        names = ["image", *(f"hidden{i}" for i in range(len(hidden))), "logits"]
        graph = helper.make_graph(
            [helper.make_node("MatMul", [names[i], w.name], [names[i + 1]]) for i, w in enumerate(weights)],
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, features])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
            weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_cifar() -> Callable[..., Path]:
    """Write random images in CIFAR's binary format: so many for each class."""

    def save(folder: Path, dataset: str, *, train: int = 3, test: int = 1) -> Path:
        classes, names = (10, "batches.meta.txt") if dataset == "cifar10" else (100, "fine_label_names.txt")
        random = np.random.default_rng(0)
        folder.mkdir(parents=True)
        (folder / names).write_text("".join(f"kind_{label}\n" for label in range(classes)) + "\n")
        batches = [f"data_batch_{number}.bin" for number in range(1, 6)] if dataset == "cifar10" else ["train.bin"]
        for files, each in ((batches, train), (["test_batch.bin" if dataset == "cifar10" else "test.bin"], test)):
            labels = np.arange(each * classes)[:, None] % classes
            columns = [labels] if dataset == "cifar10" else [labels % 20, labels]
            records = np.hstack([*columns, random.integers(0, 256, (len(labels), 3072))]).astype(np.uint8)
            for name, part in zip(files, np.array_split(records, len(files)), strict=True):
                (folder / name).write_bytes(part.tobytes())
        return folder

    return save


@pytest.fixture(scope="session")
def unreadable_engine() -> Callable[..., Path]:
    """Save bytes that no library reads, with the sidecar that admits them; batches from `smallest` to 64."""

    def save(path: Path, *, features: int = 8, classes: int = 4, smallest: int = 1) -> Path:
        path.write_bytes(b"plan")
        sidecar = Sidecar(
            backend="tensorrt_rtx",
            backend_version="1",
            portable=True,
            compute_capabilities=(),
            workspace_bytes=None,
            profiles=(Profile(input="image", min=(smallest, features), opt=(8, features), max=(64, features)),),
            io=(
                IoTensor(name="image", mode="input", dtype="float32", shape=("batch", features)),
                IoTensor(name="logits", mode="output", dtype="float32", shape=("batch", classes)),
            ),
            layers=1,
            onnx_sha256="",
            plan_sha256=hashlib.sha256(b"plan").hexdigest(),
            plan_bytes=4,
            operand_types=None,
            messages=(),
        )
        write_sidecar(sidecar, sidecar_path(path))
        return path

    return save
