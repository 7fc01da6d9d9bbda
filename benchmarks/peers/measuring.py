"""All int8 files of one float network, side by side in one process: answers, kernels and interleaved latency.

    python measuring.py request.json answer.json

It runs in an environment with ONNX Runtime and OpenVINO. A request names the files by tool ("float" among them), the
test images, the batches and the settings of the harness; and by tool, as `sources`, the Q/DQ file that the measured
one was rewritten from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from judging import FLOAT, int8_share

from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.engines.session import wall_timed
from compress.measure.fidelity import correct_bits
from compress.measure.latency import latency_ratio, measure_interleaved
from compress.measure.statistics import drift

INPUT = "image"
CHUNK = 250  # test images at a time


class Runner(Protocol):
    """One loaded file."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits, (n, classes), of images, (n, channels, height, width)."""
        ...

    def kernels(self) -> Counter[str]:
        """How many operators of each kind the runtime runs, as `int8_share` reads them."""
        ...


class OnnxRuntimeRunner:
    """An ONNX file on ONNX Runtime's CPU provider, all optimisations on."""

    def __init__(self, path: Path, threads: int, *, optimized: bool = True) -> None:
        self.path = path
        self.session = OnnxRuntimeSession.load(path, threads=threads, optimized=optimized)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """One run."""
        return next(iter(self.session.run({INPUT: images}).values()))

    def kernels(self) -> Counter[str]:
        """Operators of the optimized graph, as ONNX Runtime itself writes it."""
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "optimized.onnx"
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(written)
            options.log_severity_level = 3
            onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            return Counter(node.op_type for node in onnx.load(written).graph.node)


class OpenVinoRunner:
    """An OpenVINO model on its CPU plugin, for latency, one stream; its other settings are its defaults."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
        self.compiled: Any = openvino.Core().compile_model(path, "CPU", options)
        self.request: Any = self.compiled.create_infer_request()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """One inference; the answer is copied out, as ONNX Runtime's is."""
        return self.request.infer({0: images}, share_inputs=True)[0]

    def kernels(self) -> Counter[str]:
        """Layers of the compiled graph with the precision that each runs in, e.g. Convolution:i8."""
        counts: Counter[str] = Counter()
        for layer in self.compiled.get_runtime_model().get_ops():
            facts = {key: str(value.astype(str)) for key, value in layer.get_rt_info().items() if key in _FACTS}
            counts[":".join(facts.get(key, "") for key in _FACTS)] += 1
        return counts


_FACTS = ("layerType", "runtimePrecision")


def load(path: Path, threads: int) -> Runner:
    """By the file's suffix."""
    return OpenVinoRunner(path, threads) if path.suffix == ".xml" else OnnxRuntimeRunner(path, threads)


def latency(runners: dict[str, Runner], images: np.ndarray, harness: dict[str, Any]) -> dict[str, Any]:
    """Time all tools on one batch, interleaved.

    Returns:
        Tool -> `median_ms` of its blocks, `ratio` of its latency to the float file's with `low` and `high` ends of
        the 95 % interval, `drifting`.
    """

    def call(runner: Runner) -> Callable[[], float]:
        return wall_timed(lambda: runner.logits(images))

    samples = measure_interleaved({name: call(runner) for name, runner in runners.items()}, **harness)
    found: dict[str, Any] = {}
    for name, taken in samples.items():
        ratio = latency_ratio(taken, samples[FLOAT])
        found[name] = {
            "median_ms": float(np.median(taken.block_ms)),
            "ratio": ratio.ratio,
            "low": ratio.low,
            "high": ratio.high,
            "blocks": ratio.blocks,
            "drifting": drift(taken.block_ms).unstable,
        }
    return found


def answers(runner: Runner, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Which test images a file has right, as bits, and their share `top1`."""
    logits = np.concatenate([runner.logits(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)])
    return {"correct": correct_bits(logits, labels), "top1": float((logits.argmax(axis=1) == labels).mean())}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Answers of every tool on every test image, then latency batch by batch."""
    with np.load(request["test"], allow_pickle=False) as arrays:
        images, labels = arrays[INPUT], arrays["label"]
    runners = {name: load(Path(path), request["threads"]) for name, path in request["files"].items()}
    tools: dict[str, Any] = {}
    for name, runner in runners.items():
        counts = runner.kernels()
        tools[name] = {
            **answers(runner, images, labels),
            "int8_share": int8_share(counts),
            "kernels": dict(sorted(counts.items())),
        }
    sources = {
        # node by node, as ONNX defines a Q/DQ graph: fused kernels for signed activations may saturate
        name: answers(OnnxRuntimeRunner(Path(path), request["threads"], optimized=False), images, labels)
        for name, path in request["sources"].items()
    }
    return {
        "n": len(labels),
        "tools": tools,
        "sources": sources,
        "latency": {
            batch: latency(runners, images[: int(batch)], harness) for batch, harness in request["harness"].items()
        },
        "versions": {name: metadata.version(name) for name in ("onnxruntime", "openvino", "numpy")},
    }


if __name__ == "__main__":
    answer = measure(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer, indent=2) + "\n")
