from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from compress.measure.statistics import wilson
from compress.report.document import (
    ChangedSample,
    ClassRow,
    ColdStart,
    Confusion,
    Curve,
    Epoch,
    FreshRow,
    Hop,
    LatencyRow,
    Lineage,
    Paired,
    ParityRow,
    RatioRow,
    ReportDocument,
    Variant,
    WorstClass,
)

N = 450
CPU = "onnxruntime cpu"


def latency(batch: int, p50: float, unstable: bool = False) -> LatencyRow:
    return LatencyRow(batch=batch, p50_ms=p50, p90_ms=p50 * 1.1, p99_ms=p50 * 1.3, n=2000, drift=0.0, unstable=unstable)


def ratio(batch: int, value: float, sd: float = 0.01, blocks: int = 20) -> RatioRow:
    half = 2.093024054408263 * sd / math.sqrt(blocks)  # t quantile of 19 degrees of freedom
    return RatioRow(
        batch=batch,
        ratio=value,
        low=value * math.exp(-half),
        high=value * math.exp(half),
        blocks=blocks,
        mean_log=math.log(value),
        sd_log=sd,
    )


def measured(name: str, kind: str, correct: int, **fields: Any) -> dict[str, Any]:
    interval = wilson(correct, N)
    defaults = {
        "session": CPU,
        "top1": correct / N,
        "top1_interval": (interval.low, interval.high),
        "agreement": 0.98,
        "mean_kl": 0.0123,
        "parameters": 12_345,
        "size_bytes": 56_789,
        "latency": [latency(1, 0.1), latency(32, 1.0)],
        "paired_to_reference": Paired(gained=5, lost=9, n=N, mcnemar_p=0.42),
    }
    return {"name": name, "kind": kind, "status": "measured", **defaults, **fields}


@pytest.fixture
def report() -> Callable[..., ReportDocument]:
    """A report of teacher, float twin, int8 and an engine that was not run; fields of int8 and more by name."""

    def make(*, int8: dict[str, Any] | None = None, **fields: Any) -> ReportDocument:
        quantized: dict[str, Any] = {
            "ratio_to_float": [ratio(1, 0.8), ratio(32, 0.5)],
            "paired_to_float": Paired(gained=1, lost=3, n=N),
            "parity_to_float": ParityRow(max_abs=0.2, cosine=0.999, sqnr_db=31.5),
            "worst_class": WorstClass(name="8", change_pp=-2.2, n=45),
        }
        variants = [
            measured("teacher", "checkpoint", 444, session="torch cpu", agreement=1.0, mean_kl=0.0),
            measured("float", "onnx_model", 442),
            measured("int8", "quantized_onnx", 440, **quantized) | (int8 or {}),
            Variant(
                name="engine",
                kind="engine",
                status="not run",
                reason="no NVIDIA driver",
                size_bytes=1_234_567,
                facts={"convolutions": 9, "int8 operands": True},
            ),
        ]
        defaults: dict[str, Any] = {
            "reference": "teacher",
            "float_twin": "float",
            "split": "test",
            "n": N,
            "variants": variants,
            "ladder": [
                Hop(hop="teacher -> student", top1=442 / N, agreement=0.982, sqnr_db=None),
                Hop(hop="float -> int8", top1=440 / N, agreement=0.98, sqnr_db=31.5),
            ],
            "environment": {"cpu": "Example CPU", "threads": 2, "libraries": {"onnxruntime": "1.24"}},
            "lineage": [
                Lineage(step="teacher", stage="train", kind="checkpoint", key="a" * 64, digest="b" * 64),
                Lineage(
                    step="student", stage="distill", kind="checkpoint", key="c", digest="d",
                    inputs={"teacher": ["teacher"]},
                ),
            ],
        }  # fmt: skip
        return ReportDocument.model_validate({**defaults, **fields})

    return make


CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def png(shade: int) -> str:
    """A grey 8x8 picture with a diagonal, as a data URI."""
    rows = b"".join(b"\0" + bytes(255 - shade if x == y else shade for x in range(8)) for y in range(8))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def full_latency(batch: int, p50: float, unstable: bool = False) -> LatencyRow:
    quantiles = [p50 * (0.9 + 0.1 * k / 20 if k <= 20 else 1 + 0.2 * ((k - 20) / 20) ** 4) for k in range(41)]
    return LatencyRow(
        batch=batch, p50_ms=p50, p90_ms=p50 * 1.08, p99_ms=p50 * 1.19, p99_interval_ms=(p50 * 1.17, p50 * 1.25), n=6000,
        throughput=1000 * batch / p50, quantiles_ms=quantiles, drift=-0.012, unstable=unstable,
    )  # fmt: skip


def full_fields(index: int, p50: float) -> dict[str, Any]:
    """Everything that a measured variant may carry; `index` shifts it a little."""
    labels = [(a, b) for a in CLASSES for b in CLASSES]
    confusion = [
        Confusion(label=a, predicted=b, change=change)
        for k, (a, b) in enumerate(labels)
        if (change := (k * (index + 2)) % 11 - 5) and k % 3 == index % 3
    ]
    changed = [
        ChangedSample(id=f"test/{17 * k + index}", label=CLASSES[k], reference=CLASSES[k if k % 3 else k + 1],
                      predicted=CLASSES[(k + k % 2) % 10], kl=3.5 / (k + 1))
        for k in range(6)
    ]  # fmt: skip
    return {
        "latency": [full_latency(1, p50), full_latency(32, p50 * 9)],
        "p99_kl": 0.21,
        "ece": 0.031,
        "fresh": [
            FreshRow(batch=b, medians_ms=[p50 * f * (1 + k / 50) for k in range(5)]) for b, f in ((1, 1), (32, 9))
        ],
        "cold_start": ColdStart(
            processes=5,
            load_ms=3 + 4 * index,
            first_ms=1.5 + index,
            base_bytes=91_000_000,
            peak_bytes=99_000_000 + index,
        ),
        "classes": [
            ClassRow(name=name, n=45, top1=0.98 - 0.01 * (k % (index + 3)), change_pp=2.2 * ((k * index) % 5 - 2))
            for k, name in enumerate(CLASSES)
        ],
        "confusion": confusion if index else [],
        "changed": changed if index else [],
    }


@pytest.fixture
def full_report(report: Callable[..., ReportDocument]) -> Callable[..., ReportDocument]:
    """A report with every field filled; fields by name."""

    def make(**fields: Any) -> ReportDocument:
        document = report()
        variants: list[dict[str, Any]] = []
        for index, (variant, p50) in enumerate(zip(document.variants, (0.61, 0.102, 0.071, 0), strict=True)):
            given = full_fields(index, p50) if variant.status == "measured" else {}
            variants.append({**variant.model_dump(), **given})
        variants[2]["ratio_to_reference"] = [ratio(1, 0.12), ratio(32, 0.11)]
        epochs = [
            Epoch(epoch=k, values={"loss": 2.1 / k, "validation_loss": 2.2 / k + 0.1, "validation_top1": 1 - 0.4 / k,
                                   "learning_rate": 0.01 / k})
            for k in range(1, 21)
        ]  # fmt: skip
        hops = (("teacher", 444, None), ("teacher -> student", 441, None), ("student -> float", 441, 136.0),
                ("student -> qat", 443, None), ("qat -> onnx", 443, 76.2), ("onnx -> int8", 440, 44.0))  # fmt: skip
        ladder = [
            Hop(
                hop=hop,
                top1=right / N,
                agreement=0.98,
                sqnr_db=sqnr,
                max_abs=sqnr and 9 / sqnr,
                cosine=sqnr and 0.99991,
            )
            for hop, right, sqnr in hops
        ]
        defaults: dict[str, Any] = {
            **document.model_dump(),
            "run": "digits-0042",
            "variants": variants,
            "ladder": [*ladder, Hop(hop="int8 -> engine", top1=None, agreement=None, sqnr_db=None)],
            "curves": [Curve(step=step, epochs=epochs, kept=20) for step in ("teacher", "student", "qat")],
            "pictures": {f"test/{17 * k + index}": png(40 * k) for k in range(6) for index in (1, 2)},
            "fingerprint": {"cpu": "Example CPU", "threads": 2, "input": "sha256:12ab", "libraries": {"onnx": "1.23"}},
        }
        return ReportDocument.model_validate({**defaults, **fields})

    return make
