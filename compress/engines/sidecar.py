"""The JSON file beside an engine: what was built, from what, by what, and the digest that admits it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.engines.rtx_program import Kind
from compress.errors import ArtifactError

SCHEMA_VERSION = 1
Precision = Literal["fp32", "fp16", "int8", "int8+fp16"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IoTensor(_Entry):
    """One input or output of the engine."""

    name: str
    mode: Literal["input", "output"]
    dtype: str  # as numpy writes it
    shape: tuple[int | str, ...]  # a string names a dynamic axis


class Profile(_Entry):
    """The shapes that one input may take, and the one that kernels are chosen for."""

    input: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
    index: int = 0  # of the optimization profile; inputs of one share it


class OperationTypes(_Entry):
    """Operand types of one convolution or matrix product inside the engine."""

    kind: Kind
    nodes: tuple[str, ...]  # of the ONNX graph; several where the builder merged them
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    int8: bool


class Count(_Entry):
    """Nodes of the ONNX graph that multiply int8 by int8 in the engine, out of all of their kind."""

    int8: int
    total: int


class OperandTypes(_Entry):
    """Evidence from the engine itself, in words that its maker does not promise to keep: advisory."""

    convolutions: Count
    gemms: Count
    float_nodes: tuple[str, ...]
    unseen_nodes: tuple[str, ...]
    operations: tuple[OperationTypes, ...]


class Sidecar(_Entry):
    """`model.json`: no time and no path in it, so that the same build gives the same bytes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    backend: str
    backend_version: str
    portable: bool  # built for several compute capabilities instead of the machine's own
    compute_capabilities: tuple[str, ...]  # e.g. 8.9
    workspace_bytes: int | None  # None: the backend's default
    profiles: tuple[Profile, ...]  # empty for a fixed batch
    io: tuple[IoTensor, ...]
    layers: int  # of the parsed network, before fusion
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    operand_types: OperandTypes | None  # None where the backend's engines cannot be read
    messages: tuple[str, ...]  # warnings and errors of a build that succeeded
    precision: Precision | None = None  # int8 where the graph is quantized; fp16 says that the rest was converted
    hardware_compatibility: str | None = None  # level that was asked for, e.g. ampere_plus
    version_compatible: bool = False  # later versions of the backend may run it too
    capabilities: tuple[str, ...] = ()  # what the builder could have been asked for
    timing_cache_sha256: str | None = None  # of the file beside the plan; None where the backend times nothing
    runtime_cache_sha256: str | None = None  # likewise; None where nothing was compiled ahead of the first run


def sidecar_path(plan_path: Path) -> Path:
    """Where the sidecar of a plan lies: beside it, `model.plan` -> `model.json`."""
    return plan_path.with_suffix(".json")


def timing_cache_path(plan_path: Path) -> Path:
    """Where the timings of a plan's build lie: `model.plan` -> `model.timing_cache`."""
    return plan_path.with_suffix(".timing_cache")


def runtime_cache_path(plan_path: Path) -> Path:
    """Where what was compiled for a GPU lies: `model.plan` -> `model.runtime_cache`."""
    return plan_path.with_suffix(".runtime_cache")


def find_plan(folder: Path, compute_capability: str | None = None) -> Path:
    """The plan of a folder that fits a GPU.

    Args:
        folder: with `model.plan`, or one `model-<compute capability>.plan` for each GPU that was built for.
        compute_capability: e.g. 8.9; None where there is no GPU.

    Returns:
        The plan for all, the one for this GPU, or else the first: a session then says why it does not fit.
    """
    named = folder / f"model-{compute_capability}.plan"
    whole = folder / "model.plan"
    if whole.is_file():
        return whole
    return named if named.is_file() else min(folder.glob("model-*.plan"), default=whole)


def batch_ranges(profiles: Iterable[Profile]) -> dict[int, tuple[int, int]]:
    """Profile's index -> smallest and largest batch that all its inputs take; empty for a fixed batch."""
    ranges: dict[int, tuple[int, int]] = {}
    for profile in profiles:
        low, high = ranges.get(profile.index, (1, profile.max[0]))
        ranges[profile.index] = (max(low, profile.min[0]), min(high, profile.max[0]))
    return ranges


def choose_profile(profiles: Iterable[Profile], batches: Mapping[str, int]) -> int | None:
    """Index of the narrowest profile that holds the batches, the first of equals; None where none does.

    Args:
        profiles: of the engine.
        batches: input -> its batch, of every input that a profile limits.
    """
    profiles = list(profiles)
    holding = [
        (high - low, index)
        for index, (low, high) in batch_ranges(profiles).items()
        if all(low <= batches[profile.input] <= high for profile in profiles if profile.index == index)
    ]
    return min(holding)[1] if holding else None


def write_sidecar(sidecar: Sidecar, path: Path) -> None:
    """Write canonical JSON: sorted keys, two spaces, a newline at the end."""
    document = json.dumps(sidecar.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(document + "\n", encoding="utf-8")


def read_sidecar(path: Path) -> Sidecar:
    """Read and validate a sidecar.

    Raises:
        ArtifactError: missing, no JSON, or another schema.
    """
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"The engine has no sidecar: {path.name} is missing", where=str(path), hint="build the engine again"
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ArtifactError(
            f"The engine's sidecar is malformed: {problems}", where=str(path), hint="build the engine again"
        ) from error


def read_plan(path: Path, sidecar: Sidecar) -> bytes:
    """Read a plan whose SHA-256 is the recorded one.

    An engine is native code: nothing else may reach a deserializer.

    Raises:
        ArtifactError: missing, or not the bytes that the sidecar describes.
    """
    try:
        plan = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"There is no engine: {path.name} is missing", where=str(path), hint="build the engine again"
        ) from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest != sidecar.plan_sha256:
        raise ArtifactError(
            f"The engine is not the one that was built: SHA-256 {digest[:12]} over {len(plan)} bytes, "
            f"expected {sidecar.plan_sha256[:12]} over {sidecar.plan_bytes}",
            where=str(path),
            hint="copy it again, or build the engine again",
        )
    return plan


def read_runtime_cache(plan_path: Path, sidecar: Sidecar) -> bytes | None:
    """Read what was compiled for a GPU beside a plan; None where the sidecar knows of nothing.

    It is native code like the plan: only the recorded bytes are let in.

    Raises:
        ArtifactError: missing, or not the bytes that the sidecar describes.
    """
    if sidecar.runtime_cache_sha256 is None:
        return None
    path = runtime_cache_path(plan_path)
    try:
        cache = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"The engine's runtime cache is missing: {path.name}", where=str(path), hint="build the engine again"
        ) from error
    if hashlib.sha256(cache).hexdigest() != sidecar.runtime_cache_sha256:
        raise ArtifactError(
            f"The runtime cache is not the one that was made: {len(cache)} bytes with another SHA-256",
            where=str(path),
            hint="copy it again, or build the engine again",
        )
    return cache
