"""A plan that was let in, deserialized on one GPU: runtime, engine and execution context of TensorRT."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compress.engines.sidecar import Sidecar
from compress.errors import ArtifactError, ModelError, UnavailableError

if TYPE_CHECKING:
    import tensorrt

_LAST_MESSAGES = 5
_BUILD_AGAIN = "build the engine again, for this GPU and by the installed version; `compress doctor` names both"

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
_AMPERE = (8, 0)


class TensorRTEngine:
    """One engine and one execution context. The GPU's context must be current in every call.

    Args:
        sidecar: of the plan.
        plan: bytes whose digest has been checked.
        gpu: name and compute capability of the GPU, e.g. ("NVIDIA L4", "8.9").
        cache: what was compiled for this GPU before, its digest checked; None to compile anew.
        keep_cache: what is compiled from now on can be had with `runtime_cache_bytes`.
        eager: compile for every new shape at once, instead of starting with kernels for any shape; a captured graph
            would keep those.

    Raises:
        UnavailableError: this version, GPU or driver does not run the plan, with the reason.
        ArtifactError: plan and sidecar name different tensors.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        plan: bytes,
        gpu: tuple[str, str],
        *,
        cache: bytes | None = None,
        keep_cache: bool = False,
        eager: bool = False,
    ) -> None:
        trt = _import_backend(sidecar)
        self.version: str = trt.__version__
        self._messages: list[str] = []
        self._logger = _make_logger(trt, self._messages)
        self._cache: Any = None
        self.cache_state = "none"  # or warm, or why it is cold
        # engine_host_code_allowed stays False: a plan has no business running code on the host.
        self._runtime: tensorrt.Runtime = self._started(lambda: trt.Runtime(self._logger), "runtime")
        self._admit(trt, sidecar, plan, gpu)
        self._engine: tensorrt.ICudaEngine = self._started(
            lambda: self._runtime.deserialize_cuda_engine(plan), "engine"
        )
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        recorded = {tensor.name for tensor in sidecar.io}
        if names != recorded:
            raise ArtifactError(f"The engine has tensors {sorted(names)}, its sidecar {sorted(recorded)}")
        config = self._runtime_config(trt, cache, keep_cache=keep_cache, eager=eager)
        arguments = () if config is None else (config,)
        self.context: tensorrt.IExecutionContext = self._started(
            lambda: self._engine.create_execution_context(*arguments), "execution context"
        )

    def check(self, accepted: bool, what: str) -> None:
        """Turn a refusal into an error.

        Raises:
            ModelError: TensorRT did not accept, with its last messages.
        """
        if not accepted:
            raise ModelError(f"TensorRT refuses {what}: {self._last_messages()}")

    def runtime_cache_bytes(self) -> bytes | None:
        """What has been compiled on this GPU so far; None where the backend compiles when it builds."""
        return None if self._cache is None else bytes(self._cache.serialize())

    def close(self) -> None:
        """Free everything, each before what it refers to."""
        for name in ("context", "_cache", "_engine", "_runtime"):
            setattr(self, name, None)

    def _admit(self, trt: Any, sidecar: Sidecar, plan: bytes, gpu: tuple[str, str]) -> None:
        name = f"{gpu[0]}, compute capability {gpu[1]}"
        validate = getattr(self._runtime, "get_engine_validity", None)
        if validate is not None:
            validity, bits = validate(plan)
            if validity == trt.EngineValidity.INVALID:
                reasons = [text for bit, text in _INVALIDITY.items() if int(bits) & bit]
                raise UnavailableError(
                    f"The engine cannot run on {name}: {'; '.join(reasons) or self._last_messages()}", hint=_BUILD_AGAIN
                )
        elif not _runs_on(sidecar, gpu[1]):
            raise UnavailableError(
                f"The engine cannot run on {name}: it was built for compute capability "
                f"{', '.join(sidecar.compute_capabilities)}"
                + (f", {sidecar.hardware_compatibility}" if sidecar.hardware_compatibility else ""),
                hint=_BUILD_AGAIN,
            )

    def _runtime_config(self, trt: Any, cache: bytes | None, *, keep_cache: bool, eager: bool) -> Any:
        """Settings of the execution context; None where the defaults are wanted or nothing can be set."""
        late = hasattr(getattr(trt, "IRuntimeConfig", None), "create_runtime_cache")
        if not late or not (cache is not None or keep_cache or eager):
            return None
        config: Any = self._engine.create_runtime_config()  # Any: the stubs know none of these settings
        if eager and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if cache is not None or keep_cache:
            self._cache = config.create_runtime_cache()
            self.cache_state = "empty"
            if cache is not None:
                loaded = self._cache.deserialize(cache)
                self.cache_state = (
                    "warm" if loaded else "cold: compiled by another version, or for another GPU or driver"
                )
            self.check(config.set_runtime_cache(self._cache), "the runtime cache")
        return config

    def _started(self, make: Any, what: str) -> Any:
        try:
            made = make()
        except (RuntimeError, TypeError) as error:  # pybind11 reports a null object as a TypeError
            raise UnavailableError(
                f"The {what} does not start: {self._last_messages()} ({error})", hint=_BUILD_AGAIN
            ) from error
        if made is None:
            raise UnavailableError(f"The {what} does not start: {self._last_messages()}", hint=_BUILD_AGAIN)
        return made

    def _last_messages(self) -> str:
        return "; ".join(self._messages[-_LAST_MESSAGES:]) or "it gives no reason"


def dims(shape: tensorrt.Dims) -> tuple[int, ...]:
    """Sizes of a tensor's axes, -1 where one is not known yet."""
    return tuple(shape[axis] for axis in range(len(shape)))


def _runs_on(sidecar: Sidecar, compute_capability: str) -> bool:
    if sidecar.hardware_compatibility == "ampere_plus":
        return tuple(map(int, compute_capability.split("."))) >= _AMPERE
    return not sidecar.compute_capabilities or compute_capability in sidecar.compute_capabilities


def _import_backend(sidecar: Sidecar) -> Any:
    trt = import_module(sidecar.backend)
    if trt.__version__ != sidecar.backend_version:
        rule = "an engine runs only in the version that built it"
        if sidecar.version_compatible:
            rule = "in a later one it needs the lean runtime of the version that built it, which is not loaded here"
        raise UnavailableError(
            f"The engine was built by {sidecar.backend} {sidecar.backend_version}, and {trt.__version__} is installed; "
            f"{rule}",
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
