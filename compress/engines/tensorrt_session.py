"""A TensorRT or TensorRT-RTX engine on a GPU, without torch, so that it can be shipped to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compress.engines.availability import obstacle
from compress.engines.cuda_device import CudaDevice, TensorBuffer
from compress.engines.cuda_graph import CaptureError, CudaGraph
from compress.engines.session import Arrays, TensorSpec, check_inputs
from compress.engines.sidecar import (
    Profile,
    Sidecar,
    batch_ranges,
    choose_profile,
    read_plan,
    read_runtime_cache,
    read_sidecar,
    sidecar_path,
)
from compress.engines.tensorrt_engine import TensorRTEngine, dims
from compress.errors import DataError, ModelError, UnavailableError, UsageError
from compress.log import get_logger
from compress.nvml import query_state

_MOST_GRAPHS = 16  # each holds a copy of the launches of one set of shapes

ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]


class TensorRTSession:
    """One engine on one GPU; make it with `load`.

    Args:
        sidecar: of the engine.
        plan: bytes whose digest has been checked.
        index: of the GPU.
        graphs: capture a CUDA graph of every set of shapes after its first run, and start that from then on.
        cache: what was compiled for this GPU before, its digest checked; None to compile anew.
        keep_cache: see `runtime_cache_bytes`.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        plan: bytes,
        index: int,
        *,
        graphs: bool = False,
        cache: bytes | None = None,
        keep_cache: bool = False,
    ) -> None:
        self._sidecar = sidecar
        self.inputs = tuple(TensorSpec(io.name, io.dtype, io.shape) for io in sidecar.io if io.mode == "input")
        self.outputs = tuple(TensorSpec(io.name, io.dtype, io.shape) for io in sidecar.io if io.mode == "output")
        self._buffers: dict[str, TensorBuffer] = {}
        self._graphs: dict[ShapeKey, CudaGraph] = {}
        self._no_graphs = "" if graphs else "not asked for"
        self._profile = 0
        self._engine: TensorRTEngine | None = None
        self._device: CudaDevice | None = CudaDevice(index)
        self._gpu = (self._device.name, self._device.compute_capability)
        self._pci_bus_id = self._device.pci_bus_id
        self._device_index = index
        try:
            with self._device.current():
                self._engine = TensorRTEngine(
                    sidecar, plan, self._gpu, cache=cache, keep_cache=keep_cache, eager=graphs
                )
                self._allocate(self._device, self._engine)
                if graphs:
                    self._no_graphs = self._capture_obstacle(self._device, self._engine)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls, source: Path, device: str = "cuda", *, graphs: bool = False, keep_cache: bool = False
    ) -> TensorRTSession:
        """Load a plan whose sidecar lies beside it.

        The digest is checked first, because an engine is native code; then this machine, before any GPU
        library is imported.

        Args:
            source: path of the plan, e.g. `model.plan`, with `model.json` beside it.
            device: `cuda` or `cuda:N`.
            graphs: start each set of shapes as one CUDA graph from its second run on, where the engine allows it;
                `describe` says whether it does.
            keep_cache: keep what is compiled on this GPU for `runtime_cache_bytes`.

        Raises:
            UsageError: the device is no GPU.
            ArtifactError: plan, sidecar or runtime cache is missing, damaged or not from the same build.
            UnavailableError: no driver, GPU or library, or not those that the engine needs.
        """
        index = _gpu_index(device)
        sidecar = read_sidecar(sidecar_path(source))
        plan = read_plan(source, sidecar)
        cache = read_runtime_cache(source, sidecar)
        missing = obstacle(sidecar.backend)
        if missing is not None:
            raise UnavailableError(
                f"{sidecar.backend} engines cannot run here: {missing.explanation}",
                where=source.name,
                hint=missing.install_hint,
            )
        return cls(sidecar, plan, index, graphs=graphs, cache=cache, keep_cache=keep_cache)

    @property
    def batch_ranges(self) -> tuple[tuple[int, int], ...]:
        """Smallest and largest batch of each optimization profile; empty where the engine takes one batch only."""
        return tuple(batch_ranges(self._sidecar.profiles).values())

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one batch and wait for it; see `Session.run`.

        Raises:
            DataError: names, types or shapes differ, or the batch is outside the engine's profiles.
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
        """Backend, version, device, profiles and tensors; whether graphs are captured, and what was compiled before."""
        return {
            "backend": self._sidecar.backend,
            "version": self._sidecar.backend_version,
            "device": f"cuda:{self._device_index}",
            "device_name": f"{self._gpu[0]}, compute capability {self._gpu[1]}",
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
            "profiles": [profile.model_dump(mode="json") for profile in self._sidecar.profiles],
            "precision": self._sidecar.precision,
            "cuda_graphs": f"no: {self._no_graphs}" if self._no_graphs else "yes",
            "runtime_cache": self._engine.cache_state if self._engine else "none",
        }

    def telemetry(self) -> dict[str, Any] | None:
        """Clocks in MHz, power in W and temperature in °C of this GPU now; None where nobody tells."""
        state = query_state(self._pci_bus_id)
        return None if state is None else asdict(state)

    def runtime_cache_bytes(self) -> bytes | None:
        """What has been compiled on this GPU, for a session loaded with `keep_cache`; None where nothing is."""
        device, engine = self._open()
        with device.current():
            return engine.runtime_cache_bytes()

    def close(self) -> None:
        """Free graphs, engine, buffers and stream, in that order."""
        if self._device is None:
            return
        with self._device.current():
            self._drop_graphs()
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
        self._device.close()
        self._device = None

    def _open(self) -> tuple[CudaDevice, TensorRTEngine]:
        if self._device is None or self._engine is None:
            raise RuntimeError("the session is closed")
        return self._device, self._engine

    def _allocate(self, device: CudaDevice, engine: TensorRTEngine) -> None:
        """Make buffers for the largest batch of any profile; their addresses never change."""
        largest: dict[str, tuple[int, ...]] = {}
        for index in sorted(batch_ranges(self._sidecar.profiles)) or [0]:
            self._select(device, engine, index)
            limits = {profile.input: profile.max for profile in self._sidecar.profiles if profile.index == index}
            for name, shape in self._shapes_at(engine, limits).items():
                if name not in largest or np.prod(shape) > np.prod(largest[name]):
                    largest[name] = shape
        for spec in (*self.inputs, *self.outputs):
            self._buffers[spec.name] = TensorBuffer(device, np.dtype(spec.dtype), largest[spec.name])
        self._set_addresses(engine)

    def _shapes_at(self, engine: TensorRTEngine, limits: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors at the largest inputs of the profile that is selected."""
        context = engine.context
        for spec in self.inputs:
            shape = limits.get(spec.name) or tuple(int(axis) for axis in spec.shape)
            engine.check(context.set_input_shape(spec.name, shape), f"shape {shape} of {spec.name!r}")
        unknown = context.infer_shapes()
        if unknown:
            raise ModelError(f"TensorRT cannot infer the shapes of {', '.join(unknown)}")
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in (*self.inputs, *self.outputs):
            shapes[spec.name] = shape = dims(context.get_tensor_shape(spec.name))
            if any(axis < 0 for axis in shape):
                raise ModelError(
                    f"The shape of {spec.name!r} depends on data: {shape}; expected one known from the inputs"
                )
        return shapes

    def _select(self, device: CudaDevice, engine: TensorRTEngine, index: int) -> None:
        """Make a profile the current one; shapes have to be set again, and graphs of the other one are void."""
        if index == self._profile:
            return
        self._drop_graphs()
        accepted = engine.context.set_optimization_profile_async(index, device.stream_handle)
        engine.check(accepted, f"optimization profile {index}")
        device.synchronize()
        self._profile = index
        if self._buffers:
            self._set_addresses(engine)

    def _set_addresses(self, engine: TensorRTEngine) -> None:
        for name, buffer in self._buffers.items():
            engine.check(engine.context.set_tensor_address(name, buffer.address), f"the address of {name!r}")

    def _execute(self, inputs: Arrays) -> tuple[dict[str, np.ndarray], float]:
        """Run one batch and wait; returns views of pinned memory, good until the next run, and milliseconds."""
        device, engine = self._open()
        check_inputs(inputs, self.inputs)
        profile = self._profile_for(inputs)
        key = tuple((spec.name, inputs[spec.name].shape) for spec in self.inputs)
        with device.current():
            self._select(device, engine, profile)
            for name, array in inputs.items():
                engine.check(engine.context.set_input_shape(name, array.shape), f"shape {array.shape} of {name!r}")
                self._buffers[name].stage(array)
            shapes = {spec.name: dims(engine.context.get_tensor_shape(spec.name)) for spec in self.outputs}
            graph = self._graphs.get(key)
            start = device.mark()
            if graph is not None:
                graph.launch(device.stream_handle)
            else:
                self._enqueue(device, engine, inputs, shapes)
            end = device.mark()
            device.synchronize()
            elapsed_ms = device.milliseconds(start, end)
            if graph is None and not self._no_graphs:
                self._capture(device, engine, key, lambda: self._enqueue(device, engine, inputs, shapes))
            return {name: self._buffers[name].view(shape) for name, shape in shapes.items()}, elapsed_ms

    def _enqueue(
        self, device: CudaDevice, engine: TensorRTEngine, inputs: Arrays, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        for name, array in inputs.items():
            self._buffers[name].start_upload(array)
        engine.check(engine.context.execute_async_v3(device.stream_handle), "the run")
        for name, shape in shapes.items():
            self._buffers[name].start_download(shape)

    def _capture(self, device: CudaDevice, engine: TensorRTEngine, key: ShapeKey, work: Callable[[], None]) -> None:
        """Capture the work that has just run; where that fails, say so once and go on without graphs."""
        if len(self._graphs) >= _MOST_GRAPHS:
            self._graphs.pop(next(iter(self._graphs))).free()
        try:
            self._graphs[key] = CudaGraph.capture(device.stream_handle, work)
        except (CaptureError, ModelError) as error:
            self._no_graphs = str(error)
            get_logger(__name__).warning("no CUDA graphs: %s", error)

    def _capture_obstacle(self, device: CudaDevice, engine: TensorRTEngine) -> str:
        """Why this engine cannot be captured; empty where it can, or where the backend does not know."""
        ask = getattr(engine.context, "is_stream_capturable", None)
        return "" if ask is None or ask(device.stream_handle) else "the engine cannot be captured from a stream"

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()

    def _profile_for(self, inputs: Arrays) -> int:
        """The profile that holds the batch.

        Raises:
            DataError: none does.
        """
        profiles = self._sidecar.profiles
        if not profiles:
            return 0
        chosen = choose_profile(profiles, {name: array.shape[0] for name, array in inputs.items() if array.ndim})
        if chosen is None:
            got = ", ".join(str(size) for size in sorted({inputs[profile.input].shape[0] for profile in profiles}))
            raise DataError(
                f"A batch of {got} is outside the engine's profile{_plural(profiles)}: expected "
                + ", or ".join(f"{low} to {high}" for low, high in self.batch_ranges),
                hint="split the batch, or build the engine with another `batch`",
            )
        return chosen


def _plural(profiles: tuple[Profile, ...]) -> str:
    return "s" if len(batch_ranges(profiles)) > 1 else ""


def _gpu_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise UsageError(f"An engine runs on a GPU: got device {device!r}, expected cuda or cuda:N")
    return int(index) if index else 0
