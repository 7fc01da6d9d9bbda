"""Builds one engine in a process of its own: `python -m compress.engines.build_child`.

The request comes as JSON on standard input, the answer goes as JSON to the file that the request names. A
native crash in here costs its parent nothing but an error message.

One path serves TensorRT 10, 11 and TensorRT-RTX: what differs is found by asking for the attribute.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from onnx import ModelProto

from compress.engines.build_request import BuildAnswer, BuildFailure, BuildRequest
from compress.engines.onnx_check import axis_names, check_quantization, compute_nodes, model_from_bytes
from compress.engines.rtx_program import compute_capabilities, count_int8, operand_types
from compress.engines.sidecar import Count, IoTensor, OperandTypes, OperationTypes, Profile, Sidecar
from compress.errors import CompressError, ModelError, TryAgainError, UnavailableError, UsageError

_Result = TypeVar("_Result")

_PR_SET_PDEATHSIG = 1
_MAX_LISTED = 10
_KEPT = ("INTERNAL_ERROR", "ERROR", "WARNING")
# Times and addresses differ from build to build.
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\b\d+(?:\.\d+)?(?:e-?\d+)? ?(?:ms|us|seconds|sec)\b")

# The parser's whole explanation for these is the word "false".
_QUANTIZED_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearAdd", "QGemm"}
)


class BuildLog:
    """Messages of the backend: kept here, and written to a file as they come.

    Args:
        path: one JSON object a line; what a crash leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self.messages: list[tuple[str, str]] = []
        self._file = path.open("w", encoding="utf-8")

    def add(self, severity: str, text: str) -> None:
        """Keep one message; verbose ones are dropped."""
        if severity == "VERBOSE":
            return
        self.messages.append((severity, text))
        self._file.write(json.dumps({"severity": severity, "text": text}) + "\n")
        self._file.flush()

    def errors(self) -> list[str]:
        """Texts of errors, oldest first."""
        return [text for severity, text in self.messages if severity in _KEPT[:2]]

    def summary(self) -> tuple[str, ...]:
        """Warnings and errors, each once with its count, without what varies between builds."""
        counts = Counter(
            f"{severity}: {_VARYING.sub('…', text.strip())}" for severity, text in self.messages if severity in _KEPT
        )
        return tuple(text if count == 1 else f"{text} ({count} times)" for text, count in counts.items())


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

    builder: Any
    network: Any
    parser: Any


def build(request: BuildRequest, log: BuildLog) -> Sidecar:
    """Parse, configure, build, write the plan.

    Raises:
        ModelError: the graph is invalid or unsupported.
        UsageError: input name, batch or compute capability do not fit.
        UnavailableError: the backend does not start here.
        TryAgainError: the disk is full.
    """
    data = request.onnx_path.read_bytes()
    model = model_from_bytes(data)
    check_quantization(model)
    trt = import_module(request.backend)
    logger = _make_logger(trt, log)
    arenas = FreshArenas()
    parsed = arenas.run(lambda: _parsed(trt, logger, data, log))
    builder, network = parsed.builder, parsed.network
    config = builder.create_builder_config()
    _configure(trt, config, request, log)
    profiles = _add_profile(builder, config, network, request)
    plan = arenas.run(lambda: builder.build_serialized_network(network, config))
    if plan is None:
        raise _build_error(request.backend, log)
    plan_bytes = bytes(plan)
    _write(request.plan_path, plan_bytes)
    tensors = axis_names(model)
    return Sidecar(
        backend=request.backend,
        backend_version=trt.__version__,
        portable=hasattr(config, "num_compute_capabilities") and not request.compute_capabilities,
        compute_capabilities=request.compute_capabilities or compute_capabilities(plan_bytes) or _own_capability(),
        workspace_bytes=request.workspace_bytes,
        profiles=profiles,
        io=(
            *(_io(trt, network.get_input(i), "input", tensors) for i in range(network.num_inputs)),
            *(_io(trt, network.get_output(i), "output", tensors) for i in range(network.num_outputs)),
        ),
        layers=network.num_layers,
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        plan_sha256=hashlib.sha256(plan_bytes).hexdigest(),
        plan_bytes=len(plan_bytes),
        operand_types=_operand_types(plan_bytes, model) if request.backend == "tensorrt_rtx" else None,
        messages=log.summary(),
    )


def _parsed(trt: Any, logger: Any, data: bytes, log: BuildLog) -> Parsed:
    builder = _started(lambda: trt.Builder(logger), "builder", log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        raise _parser_error(parser)
    if network.num_layers == 0 or network.num_outputs == 0:
        raise ModelError(f"The parser found {network.num_layers} layers and {network.num_outputs} outputs in the model")
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


def _parser_error(parser: Any) -> ModelError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [_explained(error.node_name(), error.node_operator(), error.desc(), error.code()) for error in errors]
    shown = "".join(f"\n  {line}" for line in lines[:_MAX_LISTED])
    if len(lines) > _MAX_LISTED:
        shown += f"\n  and {len(lines) - _MAX_LISTED} more"
    return ModelError(
        f"The TensorRT parser refuses {len(lines)} nodes of the ONNX model:{shown or ' it gives no reason'}",
        hint="replace these operators in the model, then export it again",
    )


def _explained(name: str, operator: str, text: str, code: Any) -> str:
    # "Invalid Node - name" repeats what is known; the lines after it have the reason.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Invalid Node - ")]
    reason = lines[0] if lines else ""
    if operator in _QUANTIZED_OPERATORS:
        reason = "not supported; int8 is spelled with QuantizeLinear and DequantizeLinear around float operators"
    elif "Plugin not found" in reason:
        reason = "unknown operator"
    elif reason.lower() in ("", "false"):
        reason = f"not supported (the parser says no more than {getattr(code, 'name', code)})"
    return f"{name or 'the model'} ({operator or 'no operator'}): {reason}"


def _configure(trt: Any, config: Any, request: BuildRequest, log: BuildLog) -> None:
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # keeps the names of layers in the plan
    if request.workspace_bytes is not None:
        # Beyond what there is, the limit means nothing, and near 2**63 it trips an internal assertion.
        limit = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        if request.workspace_bytes > limit:
            log.add("WARNING", f"workspace limit lowered from {request.workspace_bytes} to {limit} bytes")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(request.workspace_bytes, limit))
    if not request.compute_capabilities:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise UsageError(
            f"{request.backend} builds for the GPU of this machine only: leave the compute capabilities out"
        )
    known = {
        f"{int(member) // 10}.{int(member) % 10}": member
        for member in trt.ComputeCapability.__members__.values()
        if int(member) >= 10  # the smaller ones say NONE and CURRENT
    }
    unknown = [name for name in request.compute_capabilities if name not in known]
    if unknown:
        raise UsageError(f"Unknown compute capability {', '.join(unknown)}: {request.backend} knows {', '.join(known)}")
    config.num_compute_capabilities = len(request.compute_capabilities)
    for index, name in enumerate(request.compute_capabilities):
        if not config.set_compute_capability(known[name], index):
            raise UsageError(f"{request.backend} refuses to build for {', '.join(request.compute_capabilities)}")


def _add_profile(builder: Any, config: Any, network: Any, request: BuildRequest) -> tuple[Profile, ...]:
    inputs = {network.get_input(i).name: tuple(network.get_input(i).shape) for i in range(network.num_inputs)}
    if request.input_name not in inputs:
        raise UsageError(f"The model has no input {request.input_name!r}: it has {', '.join(inputs)}")
    # An unknown size is -1 here.
    elsewhere = [
        f"{name} axis {axis}" for name, shape in inputs.items() for axis, size in enumerate(shape) if axis and size < 0
    ]
    if elsewhere:
        raise ModelError(f"Only the first axis may be dynamic; these are too: {', '.join(elsewhere)}")
    fixed = inputs[request.input_name][0] if inputs[request.input_name] else 0
    if fixed >= 0:
        if request.batch != (fixed, fixed, fixed):
            raise ModelError(
                f"Input {request.input_name!r} has no dynamic batch: its shape is {inputs[request.input_name]}, "
                f"and the engine is to take batches {request.batch[0]} to {request.batch[2]}",
                hint="export the model with a dynamic first axis",
            )
        return ()
    profile = builder.create_optimization_profile()
    added: list[Profile] = []
    for name, shape in inputs.items():
        if shape and shape[0] < 0:
            smallest, best, largest = ((size, *shape[1:]) for size in request.batch)
            profile.set_shape(name, smallest, best, largest)
            added.append(Profile(input=name, min=smallest, opt=best, max=largest))
    if config.add_optimization_profile(profile) < 0:
        raise ModelError(f"TensorRT refuses the optimization profile: {[entry.model_dump() for entry in added]}")
    return tuple(added)


def _io(trt: Any, tensor: Any, mode: Any, axes: dict[str, list[str]]) -> IoTensor:
    names = axes.get(tensor.name, [])
    shape = tuple(
        int(size) if size >= 0 else (names[axis] if axis < len(names) and names[axis] else "?")
        for axis, size in enumerate(tensor.shape)
    )
    try:
        dtype = trt.nptype(tensor.dtype).__name__
    except TypeError as error:
        raise ModelError(f"Tensor {tensor.name!r} has type {tensor.dtype.name}, which numpy does not have") from error
    return IoTensor(name=tensor.name, mode=mode, dtype=dtype, shape=shape)


def _operand_types(plan: bytes, model: ModelProto) -> OperandTypes:
    operations = operand_types(plan)
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


def _own_capability() -> tuple[str, ...]:
    from compress.nvml import query_machine

    capability = gpus[0].compute_capability if (gpus := query_machine().gpus) else None
    return (capability,) if capability else ()


def _build_error(backend: str, log: BuildLog) -> CompressError:
    errors = log.errors()[-_MAX_LISTED:]
    text = "".join(f"\n  {line.strip()}" for line in errors) or " it gives no reason"
    # On a machine without a GPU, parts that need one say so beside the true cause, so only the last error decides.
    if errors and re.search(r"OutOfMemory|out of memory|OUT_OF_MEMORY", errors[-1]):
        return UnavailableError(f"{backend} ran out of memory while building:{text}")
    return ModelError(f"{backend} cannot build this model:{text}")


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
        return BuildAnswer(sidecar=build(request, BuildLog(request.log_path)))
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
