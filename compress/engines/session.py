"""What every variant is to a benchmark: something loaded that turns named arrays into named arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from compress.errors import DataError

Arrays = Mapping[str, np.ndarray]


class Session(Protocol):
    """Runs one variant and nothing else; not safe to share between threads.

    Importing a session's module loads no backend and touches no GPU; `load` does.
    """

    @classmethod
    def load(cls, source: Any, device: str = "cpu") -> Session:
        """Load a file, or a module for torch, on `cpu`, `cuda` or `cuda:N`.

        Raises:
            UnavailableError: the device or the backend is not here; no other one takes its place.
            ModelError: the backend refuses the model.
            ArtifactError: the bytes are not those that were recorded.
        """
        ...

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one batch and wait for it; the returned arrays belong to the caller.

        Args:
            inputs: one array for each input of the model; the first axis is the batch, size >= 1.

        Raises:
            DataError: a name, type or shape differs from the model's.
            ModelError: the backend fails on inputs that fit.
        """
        ...

    def timed(self, inputs: Arrays) -> Callable[[], float]:
        """One inference a call: what `run` does, timed by the device that does it.

        Args:
            inputs: as for `run`; held, and neither copied nor checked before the first call.

        Returns:
            A function that runs one batch, waits for it, and returns how long it took, in milliseconds: wall time
            on a processor, device events on a GPU (copies to and from the device included). Raises what `run` raises.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, threads and tensors, as plain JSON values."""
        ...

    def close(self) -> None:
        """Free memory and handles; closing twice is allowed, running afterwards is not."""
        ...


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a string in `shape` names a dynamic axis."""

    name: str
    dtype: str  # as numpy writes it, e.g. float32
    shape: tuple[int | str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def ran_as(label: str, session: Session | None) -> str:
    """A session's label as it turned out: only its first run shows whether an engine starts as a CUDA graph."""
    graphs = session is not None and session.describe().get("cuda_graphs") == "yes"
    return f"{label}, graphs" if graphs else label


def wall_timed(call: Callable[[], object]) -> Callable[[], float]:
    """Time a call that returns only when its result is there.

    Args:
        call: one inference.

    Returns:
        A function that calls it and returns its wall time in milliseconds.
    """

    def timed() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6

    return timed


def check_inputs(inputs: Arrays, specs: Sequence[TensorSpec]) -> None:
    """Compare arrays with what a model declares, and report every difference at once.

    Raises:
        DataError: a name is missing or unknown, or a type or shape differs.
    """
    expected = {spec.name: spec for spec in specs}
    problems = [f"input {name!r} is missing" for name in expected if name not in inputs]
    problems += [
        f"unknown input {name!r}; the model has {', '.join(expected)}" for name in inputs if name not in expected
    ]
    for name, array in inputs.items():
        if name in expected:
            problems += _differences(array, expected[name])
    if problems:
        raise DataError("The inputs do not fit the model: " + "; ".join(problems))


def _differences(array: np.ndarray, spec: TensorSpec) -> list[str]:
    found: list[str] = []
    if array.dtype != np.dtype(spec.dtype):
        found.append(f"input {spec.name!r} has type {array.dtype}, expected {spec.dtype}")
    fits = len(array.shape) == len(spec.shape) and all(
        got > 0 if isinstance(axis, str) else got == axis for got, axis in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in spec.shape)
        found.append(f"input {spec.name!r} has shape {array.shape}, expected ({wanted})")
    return found
