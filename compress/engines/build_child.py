"""Builds one engine in a process of its own: `python -m compress.engines.build_child`.

The request comes as JSON on standard input, the answer goes as JSON to the file that the request names. A
native crash in here costs its parent nothing but an error message.

One path serves TensorRT 10, 11 and TensorRT-RTX: what differs is found by asking for the attribute.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnx import ModelProto

from compress.engines import builder_config
from compress.engines.build_messages import BuildLog, build_error, parser_error
from compress.engines.build_progress import ProgressFile, make_monitor
from compress.engines.build_request import BuildAnswer, BuildFailure, BuildRequest
from compress.engines.inspector import inspect_plan, layer_types
from compress.engines.onnx_check import axis_names, check_quantization, compute_nodes, model_from_bytes
from compress.engines.profiles import add_profiles
from compress.engines.rtx_program import Operation, compute_capabilities, count_int8, operand_types
from compress.engines.sidecar import Count, IoTensor, OperandTypes, OperationTypes, Precision, Profile, Sidecar
from compress.engines.tensorrt_engine import dims
from compress.errors import CompressError, ModelError, TryAgainError, UnavailableError, UsageError

if TYPE_CHECKING:
    import tensorrt

_Result = TypeVar("_Result")

_PR_SET_PDEATHSIG = 1


class FreshArenas:
    """Runs work whose allocations do not depend on what the process allocated before: see docs/decisions/0007.

    TensorRT-RTX orders some of its work by address. A new thread's malloc arena is empty while all others are in use,
    so every piece of work gets a thread that lives until the end: the order of addresses is then that of the work's
    own requests, whatever paths and settings this process was started with.
    """

    def __init__(self) -> None:
        self._threads: list[ThreadPoolExecutor] = []

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Do the work in a thread of its own; returns its result, raises its error."""
        self._threads.append(ThreadPoolExecutor(max_workers=1))
        return self._threads[-1].submit(work).result()


@dataclass(frozen=True)
class Parsed:
    """What must outlive the build: a parser on a collected network crashes the process."""

    builder: tensorrt.Builder
    network: tensorrt.INetworkDefinition
    parser: tensorrt.OnnxParser


@dataclass(frozen=True)
class Built:
    """What a build gave."""

    plan: bytes
    timings: bytes | None  # of kernels; None where the backend times nothing
    profiles: tuple[Profile, ...]
    portable: bool
    capabilities: tuple[str, ...]


def build(request: BuildRequest, log: BuildLog) -> Sidecar:
    """Parse, configure, build, write the plan.

    Raises:
        ModelError: the graph is invalid or unsupported.
        UsageError: input name, batch, precision or compute capability do not fit, or the backend has no such setting.
        UnavailableError: the backend does not start here.
        TryAgainError: the disk is full.
    """
    source = request.onnx_path.read_bytes()
    model = model_from_bytes(source)
    check_quantization(model)
    precision = choose_precision(model, request.precision)
    data, model = _converted(source, model, precision)
    trt = import_module(request.backend)
    logger = _make_logger(trt, log)
    arenas = FreshArenas()
    parsed = arenas.run(lambda: _parsed(trt, logger, data, log))
    built = _built(trt, parsed, request, log, arenas)
    _write(request.plan_path, built.plan)
    if built.timings is not None:
        _write(request.cache_path, built.timings)
    network, tensors = parsed.network, axis_names(model)
    operations = _operations(trt, logger, built.plan, model, log)
    return Sidecar(
        backend=request.backend,
        backend_version=trt.__version__,
        portable=built.portable,
        compute_capabilities=request.compute_capabilities or compute_capabilities(built.plan) or _own_capability(),
        workspace_bytes=request.workspace_bytes,
        profiles=built.profiles,
        io=(
            *(_io(trt, network.get_input(i), "input", tensors) for i in range(network.num_inputs)),
            *(_io(trt, network.get_output(i), "output", tensors) for i in range(network.num_outputs)),
        ),
        layers=network.num_layers,
        onnx_sha256=_sha256(source),
        plan_sha256=_sha256(built.plan),
        plan_bytes=len(built.plan),
        operand_types=None if operations is None else _operand_types(operations, model),
        messages=log.summary(),
        precision=precision,
        hardware_compatibility=request.hardware_compatibility,
        version_compatible=request.version_compatible,
        capabilities=built.capabilities,
        timing_cache_sha256=None if built.timings is None else _sha256(built.timings),
    )


def _built(trt: Any, parsed: Parsed, request: BuildRequest, log: BuildLog, arenas: FreshArenas) -> Built:
    builder, network = parsed.builder, parsed.network
    config = builder.create_builder_config()
    builder_config.configure(trt, config, request, log)
    profiles = add_profiles(builder, config, network, request)
    cache = builder_config.start_timing_cache(trt, config, request)
    here = builder_config.capabilities(trt, config)
    with closing(ProgressFile(request.progress_path)) as progress:
        if "progress" in here:
            config.progress_monitor = make_monitor(trt, progress)
        plan = arenas.run(lambda: builder.build_serialized_network(network, config))
    if plan is None:
        raise build_error(request.backend, log)
    return Built(
        plan=bytes(plan),
        timings=None if cache is None else builder_config.timing_cache_bytes(config),
        profiles=profiles,
        portable="compute_capabilities" in here and not request.compute_capabilities,
        capabilities=here,
    )


def choose_precision(model: ModelProto, wanted: Precision | None) -> Precision:
    """What the engine computes in: the graph decides over int8, the request over the rest.

    Raises:
        UsageError: int8 of a float graph, or a float engine of a quantized one.
    """
    from compress.onnx_graph.half import is_quantized

    quantized = is_quantized(model)
    if wanted is None:
        return "int8" if quantized else "fp32"
    if quantized and not wanted.startswith("int8"):
        raise UsageError(
            f"The model is quantized, so it cannot be built as {wanted}: expected int8 or int8+fp16",
            hint="build from the float model that it was quantized from",
        )
    if not quantized and wanted.startswith("int8"):
        raise UsageError(
            f"The model is not quantized, so it cannot be built as {wanted}: expected fp32 or fp16",
            hint="quantize it first: a `calibrate` step",
        )
    return wanted


def _converted(source: bytes, model: ModelProto, precision: Precision) -> tuple[bytes, ModelProto]:
    """The graph that is built; the file's own bytes where nothing is converted, so that its plan stays the same."""
    if not precision.endswith("fp16"):
        return source, model
    from compress.onnx_graph.half import to_half

    half = to_half(model)
    data = half.SerializeToString(deterministic=True)
    return data, model_from_bytes(data)


def _parsed(trt: Any, logger: Any, data: bytes, log: BuildLog) -> Parsed:
    builder: tensorrt.Builder = _started(lambda: trt.Builder(logger), "builder", log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise parser_error(parser)
    if network.num_layers == 0 or network.num_outputs == 0:
        raise ModelError(
            f"The parser found {network.num_layers} layers and {network.num_outputs} outputs in the model; "
            "expected at least one of each",
            hint="run `compress lint` on the ONNX file",
        )
    return Parsed(builder, network, parser)


def _make_logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(getattr(severity, "name", str(severity)), msg)

    return Logger()


def _started(make: Any, what: str, log: BuildLog) -> Any:
    try:
        made = make()
    except (RuntimeError, TypeError) as error:  # pybind11 reports a null object as a TypeError
        raise UnavailableError(f"The {what} does not start: {'; '.join(log.errors()) or error}") from error
    return made


def _io(trt: Any, tensor: tensorrt.ITensor, mode: Any, axes: dict[str, list[str]]) -> IoTensor:
    names = axes.get(tensor.name, [])
    shape = tuple(
        int(size) if size >= 0 else (names[axis] if axis < len(names) and names[axis] else "?")
        for axis, size in enumerate(dims(tensor.shape))
    )
    try:
        dtype = trt.nptype(tensor.dtype).__name__
    except TypeError as error:
        raise ModelError(f"Tensor {tensor.name!r} has type {tensor.dtype.name}, which numpy does not have") from error
    return IoTensor(name=tensor.name, mode=mode, dtype=dtype, shape=shape)


def _operations(trt: Any, logger: Any, plan: bytes, model: ModelProto, log: BuildLog) -> list[Operation] | None:
    """From the plan's own text where it has one, else from the inspector; None where neither can be read."""
    if builder_config.compiles_at_run_time(trt):
        return operand_types(plan)
    text = inspect_plan(trt, logger, plan)
    try:
        return layer_types(text, compute_nodes(model))
    except ValueError as error:
        log.add("WARNING", f"the inspector's answer cannot be read: {error}")
        return None


def _operand_types(operations: Iterable[Operation], model: ModelProto) -> OperandTypes:
    operations = list(operations)
    nodes = compute_nodes(model)
    counts = count_int8(operations, nodes)
    return OperandTypes(
        convolutions=Count(int8=counts.convolutions_int8, total=counts.convolutions),
        gemms=Count(int8=counts.gemms_int8, total=counts.gemms),
        float_nodes=counts.float_nodes,
        unseen_nodes=counts.unseen_nodes,
        operations=tuple(
            OperationTypes(
                kind=entry.kind,
                nodes=tuple(name for name in entry.layers if name in nodes) or (entry.name,),
                inputs=entry.inputs,
                outputs=entry.outputs,
                int8=entry.int8,
            )
            for entry in operations
        ),
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _own_capability() -> tuple[str, ...]:
    from compress.nvml import query_machine

    capability = gpus[0].compute_capability if (gpus := query_machine().gpus) else None
    return (capability,) if capability else ()


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            path.unlink()  # makes room for the answer
            raise TryAgainError(
                f"The disk is full: {len(data)} bytes of engine do not fit", where=str(path.parent)
            ) from error
        raise


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent: a build may hold a GPU for minutes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(request: BuildRequest) -> BuildAnswer:
    try:
        with closing(BuildLog(request.log_path)) as log:
            return BuildAnswer(sidecar=build(request, log))
    except CompressError as error:
        return BuildAnswer(failure=BuildFailure.from_error(error))


def main() -> None:
    """Read a request, build, answer."""
    _die_with_parent()
    request = BuildRequest.model_validate_json(sys.stdin.read())
    answer = _answer(request)
    request.answer_path.write_text(answer.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
