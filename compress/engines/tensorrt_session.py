"""A TensorRT or TensorRT-RTX engine on a GPU, without torch, so that it can be shipped to the device."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from compress.engines.availability import obstacle
from compress.engines.cuda_device import CudaDevice, TensorBuffer
from compress.engines.session import Arrays, TensorSpec, check_inputs
from compress.engines.sidecar import Sidecar, read_plan, read_sidecar, sidecar_path
from compress.errors import ArtifactError, DataError, ModelError, UnavailableError, UsageError

_LAST_MESSAGES = 5

# What get_engine_validity finds wrong, by bit.
_INVALIDITY = {
    1: "it was built by another version",
    2: "this GPU's compute capability is not among those that it was built for",
    4: "the NVIDIA driver is too old",
    8: "the CUDA runtime is too old",
    16: "the GPU has too little memory",
    32: "the plan is malformed",
    64: "CUDA failed",
}


class TensorRTSession:
    """One engine on one GPU; make it with `load`.

    Args:
        sidecar: of the engine.
        plan: bytes whose digest has been checked.
        index: of the GPU.
    """

    def __init__(self, sidecar: Sidecar, plan: bytes, index: int) -> None:
        trt = _import_backend(sidecar)
        self._sidecar = sidecar
        self.inputs = tuple(TensorSpec(io.name, io.dtype, io.shape) for io in sidecar.io if io.mode == "input")
        self.outputs = tuple(TensorSpec(io.name, io.dtype, io.shape) for io in sidecar.io if io.mode == "output")
        self._messages: list[str] = []
        self._buffers: dict[str, TensorBuffer] = {}
        self._logger = _make_logger(trt, self._messages)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._device: CudaDevice | None = CudaDevice(index)
        self._device_name = f"{self._device.name}, compute capability {self._device.compute_capability}"
        self._device_index = index
        try:
            with self._device.current():
                self._deserialize(trt, plan)
                self._allocate(self._device)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(cls, source: Path, device: str = "cuda") -> TensorRTSession:
        """Load a plan whose sidecar lies beside it.

        The digest is checked first, because an engine is native code; then this machine, before any GPU
        library is imported.

        Args:
            source: path of the plan, e.g. `model.plan`, with `model.json` beside it.
            device: `cuda` or `cuda:N`.

        Raises:
            UsageError: the device is no GPU.
            ArtifactError: plan or sidecar is missing, damaged or not from the same build.
            UnavailableError: no driver, GPU or library, or not those that the engine needs.
        """
        index = _gpu_index(device)
        sidecar = read_sidecar(sidecar_path(source))
        plan = read_plan(source, sidecar)
        missing = obstacle(sidecar.backend)
        if missing is not None:
            raise UnavailableError(
                f"{sidecar.backend} engines cannot run here: {missing.explanation}",
                where=source.name,
                hint=missing.install_hint,
            )
        return cls(sidecar, plan, index)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one batch and wait for it; see `Session.run`.

        Raises:
            DataError: names, types or shapes differ, or the batch is outside the engine's profile.
            ModelError: TensorRT refuses or fails.
        """
        views, _ = self._execute(inputs)
        return {name: view.copy() for name, view in views.items()}

    def timed(self, inputs: Arrays) -> Callable[[], float]:
        """Milliseconds of one run by the device's own events; see `Session.timed`.

        From the first copy to the device to the last one back, both through pinned memory.
        """
        return lambda: self._execute(inputs)[1]

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, profiles and tensors."""
        return {
            "backend": self._sidecar.backend,
            "version": self._sidecar.backend_version,
            "device": f"cuda:{self._device_index}",
            "device_name": self._device_name,
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
            "profiles": [profile.model_dump(mode="json") for profile in self._sidecar.profiles],
        }

    def close(self) -> None:
        """Free the engine, its buffers and its stream, in that order."""
        if self._device is None:
            return
        with self._device.current():
            # Each of these refers to the one after it.
            self._context = None
            self._engine = None
            self._runtime = None
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
        self._device.close()
        self._device = None

    def _deserialize(self, trt: Any, plan: bytes) -> None:
        # engine_host_code_allowed stays False: a plan has no business running code on the host.
        self._runtime = self._started(lambda: trt.Runtime(self._logger), "runtime")
        if hasattr(self._runtime, "get_engine_validity"):
            validity, bits = self._runtime.get_engine_validity(plan)
            if validity == trt.EngineValidity.INVALID:
                reasons = [text for bit, text in _INVALIDITY.items() if int(bits) & bit]
                raise UnavailableError(
                    f"The engine cannot run on {self._device_name}: {'; '.join(reasons) or self._last_messages()}",
                    hint="build the engine again, for this GPU and by the installed version",
                )
        self._engine = self._started(lambda: self._runtime.deserialize_cuda_engine(plan), "engine")
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        recorded = {spec.name for spec in (*self.inputs, *self.outputs)}
        if names != recorded:
            raise ArtifactError(f"The engine has tensors {sorted(names)}, its sidecar {sorted(recorded)}")
        self._context = self._started(self._engine.create_execution_context, "execution context")

    def _allocate(self, device: CudaDevice) -> None:
        """Make buffers for the largest batch and tell the engine where they are: addresses never change."""
        largest = {profile.input: profile.max for profile in self._sidecar.profiles}
        for spec in self.inputs:
            shape = largest.get(spec.name) or tuple(int(axis) for axis in spec.shape)
            self._check(self._context.set_input_shape(spec.name, shape), f"shape {shape} of {spec.name!r}")
        unknown = self._context.infer_shapes()
        if unknown:
            raise ModelError(f"TensorRT cannot infer the shapes of {', '.join(unknown)}")
        for spec in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(spec.name))
            if any(axis < 0 for axis in shape):
                raise ModelError(
                    f"The shape of {spec.name!r} depends on data: {shape}; expected one known from the inputs"
                )
            buffer = TensorBuffer(device, np.dtype(spec.dtype), shape)
            self._buffers[spec.name] = buffer
            self._check(self._context.set_tensor_address(spec.name, buffer.address), f"the address of {spec.name!r}")

    def _execute(self, inputs: Arrays) -> tuple[dict[str, np.ndarray], float]:
        """Run one batch and wait; returns views of pinned memory, good until the next run, and milliseconds."""
        if self._device is None:
            raise RuntimeError("the session is closed")
        check_inputs(inputs, self.inputs)
        self._check_profile(inputs)
        device = self._device
        with device.current():
            for name, array in inputs.items():
                self._check(self._context.set_input_shape(name, array.shape), f"shape {array.shape} of {name!r}")
                self._buffers[name].stage(array)
            shapes = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self.outputs}
            start = device.mark()
            for name, array in inputs.items():
                self._buffers[name].start_upload(array)
            self._check(self._context.execute_async_v3(device.stream_handle), "the run")
            views = {name: self._buffers[name].start_download(shape) for name, shape in shapes.items()}
            end = device.mark()
            device.synchronize()
            return views, device.milliseconds(start, end)

    def _check_profile(self, inputs: Arrays) -> None:
        for profile in self._sidecar.profiles:
            got = inputs[profile.input].shape[0]
            if not profile.min[0] <= got <= profile.max[0]:
                raise DataError(
                    f"A batch of {got} is outside the engine's profile: expected {profile.min[0]} to {profile.max[0]}",
                    hint="split the batch, or build the engine with another `batch`",
                )

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise ModelError(f"TensorRT refuses {what}: {self._last_messages()}")

    def _started(self, make: Any, what: str) -> Any:
        try:
            made = make()
        except (RuntimeError, TypeError) as error:  # pybind11 reports a null object as a TypeError
            raise UnavailableError(f"The {what} does not start: {self._last_messages()} ({error})") from error
        if made is None:
            raise UnavailableError(f"The {what} does not start: {self._last_messages()}")
        return made

    def _last_messages(self) -> str:
        return "; ".join(self._messages[-_LAST_MESSAGES:]) or "it gives no reason"


def _import_backend(sidecar: Sidecar) -> Any:
    trt = import_module(sidecar.backend)
    if trt.__version__ != sidecar.backend_version:
        raise UnavailableError(
            f"The engine was built by {sidecar.backend} {sidecar.backend_version}, and {trt.__version__} is installed; "
            "an engine runs only in the version that built it",
            hint=f"build the engine again, or install {sidecar.backend} {sidecar.backend_version}",
        )
    return trt


def _make_logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if getattr(severity, "name", "") in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                messages.append(msg.strip())

    return Logger()


def _gpu_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise UsageError(f"An engine runs on a GPU: got device {device!r}, expected cuda or cuda:N")
    return int(index) if index else 0
