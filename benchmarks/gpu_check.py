"""What does this machine's GPU make of the engines? One JSON file, written anew after every section.

    benchmarks/gpu_check.sh [--wheels DIR] [--output benchmarks/results/gpu_check.json] [--quick] [--no-compile]

A residual network learns the digits, enlarged, in a few seconds; it is exported, quantized, and built into engines of
four precisions. Then: is each engine valid here; one inference; all test images through every form of the network;
latency of the engines against torch eager, torch.compile and bf16, interleaved, by CUDA events from the first copy to
the device to the last one back, all through pinned memory. Without a GPU the same questions are put to ONNX Runtime.

Each section stands for itself: what fails is written down with its message, and the others go on. Exits with 3 if
something failed, with 7 if something could not run here, else with 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

# Everything heavy is imported where it is used: a library that is missing here must not cost the other sections.
from gpu_latency import latency
from gpu_material import (
    CHUNK,
    QUICK,
    Answer,
    Material,
    Settings,
    build_engines,
    device,
    guarded,
    make_models,
    require_gpu,
    smi,
)
from promises import RESULTS

from compress.errors import EXIT_GATE_FAILED, EXIT_OK, EXIT_UNAVAILABLE

LIBRARIES = (
    *("torch", "torchao", "triton", "numpy", "onnx", "onnxscript", "onnxruntime"),
    *("tensorrt-rtx-cu13", "tensorrt", "pycuda"),
)


class Journal:
    """The result on disk: whole after every section, so that a crash of the driver leaves what was found before."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.result: Answer = {"settings": asdict(settings), "sections": {}}
        path.parent.mkdir(parents=True, exist_ok=True)

    def section(self, name: str, work: Callable[[], Answer]) -> None:
        """Do one section and write down what came of it."""
        self.result["sections"][name] = {"status": "running"}
        self.write()
        found = self.result["sections"][name] = guarded(work)
        self.write()
        reason = found.get("reason") or found.get("message") or ""
        print(f"{name:12} {found['status']:8} {found['seconds']:7.1f} s  {reason.splitlines()[0] if reason else ''}")

    def write(self) -> None:
        """Replace the file."""
        self.path.write_text(json.dumps(self.result, indent=2) + "\n")


def environment() -> Answer:
    """Machine, driver, versions."""
    from compress.nvml import query_machine
    from compress.pipeline.machine import FACTS, library_version, machine_state

    machine = query_machine()

    def cuda() -> Answer:
        import torch

        found: Answer = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "device": device()}
        if found["device"] == "cuda":
            found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        return found

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: fact() for name, fact in FACTS.items()},
        **machine_state(),
        "gpus": [asdict(gpu) for gpu in machine.gpus or ()],
        "gpu_problem": machine.gpu_problem or None,
        "libraries": {name: library_version(name) for name in LIBRARIES},
        "torch": guarded(cuda),
        "nvidia_smi": smi(),
    }


def ask_validity(material: Material) -> Answer:
    """What TensorRT-RTX itself says of each plan on this GPU, before anything is deserialized."""
    plans = material.need("plans")
    require_gpu()
    trt = import_module("tensorrt_rtx")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    answers: Answer = {}
    for name, plan in plans.items():
        validity, bits = runtime.get_engine_validity(plan.read_bytes())
        answers[name] = {"validity": str(validity), "bits": int(bits)}
    return answers


def one_inference(material: Material) -> Answer:
    """Load each engine, run one image twice."""
    import numpy as np

    from compress.engines.tensorrt_session import TensorRTSession

    plans, image = material.need("plans"), material.need("images")[:1]

    def infer(plan: Path) -> Answer:
        moments = [time.perf_counter()]
        session = TensorRTSession.load(plan)
        moments.append(time.perf_counter())
        logits = []
        for _ in range(2):
            logits.append(session.run({"image": image})["logits"][0])
            moments.append(time.perf_counter())
        described, state = session.describe(), session.telemetry()
        session.close()
        taken = [1000 * (after - before) for before, after in pairwise(moments)]
        times = dict(zip(("load_ms", "first_ms", "second_ms"), taken, strict=True))
        finite = bool(np.isfinite(logits).all())
        return {**times, "finite": finite, "logits": logits[0].tolist(), "session": described, "gpu": state}

    return {name: guarded(lambda plan=plan: infer(plan)) for name, plan in plans.items()}


def fidelity(material: Material) -> Answer:
    """All test images through every form of the network, against the teacher and against ONNX Runtime's int8."""
    import numpy as np

    from compress.engines.onnxruntime_session import OnnxRuntimeSession
    from compress.engines.tensorrt_session import TensorRTSession
    from compress.engines.torch_session import TorchSession
    from compress.measure.fidelity import compare_logits, parity

    files, images, labels = material.need("files"), material.need("images"), material.labels
    found: dict[str, Any] = {}

    def answer(name: str, load: Callable[[], Any]) -> Answer:
        session = load()
        parts = [session.run({"image": images[i : i + CHUNK]})["logits"] for i in range(0, len(images), CHUNK)]
        session.close()
        found[name] = logits = np.concatenate(parts)
        rows: Answer = {"n": len(labels)}
        for other in ("teacher", "onnxruntime int8"):
            if other in found:
                compared = compare_logits(logits, found[other], labels)
                rows["top1"] = compared.top1
                rows[f"against {other}"] = {**asdict(compared), **asdict(parity(logits, found[other]))}
        return rows

    loads: dict[str, Callable[[], Any]] = {
        "teacher": lambda: TorchSession.load(deepcopy(material.teacher)),
        "onnxruntime fp32": lambda: OnnxRuntimeSession.load(files["float"]),
        # Node by node, as ONNX defines it: on processors without VNNI fused signed kernels saturate.
        "onnxruntime int8": lambda: OnnxRuntimeSession.load(files["int8"], optimized=False),
        "onnxruntime int8 unsigned": lambda: OnnxRuntimeSession.load(files["int8 unsigned"]),
        **{f"engine {name}": lambda plan=plan: TensorRTSession.load(plan) for name, plan in material.plans.items()},
    }
    return {name: guarded(lambda name=name, load=load: answer(name, load)) for name, load in loads.items()}


def statuses(found: Any) -> Iterator[str]:
    """Every status in a result."""
    if isinstance(found, dict):
        if isinstance(found.get("status"), str):
            yield found["status"]
        for value in found.values():
            yield from statuses(value)


def main() -> int:
    """Ask everything, write as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_check.json")
    parser.add_argument("--quick", action="store_true", help="a tiny network, a few calls: does the check itself work?")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings(compiled=not options.no_compile)
    journal = Journal(options.output, settings)
    with tempfile.TemporaryDirectory(prefix="compress-gpu-check-") as folder:
        material = Material(settings, Path(folder))
        journal.section("environment", environment)
        journal.section("models", lambda: make_models(material))
        journal.section("engines", lambda: build_engines(material))
        journal.section("validity", lambda: ask_validity(material))
        journal.section("inference", lambda: one_inference(material))
        journal.section("fidelity", lambda: fidelity(material))
        journal.section("latency", lambda: latency(material))
    found = set(statuses(journal.result))
    print(f"written to {options.output}")
    return EXIT_GATE_FAILED if "failed" in found else EXIT_UNAVAILABLE if "not run" in found else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
