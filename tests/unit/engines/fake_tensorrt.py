"""TensorRT 10 and 11, as far as their documentation describes what is used here, strict where the real one crashes.

A name that a version does not have raises AttributeError, a call out of order an AssertionError. What the real library
computes on a GPU happens in `fake_pycuda`'s memory: a row of output is the sum of its row of input, times 1, 2, 3...
"""

from __future__ import annotations

import json
import weakref
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from fake_runtime import MAGIC, Sealed, flags, runtime_class, runtime_config_class
from onnx import TensorProto

WORKSPACE_LIMIT = 2**34


def make_tensorrt(version: str, *, gpu: str = "8.9", late: bool = False, capturable: bool = True) -> ModuleType:
    """A module that stands for `tensorrt` of that version on a machine with such a GPU.

    `late` gives it what TensorRT-RTX has beside: kernels are compiled at run time and can be cached.

    Its `calls` lists what was done, in order.
    """
    major = int(version.split(".")[0])
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.calls = []
    trt.cancelled = False
    removed = "" if major >= 11 else "FP16 INT8 BF16 OBEY_PRECISION_CONSTRAINTS "
    trt.BuilderFlag = flags("BuilderFlag", removed + "REFIT TF32 VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME STRIP_PLAN")
    trt.NetworkDefinitionCreationFlag = flags(
        "NetworkDefinitionCreationFlag", "STRONGLY_TYPED" if major >= 11 else "EXPLICIT_BATCH STRONGLY_TYPED"
    )
    trt.ProfilingVerbosity = flags("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    trt.MemoryPoolType = flags("MemoryPoolType", "WORKSPACE")
    trt.HardwareCompatibilityLevel = flags("HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY")
    trt.LayerInformationFormat = flags("LayerInformationFormat", "ONELINE JSON")
    trt.TensorIOMode = flags("TensorIOMode", "NONE INPUT OUTPUT")
    trt.Severity = flags("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
    if major < 11:
        trt.IInt8Calibrator = type("IInt8Calibrator", (), {})  # is there, and must not be used
    trt.IRuntimeConfig = runtime_config_class(trt, gpu) if late else type("IRuntimeConfig", (), {})
    trt.capturable = capturable
    if late:
        trt.DynamicShapesKernelSpecializationStrategy = flags("Strategy", "LAZY EAGER NONE")
        trt.EngineValidity = flags("EngineValidity", "VALID SUBOPTIMAL INVALID")
    trt.ILogger, trt.IProgressMonitor = _bases()
    trt.INetworkDefinition, trt.IBuilderConfig, trt.IOptimizationProfile = Network, Config, Profile
    trt.ITimingCache = TimingCache
    trt.nptype = lambda dtype: np.dtype(dtype).type
    trt.Builder, trt.OnnxParser = _builder_class(trt, major, gpu), _parser_class(trt)
    trt.Runtime = runtime_class(trt, major, late)
    return trt


def _bases() -> tuple[type, type]:
    class Base:
        def __init__(self) -> None:
            self.started = True

    return type("ILogger", (Base,), {}), type("IProgressMonitor", (Base,), {})


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        self.shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)


class Network(Sealed):
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: onnx.ModelProto | None = None

    @property
    def model(self) -> onnx.ModelProto:
        assert self._model is not None, "the network is used before anything was parsed"
        return self._model

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(isinstance(size, int) for shape in (min, opt, max) for size in shape)
        self.shapes[input] = [list(min), list(opt), list(max)]


class TimingCache:
    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    def serialize(self) -> bytes:
        return json.dumps(self.entries, sort_keys=True).encode()


class Config(Sealed):
    """IBuilderConfig; calibration was removed in 11 and must not be touched in 10."""

    _names = ("profiling_verbosity", "hardware_compatibility_level", "progress_monitor", "builder_optimization_level")

    def __init__(self, trt: Any, version: str, gpu: str) -> None:
        self._trt, self._where = trt, {"version": version, "gpu": gpu}
        self._profiles: list[Profile] = []
        self._set: set[str] = set()
        self._cache: TimingCache | None = None
        self._workspace = WORKSPACE_LIMIT
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.progress_monitor = None

    def set_flag(self, flag: Any) -> None:
        assert flag.name not in ("FP16", "INT8", "BF16"), f"{flag.name} does not go with a strongly typed network"
        self._set.add(flag.name)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._workspace

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert 0 < pool_size <= WORKSPACE_LIMIT, "Internal Error: Assertion failed"
        self._workspace = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        for smallest, best, largest in profile.shapes.values():
            if not all(low <= mid <= high for low, mid, high in zip(smallest, best, largest, strict=True)):
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        try:
            return TimingCache(json.loads(serialized_timing_cache or b"{}"))
        except json.JSONDecodeError:
            return None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU choose its kernels"
        if cache.entries and cache.entries["where"] != self._where:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._cache


def _builder_class(trt: Any, major: int, gpu: str) -> type:
    class Builder(Sealed):
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, trt.ILogger)
            assert getattr(logger, "started", False), "the base class's __init__ was not called"
            self._logger = logger
            self._configs: list[Any] = []
            trt.calls.append("builder")

        def create_network(self, flags: int = 0) -> Network:
            strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert major >= 11 or flags == strong, "the network is not strongly typed"
            trt.calls.append("network")
            return Network(flags)

        def create_builder_config(self) -> Config:
            trt.calls.append("config")
            config = Config(trt, trt.__version__, gpu)
            self._configs.append(weakref.ref(config))
            return config

        def create_optimization_profile(self) -> Profile:
            trt.calls.append("profile")
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            trt.calls.append("build")
            assert any(config is known() for known in self._configs), "the config is another builder's"
            dynamic = {
                tensor.name for tensor in map(network.get_input, range(network.num_inputs)) if -1 in tensor.shape
            }
            for profile in config._profiles:
                assert set(profile.shapes) == dynamic, "a dynamic input is in no profile"
            if dynamic and not config._profiles:
                self._logger.log(trt.Severity.ERROR, "Network has dynamic inputs, but no optimization profile")
                return None
            if config.progress_monitor is not None:
                _report(config.progress_monitor)
            if config._cache is not None:
                config._cache.entries.update({"where": config._where, "timed": network.num_layers})
            self._logger.log(trt.Severity.WARNING, "a tactic took 1.25 ms")
            return _plan(trt, network, config, gpu)

    if major < 11:
        Builder.platform_has_fast_int8 = True  # type: ignore[attr-defined]
    return Builder


def _parser_class(trt: Any) -> type:
    class OnnxParser(Sealed):
        def __init__(self, network: Network, logger: Any) -> None:
            assert isinstance(network, Network)
            assert isinstance(logger, trt.ILogger)
            self._network = weakref.ref(network)  # the real parser holds none either
            self._errors: list[Any] = []

        def parse(self, model: bytes) -> bool:
            trt.calls.append("parse")
            network = self._network()
            assert network is not None, "the network is gone: the real parser crashes the process"
            network._model = onnx.load_model_from_string(model)
            return True

        @property
        def num_errors(self) -> int:
            return 0

    return OnnxParser


def _report(monitor: Any) -> None:
    monitor.phase_start("Building Engine", None, 2)
    monitor.phase_start("Timing tactics", "Building Engine", 3)
    for step in range(3):
        assert monitor.step_complete("Timing tactics", step) is True
    monitor.phase_finish("Timing tactics")
    assert monitor.step_complete("Building Engine", 0) is True
    monitor.phase_finish("Building Engine")


def _plan(trt: Any, network: Network, config: Config, gpu: str) -> bytes:
    graph = network.model.graph
    types = {node.output[0]: "Int8" for node in graph.node if node.op_type == "DequantizeLinear"}
    types |= {tensor.name: "Half" for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    layers = [
        {
            "Name": f"{node.name} + fused",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": node.input[0], "Format/Datatype": types.get(node.input[0], "Row major linear FP32 format")}
            ],
            "Outputs": [{"Name": node.output[0], "Format/Datatype": "Row major linear FP32 format"}],
            "Weights": {"Type": types.get(node.input[1], "Float"), "Count": 1},
            "Metadata": f"[ONNX Layer: {node.input[0]}]\x1e[ONNX Layer: {node.name}]",
        }
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    ]
    document = {
        "version": trt.__version__,
        "gpu": gpu,
        "flags": sorted(config._set),
        "compatible": int(config.hardware_compatibility_level),
        "layers": layers if config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED else [],
        "profiles": [profile.shapes for profile in config._profiles],
        "inputs": [[tensor.name, tensor.shape] for tensor in map(network.get_input, range(network.num_inputs))],
        "outputs": [[tensor.name, tensor.shape] for tensor in map(network.get_output, range(network.num_outputs))],
    }
    return MAGIC + json.dumps(document).encode()
