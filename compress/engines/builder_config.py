"""The settings of one build, on whichever of TensorRT 10, 11 and TensorRT-RTX is here.

What differs between them is found by asking for the attribute, never by version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress.engines.build_messages import BuildLog
from compress.engines.build_request import BuildRequest
from compress.errors import UsageError

if TYPE_CHECKING:
    import tensorrt


def compiles_at_run_time(trt: Any) -> bool:
    """Whether kernels are chosen and compiled on the GPU that runs the engine, as TensorRT-RTX does.

    Such a backend times nothing while it builds; what it compiles later goes into a runtime cache.
    """
    return hasattr(getattr(trt, "IRuntimeConfig", None), "create_runtime_cache")


def capabilities(trt: Any, config: tensorrt.IBuilderConfig) -> tuple[str, ...]:
    """What the backend offers of all that this package can ask for, sorted.

    Args:
        trt: the backend's module.
        config: one of its builder configurations.
    """
    late = compiles_at_run_time(trt)
    found = {
        "compute_capabilities": hasattr(config, "num_compute_capabilities"),
        "engine_validity": hasattr(trt.Runtime, "get_engine_validity"),
        "hardware_compatibility": not late and hasattr(config, "hardware_compatibility_level"),
        "progress": hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"),
        "runtime_cache": late,
        "timing_cache": not late and hasattr(config, "create_timing_cache"),
        "version_compatible": hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"),
    }
    return tuple(sorted(name for name, here in found.items() if here))


def configure(trt: Any, config: tensorrt.IBuilderConfig, request: BuildRequest, log: BuildLog) -> None:
    """Set everything that the request asks for.

    Precisions are none of it: networks are strongly typed, so the graph's own types decide.

    Raises:
        UsageError: the backend does not have what is asked for.
    """
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # keeps the names of layers in the plan
    if request.workspace_bytes is not None:
        # Beyond what there is, the limit means nothing, and near 2**63 it trips an internal assertion.
        limit = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        if request.workspace_bytes > limit:
            log.add("WARNING", f"workspace limit lowered from {request.workspace_bytes} to {limit} bytes")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(request.workspace_bytes, limit))
    _set_compute_capabilities(trt, config, request)
    _set_compatibility(trt, config, request)


def _set_compute_capabilities(trt: Any, config: Any, request: BuildRequest) -> None:
    # Any: only TensorRT-RTX has these settings, and it has no stubs.
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


def _set_compatibility(trt: Any, config: tensorrt.IBuilderConfig, request: BuildRequest) -> None:
    here = capabilities(trt, config)
    if request.hardware_compatibility is not None:
        if "hardware_compatibility" not in here:
            raise UsageError(
                f"{request.backend} has no hardware compatibility levels",
                hint="name the GPUs to build for instead: target, or targets",
            )
        levels = {name.lower(): level for name, level in trt.HardwareCompatibilityLevel.__members__.items()}
        if request.hardware_compatibility not in levels:
            raise UsageError(
                f"Unknown hardware compatibility {request.hardware_compatibility!r}: "
                f"{request.backend} {trt.__version__} knows {', '.join(levels)}"
            )
        config.hardware_compatibility_level = levels[request.hardware_compatibility]
    if request.version_compatible:
        if "version_compatible" not in here:
            raise UsageError(f"{request.backend} {trt.__version__} builds no version compatible engines")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hasattr(trt.BuilderFlag, "EXCLUDE_LEAN_RUNTIME"):
            # The runtime that would be packed into the plan is host code, which no session here lets in.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)


def start_timing_cache(
    trt: Any, config: tensorrt.IBuilderConfig, request: BuildRequest
) -> tensorrt.ITimingCache | None:
    """Give the build the timings of an earlier one, or an empty cache to fill; None where nothing is timed.

    Returns:
        The cache; it must live until the engine is built.

    Raises:
        UsageError: the backend times no kernels, or the file is another GPU's or version's.
    """
    if "timing_cache" not in capabilities(trt, config):
        if request.timing_cache is not None:
            raise UsageError(
                f"{request.backend} has no timing cache: it chooses kernels on the GPU that runs the engine",
                hint="leave timing_cache out; see runtime_cache",
            )
        return None
    blob = b"" if request.timing_cache is None else request.timing_cache.read_bytes()
    cache = config.create_timing_cache(blob)
    # Timings of another GPU would choose its kernels, so a mismatch is never ignored.
    if cache is None or not config.set_timing_cache(cache, False):
        raise UsageError(
            f"{request.backend} {trt.__version__} refuses the timing cache: damaged, or of another version or GPU",
            where=str(request.timing_cache or ""),
            hint="leave timing_cache out, and keep the one that this build writes",
        )
    return cache


def timing_cache_bytes(config: tensorrt.IBuilderConfig) -> bytes:
    """What the finished build knows about the speed of kernels."""
    return bytes(config.get_timing_cache().serialize())
