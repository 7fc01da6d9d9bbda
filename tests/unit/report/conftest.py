from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from compress.measure.statistics import wilson
from compress.report.document import (
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
