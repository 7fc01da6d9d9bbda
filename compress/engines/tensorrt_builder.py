"""Builds TensorRT and TensorRT-RTX engines from ONNX, each in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, TypedDict, Unpack

from compress.engines.availability import obstacle
from compress.engines.build_progress import read_progress
from compress.engines.build_request import BuildAnswer, BuildRequest
from compress.engines.profiles import BatchLimits, as_profiles
from compress.engines.sidecar import Precision, Sidecar, sidecar_path, timing_cache_path, write_sidecar
from compress.errors import CompressError, ModelError, UnavailableError, UsageError
from compress.log import Bar, get_logger, progress

BUILDERS = ("tensorrt_rtx", "tensorrt")
CHILD = (sys.executable, "-m", "compress.engines.build_child")
_LAST_MESSAGES = 8
_LAST_LINES = 20
_POLL_S = 0.2
# Where malloc puts things must not depend on what was freed before, by whichever thread: see docs/decisions/0007.
_CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=268435456",
}
_ASK_PERSONALITY, _ADDR_NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000


class BuildOptions(TypedDict, total=False):
    """What a build may be asked for beside batches and a time limit; each defaults to the backend's own choice."""

    # fp32 or fp16 of a float graph, int8 or int8+fp16 of a quantized one; with fp16 what is not quantized is
    # converted, inputs and outputs excepted. None: int8 or fp32, as the graph is.
    precision: Precision | None
    workspace_bytes: int | None  # scratch memory that kernels may use, > 0
    # GPUs to build for, e.g. 8.9. By default TensorRT-RTX is portable, and TensorRT builds for this machine's GPU. An
    # engine that has to run on 7.5 too computes in float throughout, int8 Q/DQ or not.
    compute_capabilities: Sequence[str]
    hardware_compatibility: str | None  # a level of the backend, e.g. ampere_plus; None for this GPU alone
    version_compatible: bool  # later versions of the backend may run the engine too
    timing_cache: Path | None  # timings of an earlier build, for the same GPU and version; None to time every kernel


def build_engine(
    onnx_path: Path,
    plan_path: Path,
    *,
    backend: str = "tensorrt_rtx",
    batch: Sequence[int] | Sequence[Sequence[int]] = (1, 8, 64),
    input_name: str = "image",
    timeout_s: float = 900.0,
    stop: Event | None = None,
    **options: Unpack[BuildOptions],
) -> dict[str, Any]:
    """Build an engine and its sidecar; the same ONNX bytes give the same plan bytes from any folder.

    Args:
        onnx_path: a float graph, or one with signed symmetric int8 Q/DQ.
        plan_path: where the plan goes; the sidecar goes beside it, with the suffix `.json`, and so do the timings of
            kernels, with the suffix `.timing_cache`, where the backend times any.
        backend: `tensorrt_rtx` (needs no GPU to build) or `tensorrt`.
        batch: smallest, typical and largest batch, 1 <= min <= opt <= max; kernels are chosen for the typical one.
            Several such triples give as many optimization profiles.
        input_name: the input whose batch this is; other inputs with a dynamic first axis get the same.
        timeout_s: the build is stopped after that many seconds, > 0.
        stop: the build is stopped soon after another thread sets it.
        **options: see `BuildOptions`.

    Returns:
        The sidecar's document; see `compress.engines.sidecar.Sidecar`.

    Raises:
        UsageError: batch, input name, precision, limits or GPUs make no sense, or the backend has no such setting.
        ModelError: the graph is invalid or unsupported, or crashes the builder.
        UnavailableError: the backend or the GPU that it needs is not here, the time is up, or `stop` is set.
        TryAgainError: the disk is full.
    """
    batches = as_profiles(batch)
    _check_arguments(onnx_path, backend, timeout_s, options)
    # On the plan's own file system, so that the finished plan is moved into place whole.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=plan_path.parent) as folder:
        request = _request_in(Path(folder).absolute(), onnx_path, backend, batches, input_name, options)
        sidecar = run_child(request, timeout_s, stop=stop)
        if sidecar.timing_cache_sha256 is not None:
            os.replace(request.cache_path, timing_cache_path(plan_path))
        os.replace(request.plan_path, plan_path)
    write_sidecar(sidecar, sidecar_path(plan_path))
    return sidecar.model_dump(mode="json")


def _request_in(
    folder: Path,
    onnx_path: Path,
    backend: str,
    batches: tuple[BatchLimits, ...],
    input_name: str,
    options: BuildOptions,
) -> BuildRequest:
    cache = options.get("timing_cache")
    return BuildRequest(
        onnx_path=onnx_path.absolute(),
        plan_path=folder / "plan",
        answer_path=folder / "answer.json",
        log_path=folder / "log.jsonl",
        progress_path=folder / "progress",
        cache_path=folder / "timing_cache",
        backend=backend,
        batches=batches,
        input_name=input_name,
        precision=options.get("precision"),
        workspace_bytes=options.get("workspace_bytes"),
        compute_capabilities=tuple(options.get("compute_capabilities", ())),
        hardware_compatibility=options.get("hardware_compatibility"),
        version_compatible=options.get("version_compatible", False),
        timing_cache=cache.absolute() if cache else None,
    )


def run_child(
    request: BuildRequest, timeout_s: float, command: Sequence[str] = CHILD, stop: Event | None = None
) -> Sidecar:
    """Hand a request to the building process and turn however it ends into a sidecar or an error.

    Args:
        request: what to build.
        timeout_s: limit in seconds.
        command: the process; it must read the request from standard input.
        stop: once it is set, the process is killed.

    Raises:
        CompressError: what the child reported, or its crash, the time limit or `stop` as such.
        RuntimeError: the child failed in a way that nobody foresaw.
    """
    # It starts in its own empty folder: a module of the user's that happens to be called `onnx` is not imported.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with _fixed_addresses():
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=request.plan_path.parent,
            env={**os.environ, **_CHILD_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
        )
    with process, progress(f"{request.backend}: building", None, "steps") as bar:
        try:
            stderr = _wait(process, request, timeout_s, bar, stop)
        except BaseException:
            process.kill()
            raise
    if process.returncode < 0:
        raise _crash(request, -process.returncode)
    if process.returncode > 0 or not request.answer_path.is_file():
        tail = "\n".join(stderr.strip().splitlines()[-_LAST_LINES:])
        raise RuntimeError(f"the building process ended with {process.returncode}:\n{tail}")
    answer = BuildAnswer.model_validate_json(request.answer_path.read_bytes())
    if answer.failure is not None:
        raise answer.failure.as_error().at(request.onnx_path.name)
    if answer.sidecar is None:
        raise RuntimeError("the building process answered nothing")
    return answer.sidecar


def _wait(process: subprocess.Popen[str], request: BuildRequest, timeout_s: float, bar: Bar, stop: Event | None) -> str:
    """Wait for the process while showing how far it is; returns what it wrote to standard error."""
    deadline = time.monotonic() + timeout_s
    document: str | None = request.model_dump_json()
    while True:
        left = deadline - time.monotonic()
        try:
            _, stderr = process.communicate(document, timeout=max(0.0, min(_POLL_S, left)))
            return stderr
        except subprocess.TimeoutExpired as error:
            document = None  # is on its way; what was read so far is kept
            if stop is not None and stop.is_set():
                raise UnavailableError(
                    f"{request.backend} was stopped before it had finished", where=request.onnx_path.name
                ) from error
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{request.backend} did not finish within {timeout_s:g} s{_last_messages(request.log_path)}",
                    where=request.onnx_path.name,
                    hint="raise the time limit, or build on a faster machine",
                ) from error
        state = read_progress(request.progress_path)
        if state is not None:
            bar.show(state.done, state.total)
            bar.update(phase=state.phase)


@contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Start processes whose memory is laid out the same every time; Linux, see personality(2).

    TensorRT-RTX orders some of its work by address: with random addresses the same model gives plans that differ in
    internal names, and so in their digests.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = libc.personality(_ASK_PERSONALITY)
    if before == -1 or libc.personality(before | _ADDR_NO_RANDOMIZE) == -1:
        get_logger(__name__).info("addresses cannot be fixed here (seccomp?): another build may give other plan bytes")
        yield
        return
    try:
        yield
    finally:
        libc.personality(before)


def _check_arguments(onnx_path: Path, backend: str, timeout_s: float, options: BuildOptions) -> None:
    if backend not in BUILDERS:
        raise UsageError(f"Unknown engine backend {backend!r}: expected {' or '.join(BUILDERS)}")
    if timeout_s <= 0:
        raise UsageError(f"The time limit must be above 0 s, got {timeout_s:g}")
    workspace_bytes, timing_cache = options.get("workspace_bytes"), options.get("timing_cache")
    if workspace_bytes is not None and workspace_bytes <= 0:
        raise UsageError(f"The workspace must be above 0 bytes, got {workspace_bytes}")
    if timing_cache is not None and not timing_cache.is_file():
        raise UsageError(f"There is no timing cache at {timing_cache}")
    if not onnx_path.is_file():
        raise ModelError(f"There is no ONNX file at {onnx_path}")
    missing = obstacle(backend, to="build")
    if missing is not None:
        raise UnavailableError(f"{backend} cannot build engines here: {missing.explanation}", hint=missing.install_hint)


def _crash(request: BuildRequest, number: int) -> CompressError:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    messages = _last_messages(request.log_path)
    if number in (signal.SIGKILL, signal.SIGTERM):  # from outside: the kernel out of memory, or somebody
        return UnavailableError(
            f"The process that built the engine was killed ({name}), as happens when memory runs out{messages}",
            where=request.onnx_path.name,
            hint="free some memory, or build on a larger machine",
        )
    return ModelError(
        f"{request.backend} crashed ({name}) on this model{messages}",
        where=request.onnx_path.name,
        hint="simplify the graph until it builds, then report the last node to NVIDIA",
    )


def _last_messages(log_path: Path) -> str:
    if not log_path.is_file():
        return "; it had said nothing"
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_MESSAGES:]
    texts: list[str] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the crash cut the last line short; what is there still tells something
            texts.append(line)
        else:
            texts.append(f"{entry['severity']}: {entry['text'].strip()}")
    return "; its last messages:" + "".join(f"\n  {text}" for text in texts) if texts else "; it had said nothing"
