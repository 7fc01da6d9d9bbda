"""An ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.engines.session import Arrays, TensorSpec, check_inputs, wall_timed
from compress.errors import ModelError, UnavailableError, UsageError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# How ONNX Runtime names its types; others cannot be fed from numpy here.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession:
    """One ONNX file in ONNX Runtime; make it with `load`.

    Args:
        session: an `onnxruntime.InferenceSession`.
        device: `cpu` or `cuda`.
        threads: of the intra-op pool, the calling thread included.
        version: of onnxruntime.
    """

    def __init__(self, session: Any, device: str, threads: int, version: str) -> None:
        self._session: Any = session
        self._device = device
        self._threads = threads
        self._version = version
        self.inputs = tuple(_spec(entry) for entry in session.get_inputs())
        self.outputs = tuple(_spec(entry) for entry in session.get_outputs())

    @classmethod
    def load(cls, source: Path, device: str = "cpu", *, threads: int = 1, optimized: bool = True) -> OnnxRuntimeSession:
        """Load an ONNX file, with all graph optimisations on unless told otherwise.

        Worker threads sleep between operators instead of spinning: with spinning on, a benchmark that
        interleaves variants makes each steal cores from the next, and the slower one looks slower still.

        Args:
            source: path of the ONNX file.
            device: `cpu` or `cuda`.
            threads: intra-op threads, >= 1, the calling thread included.
            optimized: False computes each node as ONNX defines it. Signed Q/DQ graphs need that where their
                numbers count: on x86 processors without VNNI the fused signed int8 kernels saturate at 16 bits.

        Raises:
            UsageError: unknown device, or threads < 1.
            UnavailableError: this onnxruntime has no provider for the device.
            ModelError: the file is missing, malformed or unsupported.
        """
        provider = PROVIDERS.get(device)
        if provider is None:
            raise UsageError(f"Unknown device {device!r} for ONNX Runtime: expected {' or '.join(PROVIDERS)}")
        if threads < 1:
            raise UsageError(f"ONNX Runtime needs at least 1 thread, got {threads}")
        if not source.is_file():
            raise ModelError(f"There is no ONNX file at {source}")
        import onnxruntime

        if provider not in onnxruntime.get_available_providers():
            raise _no_provider(provider, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they arrive as exceptions too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(source), options, providers=[provider])
        except Exception as error:  # its exception types share no base but Exception
            raise ModelError(
                f"ONNX Runtime {onnxruntime.__version__} refuses the model: {_first_line(error)}",
                where=source.name,
                hint="Run `compress lint` on the file.",
            ) from error
        if provider not in session.get_providers():  # it falls back to the processor with no more than a log line
            raise _no_provider(provider, session.get_providers())
        session.disable_fallback()
        return cls(session, device, threads, onnxruntime.__version__)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one batch; see `Session.run`."""
        if self._session is None:
            raise RuntimeError("the session is closed")
        check_inputs(inputs, self.inputs)
        names = [spec.name for spec in self.outputs]
        try:
            arrays = self._session.run(names, dict(inputs))
        except Exception as error:  # its exception types share no base but Exception
            shapes = {name: array.shape for name, array in inputs.items()}
            raise ModelError(f"ONNX Runtime fails on inputs of shape {shapes}: {_first_line(error)}") from error
        return dict(zip(names, arrays, strict=True))

    def timed(self, inputs: Arrays) -> Callable[[], float]:
        """Wall time of one run, in milliseconds a call; see `Session.timed`."""
        return wall_timed(lambda: self.run(inputs))

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, threads and tensors."""
        return {
            "backend": "onnxruntime",
            "version": self._version,
            "device": self._device,
            "threads": self._threads,
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
        }

    def close(self) -> None:
        """Free the session and its thread pool."""
        self._session = None


def _spec(entry: Any) -> TensorSpec:
    if entry.type not in _DTYPES:
        raise ModelError(f"Tensor {entry.name!r} has type {entry.type}, which no array can feed")
    # An axis without a name or a size arrives as None.
    shape = tuple("?" if axis is None else axis for axis in entry.shape)
    return TensorSpec(entry.name, _DTYPES[entry.type], shape)


def _no_provider(provider: str, present: Sequence[str]) -> UnavailableError:
    return UnavailableError(
        f"ONNX Runtime has no {provider} here, only {', '.join(present)}",
        hint="use device cpu, or install onnxruntime-gpu on a machine with an NVIDIA driver",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
