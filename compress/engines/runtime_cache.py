"""What a backend compiles at an engine's first run, made ahead of it on the GPU that is here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from compress.engines.sidecar import read_sidecar, runtime_cache_path, sidecar_path, write_sidecar
from compress.engines.tensorrt_session import TensorRTSession
from compress.errors import UsageError


def write_runtime_cache(plan_path: Path, device: str = "cuda") -> Path:
    """Run an engine once at every profile's typical batch and keep what that compiled beside the plan.

    The sidecar gets the file's digest; sessions then load it with the engine, and compile anew on another GPU.

    Args:
        plan_path: with its sidecar beside it.
        device: `cuda` or `cuda:N`.

    Returns:
        The file, with the suffix `.runtime_cache`.

    Raises:
        UsageError: the backend compiles when it builds, so there is nothing to keep.
        UnavailableError: the engine does not run here.
    """
    sidecar = read_sidecar(sidecar_path(plan_path))
    if "runtime_cache" not in sidecar.capabilities:
        raise UsageError(
            f"{sidecar.backend} has no runtime cache: its engines are compiled when they are built",
            hint="leave runtime_cache out",
        )
    session = TensorRTSession.load(plan_path, device, keep_cache=True)
    try:
        for index in sorted({profile.index for profile in sidecar.profiles}) or [0]:
            typical = {profile.input: profile.opt for profile in sidecar.profiles if profile.index == index}
            shapes = {spec.name: typical.get(spec.name, spec.shape) for spec in session.inputs}
            session.run(
                {
                    spec.name: np.zeros(tuple(int(axis) for axis in shapes[spec.name]), np.dtype(spec.dtype))
                    for spec in session.inputs
                }
            )
        cache = session.runtime_cache_bytes() or b""
    finally:
        session.close()
    path = runtime_cache_path(plan_path)
    path.write_bytes(cache)
    digest = hashlib.sha256(cache).hexdigest()
    write_sidecar(sidecar.model_copy(update={"runtime_cache_sha256": digest}), sidecar_path(plan_path))
    return path
