"""Loads and times one variant in a process of its own, started by `compress.stages.fresh_process`.

It runs as a script, not as `python -m`: importing the package `compress.stages` imports every stage, which would add a
third of a second to each of many processes, and 15 MB to the memory that is measured.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from compress.errors import CompressError

if TYPE_CHECKING:
    from compress.engines.session import Arrays, Session

_PR_SET_PDEATHSIG = 1
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)

Request = dict[str, Any]


def _load_checkpoint(request: Request) -> Session:
    from compress.engines.torch_session import TorchSession
    from compress.training.checkpoint import load_checkpoint

    module = load_checkpoint(Path(request["path"]), Path(request["base"])).module
    return TorchSession.load(module, request["device"], threads=request["threads"])


def _load_onnx(request: Request) -> Session:
    from compress.engines.onnxruntime_session import OnnxRuntimeSession

    return OnnxRuntimeSession.load(
        Path(request["path"]), request["device"], threads=request["threads"], optimized=request["optimized"]
    )


def _load_engine(request: Request) -> Session:
    from compress.engines.tensorrt_session import TensorRTSession

    return TensorRTSession.load(Path(request["path"]), request["device"], graphs=request["cuda_graphs"])


# How each kind is loaded, and its runtime: what is imported before the clock starts.
LOADERS: dict[str, tuple[Callable[[Request], Session], tuple[str, ...]]] = {
    "torch": (_load_checkpoint, ("torch", "compress.training.checkpoint", "compress.engines.torch_session")),
    "onnxruntime": (_load_onnx, ("onnxruntime", "compress.engines.onnxruntime_session")),
    "tensorrt": (_load_engine, ("pycuda.driver", "tensorrt", "compress.engines.tensorrt_session")),
    "tensorrt_rtx": (_load_engine, ("pycuda.driver", "tensorrt_rtx", "compress.engines.tensorrt_session")),
}


def _import_runtime(request: Request) -> None:
    for module in LOADERS[request["runtime"]][1]:
        import_module(module)
    if request["runtime"] == "torch":
        description = Path(request["path"], "checkpoint.json")
        # A damaged or missing description is for the loader to explain.
        if description.is_file() and b'"scheme": {' in description.read_bytes():
            import_module("torchao.quantization.pt2e.quantize_pt2e")


def _feed(entry: dict[str, Any]) -> Arrays:
    import numpy as np

    with np.load(entry["file"], allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{position}"] for position, name in enumerate(entry["names"])}


def _memory() -> tuple[int, int]:
    """Resident memory now, and its peak since the last reset; bytes."""
    if not _STATUS.is_file():  # not Linux: only the peak over the whole life of the process is known
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def _reset_peak() -> None:
    """Forget the peak of the imports, where the system lets a process do so."""
    if os.access(_CLEAR_REFS, os.W_OK):
        _CLEAR_REFS.write_text(_RESET_PEAK)


def _measure(request: Request, feeds: dict[str, Arrays], first: Arrays) -> dict[str, Any]:
    from compress.measure.latency import measure_interleaved

    gc.collect()
    _reset_peak()
    base_bytes, _ = _memory()
    start = time.perf_counter_ns()
    session = LOADERS[request["runtime"]][0](request)
    loaded = time.perf_counter_ns()
    session.run(first)
    answered = time.perf_counter_ns()
    medians: dict[str, float] = {}
    for batch, feed in feeds.items():
        taken = measure_interleaved({"it": session.timed(feed)}, blocks=1, **request["slot"])
        medians[batch] = taken["it"].block_ms[0]
    _, peak_bytes = _memory()
    session.close()
    return {
        "load_ms": (loaded - start) / 1e6,
        "first_ms": (answered - loaded) / 1e6,
        "medians_ms": medians,
        "base_bytes": base_bytes,
        "peak_bytes": peak_bytes,
    }


def _private_output() -> TextIO:
    """Keep standard output for the answers: whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(output: TextIO, document: dict[str, Any]) -> None:
    print(json.dumps(document), file=output, flush=True)


def main() -> None:
    """Read a request, import, say `ready`, wait for a line, then measure and answer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = _private_output()
    request: Request = json.loads(sys.stdin.readline())
    try:
        _import_runtime(request)
        feeds = {batch: _feed(entry) for batch, entry in request["feeds"].items()}
        first = _feed(request["first"])
        _answer(output, {"ready": True})
        if not sys.stdin.readline():  # the parent gave up
            return
        _answer(output, {"measured": _measure(request, feeds, first)})
    except CompressError as error:
        failure = {"error": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        _answer(output, {"failure": failure})


if __name__ == "__main__":
    main()
