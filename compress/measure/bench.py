"""Latency of model files that belong to no recipe: what they take, what they are fed, how they are timed together."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.engines.availability import why_not
from compress.engines.session import Arrays, TensorSpec
from compress.engines.sidecar import Profile, batch_ranges, read_plan, read_sidecar, sidecar_path
from compress.errors import DataError, ModelError, NotComparableError, UnavailableError, UsageError
from compress.measure.latency import Measurement, measure_stable

if TYPE_CHECKING:
    from compress.engines.session import Session

DEFAULT_BATCHES = (1, 32)
ONNX, ENGINE = ".onnx", ".plan"
OnBatch = Callable[[int, int, int], object]


@dataclass(frozen=True)
class BenchFile:
    """One file and what runs it here, or the reason why nothing does.

    Attributes:
        name: unique among the files of a benchmark.
        path: of the file.
        kind: `onnx_model` or `engine`.
        runtime: `onnxruntime`, or the backend of the engine.
        label: what runs it and where; figures of different labels come from different timers.
        inputs: in the model's order; the first axis of each is the batch where it is dynamic.
        outputs: likewise.
        session: None where it cannot run here.
        reason: why not; None where it can.
        smallest: batch that it takes, >= 1.
        largest: likewise; None without a limit.
        ranges: smallest and largest batch of each profile of an engine, where there are several.
    """

    name: str
    path: Path
    kind: str
    runtime: str
    label: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session: Session | None
    reason: str | None = None
    smallest: int = 1
    largest: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    def takes(self, batch: int) -> bool:
        """Whether it runs here, and with that batch size."""
        ranges = self.ranges or ((self.smallest, self.largest or batch),)
        return self.session is not None and any(low <= batch <= high for low, high in ranges)


def open_files(paths: Sequence[Path], *, threads: int, cuda_graphs: bool = False) -> list[BenchFile]:
    """Load every file; an engine that cannot run here keeps its reason.

    Args:
        paths: `.onnx` files, and `.plan` engines with their sidecars beside them.
        threads: CPU threads of every session, >= 1.
        cuda_graphs: start each batch of an engine as one CUDA graph, where the engine allows it.

    Raises:
        UsageError: another suffix.
        ModelError: ONNX Runtime refuses a file.
        ArtifactError: an engine is damaged or has no sidecar.
    """
    unknown = [str(path) for path in paths if path.suffix not in (ONNX, ENGINE)]
    if unknown:
        raise UsageError(
            f"cannot tell what {', '.join(unknown)} is, expected a name that ends in {ONNX} or {ENGINE}",
            hint="compress run RECIPE benchmarks checkpoints",
        )
    opened: list[BenchFile] = []
    for name, path in zip(_names(paths), paths, strict=True):
        onnx = path.suffix == ONNX
        opened.append(_open_onnx(name, path, threads) if onnx else _open_engine(name, path, cuda_graphs))
    return opened


def _names(paths: Sequence[Path]) -> list[str]:
    """File names; whole paths where two files share one; numbered where one file is given twice."""
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(set(paths)) else [str(path) for path in paths]
    return [
        name if names.index(name) == position else f"{name} ({names[: position + 1].count(name)})"
        for position, name in enumerate(names)
    ]


def _open_onnx(name: str, path: Path, threads: int) -> BenchFile:
    from compress.engines.onnxruntime_session import OnnxRuntimeSession

    session = OnnxRuntimeSession.load(path, threads=threads)
    fixed = fixed_batch(session.inputs)
    return BenchFile(
        name=name,
        path=path,
        kind="onnx_model",
        runtime="onnxruntime",
        label="onnxruntime cpu",
        inputs=session.inputs,
        outputs=session.outputs,
        session=session,
        smallest=fixed or 1,
        largest=fixed,
    )


def _open_engine(name: str, path: Path, cuda_graphs: bool) -> BenchFile:
    from compress.engines.tensorrt_session import TensorRTSession

    sidecar = read_sidecar(sidecar_path(path))
    read_plan(path, sidecar)
    specs = {
        mode: tuple(TensorSpec(io.name, io.dtype, io.shape) for io in sidecar.io if io.mode == mode)
        for mode in ("input", "output")
    }
    session, reason = None, why_not(sidecar.backend)
    if reason is None:
        try:
            session = TensorRTSession.load(path, graphs=cuda_graphs)
        except UnavailableError as error:
            reason = error.message
    smallest, largest = _profile_batches(sidecar.profiles, specs["input"])
    return BenchFile(
        name=name,
        path=path,
        kind="engine",
        runtime=sidecar.backend,
        label=f"{sidecar.backend} cuda",
        inputs=specs["input"],
        outputs=specs["output"],
        session=session,
        reason=reason,
        smallest=smallest,
        largest=largest,
        ranges=tuple(batch_ranges(sidecar.profiles).values()),
    )


def _profile_batches(profiles: Sequence[Profile], inputs: Sequence[TensorSpec]) -> tuple[int, int | None]:
    if not profiles:
        fixed = fixed_batch(inputs)
        return fixed or 1, fixed
    ranges = batch_ranges(profiles).values()
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """The only batch that a model takes: the first axis of its first input; None where a first axis is dynamic."""
    if any(spec.shape and isinstance(spec.shape[0], str) for spec in inputs):
        return None
    return next((int(spec.shape[0]) for spec in inputs if spec.shape), 1)


def choose_batches(files: Sequence[BenchFile], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Batch sizes to measure, ascending.

    Args:
        files: that will be measured; those that cannot run here have no say.
        wanted: what the user asked for, each >= 1; None for 1 and 32, or whatever all files take.

    Raises:
        UsageError: a batch below 1, or one that a file does not take.
        ModelError: nobody asked for a batch, and the files take no common one.
    """
    running = [file for file in files if file.session]
    if wanted is not None:
        if not wanted or min(wanted) < 1:
            raise UsageError(f"a batch holds at least 1 sample, got {', '.join(map(str, wanted)) or 'none'}")
        for file in running:
            refused = [batch for batch in wanted if not file.takes(batch)]
            if refused:
                raise UsageError(f"{file.name} takes {_range(file)}, got a batch of {refused[0]}", where=str(file.path))
        return tuple(sorted(set(wanted)))
    common = tuple(batch for batch in DEFAULT_BATCHES if all(file.takes(batch) for file in running))
    if common:
        return common
    smallest = max(file.smallest for file in running)
    if all(file.takes(smallest) for file in running):
        return (smallest,)
    raise ModelError(
        "the files take no common batch: " + "; ".join(f"{file.name} {_range(file)}" for file in running),
        hint="export them with a dynamic first axis",
    )


def _range(file: BenchFile) -> str:
    if len(file.ranges) > 1:
        return "batches of " + ", or of ".join(f"{low} to {high}" for low, high in file.ranges)
    if file.largest is None:
        return f"batches from {file.smallest}"
    return f"batches of {file.smallest}" + (f" to {file.largest}" if file.largest != file.smallest else " only")


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """Read an NPZ file of arrays by input name, without pickles.

    Raises:
        DataError: missing, no NPZ file, damaged, or with object arrays.
    """
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError("the inputs are one array, expected an NPZ file of arrays by name", where=str(path))
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the inputs cannot be read: {error}", where=str(path), hint="numpy.savez(FILE, input_name=array)"
        ) from error


def make_feed(file: BenchFile, batch: int, given: Mapping[str, np.ndarray] | None, seed: int) -> dict[str, np.ndarray]:
    """Inputs of one call.

    Args:
        file: whose inputs they are.
        batch: samples, >= 1; it replaces every dynamic first axis.
        given: arrays by name, samples first, repeated or cut to the batch; others than the model's are left out. None
            makes inputs: floats uniform in [0, 1), bytes and booleans uniform over all values, wider integers 0 or 1,
            which any table of embeddings and any mask has.
        seed: of what is made.

    Raises:
        DataError: an input is missing or has no samples, a second axis is dynamic and nothing was given, or a batch
            does not fit into memory.
    """
    try:
        if given is not None:
            return _given(file, batch, given)
        return _made(file, batch, np.random.default_rng(seed))
    except MemoryError as error:
        raise DataError(f"a batch of {batch} does not fit into memory: {error}", where=file.name) from error


def _given(file: BenchFile, batch: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = [spec.name for spec in file.inputs if spec.name not in given]
    if missing:
        raise DataError(
            f"the inputs lack {', '.join(missing)}; the file has {', '.join(given) or 'no arrays'}",
            where=file.name,
            hint="name the arrays like the model's inputs",
        )
    feed: dict[str, np.ndarray] = {}
    for spec in file.inputs:
        array = given[spec.name]
        if not spec.shape or isinstance(spec.shape[0], int):
            feed[spec.name] = array
        elif array.ndim == 0 or not array.size:
            raise DataError(f"input {spec.name!r} has no samples: its shape is {array.shape}", where=file.name)
        else:
            feed[spec.name] = np.resize(array, (batch, *array.shape[1:]))
    return feed


def _made(file: BenchFile, batch: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    feed: dict[str, np.ndarray] = {}
    for spec in file.inputs:
        unknown = [axis for axis in spec.shape[1:] if isinstance(axis, str)]
        if unknown:
            raise DataError(
                f"input {spec.name!r} has the dynamic axes {', '.join(unknown)} beside the batch: nobody says how long",
                where=file.name,
                hint="give inputs with --input FILE.npz",
            )
        shape = tuple(batch if isinstance(axis, str) else axis for axis in spec.shape)
        feed[spec.name] = _random_array(np.dtype(spec.dtype), shape, random)
    return feed


def _random_array(dtype: np.dtype, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if dtype.kind == "f":
        return random.random(shape, dtype=np.float32).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return random.integers(0, 2, shape).astype(dtype)


def check_same_task(files: Sequence[BenchFile], feeds: Mapping[str, Arrays]) -> None:
    """Run every file once and refuse those whose answers have other shapes than the first one's.

    Args:
        files: that run here.
        feeds: file name -> inputs of one batch size.

    Raises:
        NotComparableError: shapes of inputs or outputs differ; names and types may.
        DataError: inputs do not fit a model.
        ModelError: a model fails on its inputs.
    """
    shapes = {file.name: (_shapes(feeds[file.name]), _shapes(run_once(file, feeds[file.name]))) for file in files}
    for name, found in shapes.items():
        first, expected = next(iter(shapes.items()))
        for what, got, wanted in zip(("takes inputs", "gives outputs"), found, expected, strict=True):
            if got != wanted:
                raise NotComparableError(
                    f"{name} {what} of shape {_joined(got)}, and {first} of shape {_joined(wanted)}: "
                    "they do not do the same work",
                    hint="--informational measures them all the same",
                )


def _shapes(arrays: Arrays) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays.values()]


def _joined(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "none"


def run_once(file: BenchFile, feed: Arrays) -> Arrays:
    """Run a file that runs here on one batch.

    Raises:
        DataError: the inputs do not fit the model.
        ModelError: the model fails on them.
    """
    assert file.session is not None
    try:
        return file.session.run(feed)
    except (DataError, ModelError) as error:
        error.at(file.name)
        raise


def measure_files(
    files: Sequence[BenchFile],
    feeds: Mapping[int, Mapping[str, Arrays]],
    *,
    budget_s: float,
    seed: int = 0,
    on_block: OnBatch = lambda batch, done, total: None,
) -> dict[int, Measurement]:
    """Time all files together, one batch size after the other.

    Args:
        files: that run here.
        feeds: batch size -> file name -> inputs.
        budget_s: seconds in all, > 0, shared equally among the batch sizes; a batch size of which a file drifts is
            measured twice, and every one in at least 6 blocks, whatever the budget.
        seed: of the order.
        on_block: called with batch size, blocks done and blocks in all, which grow where it is measured twice.

    Returns:
        Batch size -> measurement of every file.
    """
    measured: dict[int, Measurement] = {}
    for batch, feed in feeds.items():
        calls = {file.name: file.session.timed(feed[file.name]) for file in files if file.session}
        measured[batch] = measure_stable(
            calls,
            budget_s=budget_s / len(feeds),
            seed=seed,
            on_block=lambda done, total, batch=batch: on_block(batch, done, total),
        )
    return measured
