"""Optimization profiles: which batches an engine takes, and which it is fast for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.engines.build_request import BuildRequest
from compress.engines.sidecar import Profile
from compress.engines.tensorrt_engine import dims
from compress.errors import ModelError, UsageError

if TYPE_CHECKING:
    import tensorrt

BatchLimits = tuple[int, int, int]  # min, opt, max


def as_profiles(batch: Sequence[int] | Sequence[Sequence[int]]) -> tuple[BatchLimits, ...]:
    """One triple, or several, as several.

    Raises:
        UsageError: no triple, or one that is not 1 <= min <= opt <= max.
    """
    entries: list[Any] = [batch] if batch and isinstance(batch[0], int) else list(batch)
    found: list[BatchLimits] = []
    for entry in entries:
        if not isinstance(entry, Sequence) or len(entry) != 3:
            raise UsageError(f"A batch is a smallest, a typical and a largest one, got {entry!r}")
        smallest, typical, largest = entry
        got = f"got min {smallest}, opt {typical}, max {largest}; expected 1 <= min <= opt <= max"
        if smallest < 1:
            raise UsageError(f"batch min below 1: {got}")
        if smallest > typical:
            raise UsageError(f"batch min above opt: {got}")
        if typical > largest:
            raise UsageError(f"batch opt above max: {got}")
        found.append((smallest, typical, largest))
    if not found:
        raise UsageError("An engine takes at least one range of batches, got none")
    return tuple(found)


def add_profiles(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    network: tensorrt.INetworkDefinition,
    request: BuildRequest,
) -> tuple[Profile, ...]:
    """Add every profile of the request to the builder's configuration; none where the batch is fixed.

    Raises:
        UsageError: the model has no such input.
        ModelError: another axis is dynamic, a fixed batch is not the one asked for, or the backend refuses.
    """
    inputs = {network.get_input(i).name: dims(network.get_input(i).shape) for i in range(network.num_inputs)}
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
        _require_fixed(fixed, inputs, request)
        return ()
    added: list[Profile] = []
    for index, limits in enumerate(request.batches):
        added += _add_one(builder, config, inputs, limits, index)
    return tuple(added)


def _require_fixed(fixed: int, inputs: Mapping[str, Sequence[int]], request: BuildRequest) -> None:
    for limits in request.batches:
        if limits != (fixed, fixed, fixed):
            raise ModelError(
                f"Input {request.input_name!r} has no dynamic batch: its shape is {inputs[request.input_name]}, "
                f"and the engine is to take batches {limits[0]} to {limits[2]}",
                hint="export the model with a dynamic first axis",
            )


def _add_one(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    inputs: Mapping[str, tuple[int, ...]],
    limits: BatchLimits,
    index: int,
) -> list[Profile]:
    profile: Any = builder.create_optimization_profile()  # Any: its stubs want Dims, and it takes tuples
    added: list[Profile] = []
    for name, shape in inputs.items():
        if shape and shape[0] < 0:
            smallest, best, largest = ((size, *shape[1:]) for size in limits)
            profile.set_shape(name, smallest, best, largest)
            added.append(Profile(input=name, min=smallest, opt=best, max=largest, index=index))
    if config.add_optimization_profile(profile) != index:
        raise ModelError(f"TensorRT refuses the optimization profile: {[entry.model_dump() for entry in added]}")
    return added
