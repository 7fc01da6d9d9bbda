"""The running side of the stand-in in `fake_tensorrt`: runtime, engine, context."""

from __future__ import annotations

import enum
import json
from typing import Any

import numpy as np

MAGIC = b"fake-plan:"


class Sealed:
    """Attributes may be read and set where they were declared; anything else is a name that does not exist."""

    _names: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._names:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)


def flags(name: str, members: str) -> Any:
    return enum.IntEnum(name, {member: index for index, member in enumerate(members.split())})


def runtime_config_class(trt: Any, gpu: str) -> type:
    class RuntimeCache(Sealed):
        def __init__(self) -> None:
            self._content = {"gpu": gpu, "compiled": 0}

        def serialize(self) -> bytes:
            return json.dumps(self._content).encode()

        def deserialize(self, blob: bytes) -> bool:
            content = json.loads(blob)
            if content["gpu"] == gpu:
                self._content = content
            return content["gpu"] == gpu

    class RuntimeConfig(Sealed):
        _names = ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")

        def __init__(self) -> None:
            self._cache: RuntimeCache | None = None
            self.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self._cache = cache
            return True

    return RuntimeConfig


def _document(plan: bytes) -> dict[str, Any]:
    return json.loads(plan.removeprefix(MAGIC))


def _refusal(trt: Any, plan: bytes) -> str:
    """Why this version makes no engine of a plan; empty where it does."""
    if not plan.startswith(MAGIC):
        return "Serialization assertion plan->header.magicTag failed"
    document = _document(plan)
    packed = "VERSION_COMPATIBLE" in document["flags"] and "EXCLUDE_LEAN_RUNTIME" not in document["flags"]
    if document["version"] != trt.__version__ and not packed:  # else it takes load_runtime, which nobody calls
        return "The engine plan file is not compatible with this version"
    return ""


def runtime_class(trt: Any, major: int, late: bool) -> type:
    class Inspector(Sealed):
        def __init__(self, document: dict[str, Any]) -> None:
            self._document = document

        def get_engine_information(self, format: Any) -> str:
            assert format == trt.LayerInformationFormat.JSON
            names = [name for name, _ in (*self._document["inputs"], *self._document["outputs"])]
            ends = {"I/O Tensors": [{"Name": name} for name in names]} if major >= 11 else {"Bindings": names}
            return json.dumps({"Layers": self._document["layers"], **ends})

    class Engine(Sealed):
        def __init__(self, document: dict[str, Any]) -> None:
            self._document = document
            self._tensors = [name for name, _ in (*document["inputs"], *document["outputs"])]

        num_io_tensors = property(lambda self: len(self._tensors))

        def get_tensor_name(self, index: int) -> str:
            return self._tensors[index]

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self._document)

        def create_execution_context(self, runtime_config: Any = None) -> Context:
            assert late or runtime_config is None
            trt.calls.append("context")
            return (LateContext if late else Context)(trt, self._document, runtime_config)

        def create_runtime_config(self) -> Any:
            assert late
            return trt.IRuntimeConfig()

    if major < 11:
        Engine.device_memory_size = 0  # type: ignore[attr-defined]
    Engine.device_memory_size_v2 = 0  # type: ignore[attr-defined]

    class Runtime(Sealed):
        _names = ("engine_host_code_allowed",)

        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, trt.ILogger)
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            assert not self.engine_host_code_allowed
            reason = _refusal(trt, serialized_engine)
            if reason:
                self._logger.log(trt.Severity.ERROR, reason)
                return None
            return Engine(_document(serialized_engine))

    trt.ICudaEngine, trt.EngineInspector, trt.IExecutionContext = Engine, Inspector, Context
    if late:
        valid = (trt.EngineValidity.VALID, 0)
        Runtime.get_engine_validity = lambda self, blob: getattr(trt, "validity", valid)  # type: ignore[attr-defined]
    return Runtime


class Context(Sealed):
    """An execution context: shapes belong to the profile that is selected, addresses stay."""

    def __init__(self, trt: Any, document: dict[str, Any], runtime_config: Any = None) -> None:
        self._trt, self._runtime_config = trt, runtime_config
        self._inputs: dict[str, list[int]] = dict(document["inputs"])
        self._outputs: dict[str, list[int]] = dict(document["outputs"])
        self._profiles = document["profiles"]
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle, "the default stream"
        if not 0 <= profile_index < len(self._profiles):
            return False
        self._trt.calls.append(f"profile {profile_index}")
        self._profile = profile_index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        limits = self._profiles[self._profile][name] if self._profiles else [self._inputs[name]] * 3
        inside = all(low <= size <= high for low, size, high in zip(limits[0], shape, limits[2], strict=True))
        if inside:
            self._shapes[name] = tuple(shape)
        return inside

    def infer_shapes(self) -> list[str]:
        return [name for name in self._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._inputs:
            return self._shapes.get(name, tuple(self._inputs[name]))
        batch = next(iter(self._shapes.values()), (-1,))[0]
        return (batch, *self._outputs[name][1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        import pycuda.driver as cuda

        assert stream_handle, "the default stream"
        assert set(self._addresses) == {*self._inputs, *self._outputs}, "a tensor has no address"
        assert not self.infer_shapes(), "an input has no shape"
        name = next(iter(self._inputs))
        shape = self._shapes[name]
        outputs = {output: self.get_tensor_shape(output) for output in self._outputs}

        def work() -> None:
            rows = cuda.memory(self._addresses[name])[: 4 * int(np.prod(shape))].view(np.float32)
            sums = rows.reshape(shape[0], -1).sum(1)
            for output, size in outputs.items():
                answer = (sums[:, None] * np.arange(1, size[1] + 1)).astype(np.float32)
                cuda.memory(self._addresses[output])[: answer.nbytes] = answer.reshape(-1).view(np.uint8)

        if self._runtime_config is not None and self._runtime_config._cache is not None:
            self._runtime_config._cache._content["compiled"] += 1
        cuda.enqueue(stream_handle, work)
        self._trt.calls.append("run")
        return True


class LateContext(Context):
    """What the contexts of TensorRT-RTX know beside."""

    def is_stream_capturable(self, stream_handle: int) -> bool:
        return self._trt.capturable
