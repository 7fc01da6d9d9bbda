"""Calibration samples: held against the graph's inputs, and dealt out in chunks of one size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.errors import DataError, ModelError

Batch = np.ndarray | Mapping[str, np.ndarray]  # an array where the graph has one input, else arrays by input
Chunk = dict[str, np.ndarray]
Range = tuple[float, float]

CHUNK_SAMPLES = 16  # run at a time: memory does not depend on how many samples there are
CHUNK_VALUES = 1 << 20  # of a chunk's inputs at most, so that large images do not fill the memory
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class InputSpec:
    """One graph input: name, numpy dtype, and shape; only integers in the shape are binding."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, node: Any) -> InputSpec:
        """Read an input of an `onnxruntime.InferenceSession`."""
        if node.type not in _DTYPES:
            raise ModelError(f"Input {node.name} is a {node.type}; expected one of {', '.join(_DTYPES)}.")
        return cls(node.name, _DTYPES[node.type], tuple(node.shape))


def chunks(batches: Iterable[Batch], inputs: Sequence[InputSpec], value_range: Range | None) -> Iterator[Chunk]:
    """Check samples and cut them into chunks that do not depend on how the caller batched them.

    A chunk has 16 samples, fewer where they are large, as many as the graph wants where its batch axis is fixed; the
    last one has what is left. Chunks are copies, so a caller may reuse its buffers.

    Args:
        batches: see `calibrate`; read once.
        inputs: of the graph.
        value_range: lowest and highest value of float inputs; None accepts all finite ones.

    Raises:
        DataError: samples of the wrong type, shape or range, missing or unknown inputs, or none at all, or fewer than
            fill the last of the batches that a fixed batch axis wants.
        ModelError: samples come as one array, but the graph has several inputs.
    """
    rest: Chunk = {}
    start = size = 0
    for batch in batches:
        where = f"calibration samples from {start}"
        named = _by_input(batch, inputs, where)
        count = _checked(named, inputs, value_range, where)
        if count == 0:
            continue
        start += count
        size = size or _chunk_size(named, inputs)
        if rest and any(rest[name].shape[1:] != array.shape[1:] for name, array in named.items()):
            yield from _split(rest, size, everything=True)
            rest = {}
        joined = {name: np.concatenate([rest[name], array]) for name, array in named.items()} if rest else named
        yield from _split(joined, size, everything=False)
        left = (_length(joined) // size) * size
        rest = {name: array[left:].copy() for name, array in joined.items()} if left < _length(joined) else {}
    if start == 0:
        raise DataError("There are no calibration samples; expected at least one.", hint="Raise `samples`.")
    if rest and isinstance(inputs[0].shape[0], int) and _length(rest) != size:
        raise DataError(
            f"{start} calibration samples do not fill batches of {size}, which input {inputs[0].name} is fixed to.",
            hint=f"Give a multiple of {size}, or export with a dynamic batch axis.",
        )
    yield from _split(rest, size, everything=True)


def _chunk_size(named: Mapping[str, np.ndarray], inputs: Sequence[InputSpec]) -> int:
    fixed = inputs[0].shape[0]
    if isinstance(fixed, int):
        return fixed
    values = sum(math.prod(array.shape[1:]) for array in named.values())
    return max(1, min(CHUNK_SAMPLES, CHUNK_VALUES // max(values, 1)))


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values()))) if arrays else 0


def _split(arrays: Mapping[str, np.ndarray], size: int, *, everything: bool) -> Iterator[Chunk]:
    length = _length(arrays)
    for first in range(0, length if everything else length - size + 1, size):
        yield {name: np.array(array[first : first + size], order="C") for name, array in arrays.items()}


def _by_input(batch: Batch, inputs: Sequence[InputSpec], where: str) -> Mapping[str, np.ndarray]:
    names = [spec.name for spec in inputs]
    if not isinstance(batch, Mapping):
        if len(names) != 1:
            raise ModelError(
                f"The graph has {len(names)} inputs ({', '.join(names)}); expected one, or samples by input name."
            )
        return {names[0]: batch}
    if set(batch) != set(names):
        raise DataError(
            f"A calibration batch has arrays for {', '.join(sorted(batch)) or 'nothing'}; the graph's inputs are "
            f"{', '.join(names)}.",
            where=where,
            hint="Name the arrays like the inputs.",
        )
    return {name: batch[name] for name in names}


def _checked(
    named: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], value_range: Range | None, where: str
) -> int:
    """Hold one batch against the inputs; returns how many samples it has."""
    for spec in inputs:
        _require_array(named[spec.name], spec, where)
        _require_values(named[spec.name], spec, value_range, where)
    counts = {name: len(array) for name, array in named.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"A calibration batch has different numbers of samples: {listed}.", where=where)
    return next(iter(counts.values()))


def _require_array(array: np.ndarray, spec: InputSpec, where: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != spec.dtype:
        got = getattr(array, "dtype", type(array).__name__)
        raise DataError(
            f"A calibration batch is {got}; expected a {spec.dtype} numpy array.",
            where=where,
            hint="Convert with images.astype(numpy.float32) / 255."
            if spec.dtype == "float32"
            else f"Convert with array.astype('{spec.dtype}').",
        )
    wrong = any(
        isinstance(want, int) and want != got for want, got in zip(spec.shape[1:], array.shape[1:], strict=False)
    )
    if array.ndim != len(spec.shape) or array.ndim == 0 or wrong:
        raise DataError(
            f"A calibration batch has shape {array.shape}; input {spec.name} expects {spec.shape}.",
            where=where,
            hint="Calibrate with images of the size and channels that the network was trained on.",
        )
    if 0 in array.shape[1:]:
        raise DataError(
            f"A calibration batch has shape {array.shape} for input {spec.name}: its samples hold no values.",
            where=where,
            hint="Leave out samples in which an axis is empty.",
        )


def _require_values(array: np.ndarray, spec: InputSpec, value_range: Range | None, where: str) -> None:
    if array.size == 0 or not spec.dtype.startswith("float"):
        return
    low, high = array.min(), array.max()
    if value_range is None:
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                f"A calibration batch has NaN or infinite values for input {spec.name}; expected finite ones.",
                where=where,
                hint="Calibrate with samples that the network was trained on.",
            )
    # not (a and b) rather than (not a or not b): NaN fails both comparisons
    elif not (low >= value_range[0] and high <= value_range[1]):
        raise DataError(
            f"A calibration batch has values from {low} to {high}; expected [{value_range[0]:g}, {value_range[1]:g}].",
            where=where,
            hint="Divide pixels by 255; normalisation is inside the graph.",
        )
