"""The figures of a trial: accuracy on the validation split, latency beside the recipe as it is written, size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifacts.manifest import Artifact, Checkpoint
from compress.errors import UnavailableError
from compress.pipeline.machine import FACTS
from compress.stages.contract import INPUT, network_input
from compress.stages.variants import Runnable, file_of, runnable_from_artifact

if TYPE_CHECKING:
    from compress.data.split import Split

BLOCKS = 10
SLOT_ITERATIONS = 20
SLOT_MS = 50.0
WARMUP_MS = 200.0


@dataclass(frozen=True)
class Figure:
    """One measured number; `low` and `high` are the ends of its 95 % interval, where it has one.

    A latency names the processor, the threads of both sessions and the samples per call.
    """

    value: float
    unit: str
    split: str | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    cpu: str | None = None
    threads: int | None = None
    batch: int | None = None

    def document(self) -> dict[str, Any]:
        """The same as JSON, without what it has not."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def accuracy(artifact: Artifact, validation: Callable[[], Split], base: Path, *, threads: int) -> Figure:
    """Top-1 on the validation split; a checkpoint knows its own.

    Args:
        artifact: that was made from this split's data.
        validation: gives the split, where it must be looked at.
        base: folder that a user's `module:callable` starts from.
        threads: CPU threads of the session that answers.

    Raises:
        UnavailableError: it cannot run here.
    """
    if isinstance(artifact, Checkpoint):
        known = [
            metric for metric in artifact.manifest.metrics if (metric.name, metric.split) == ("top1", "validation")
        ]
        return Figure(known[0].value, "fraction", "validation", known[0].n)
    split, runnable = validation(), _running(artifact, base, threads)
    answers = runnable.logits(network_input(split.images)).argmax(axis=1)
    _close(runnable)
    return Figure(float((answers == split.labels).mean()), "fraction", split.name, len(split))


def size(artifact: Artifact) -> Figure:
    """Bytes of the file that runs here."""
    return Figure(float(file_of(artifact).stat().st_size), "bytes")


def latency(artifact: Artifact, written: Artifact, images: Split, base: Path, *, batch: int, threads: int) -> Figure:
    """How long a call takes, as a ratio to the same step of the recipe as it is written: below 1 it is faster.

    Both run in the same blocks of one process, so that a machine that drifts, or that is busy, changes both.

    Args:
        artifact: of the trial.
        written: of the recipe as it is written.
        images: whose pixels are fed; repeated where the batch is larger.
        base: folder that a user's `module:callable` starts from.
        batch: samples per call.
        threads: CPU threads of both sessions.

    Raises:
        UnavailableError: it cannot run here.
    """
    import numpy as np

    from compress.measure.latency import latency_ratio, measure_stable

    pixels = network_input(images.images[:batch])
    feed = {INPUT: np.resize(pixels, (batch, *pixels.shape[1:]))}
    pair = {"trial": _running(artifact, base, threads), "written": _running(written, base, threads)}
    calls = {name: one.session.timed(feed) for name, one in pair.items() if one.session}
    measured = measure_stable(
        calls, blocks=BLOCKS, slot_iterations=SLOT_ITERATIONS, slot_ms=SLOT_MS, warmup_ms=WARMUP_MS
    )
    for one in pair.values():
        _close(one)
    ratio = latency_ratio(measured.samples["trial"], measured.samples["written"])
    conditions: dict[str, Any] = {"cpu": FACTS["cpu"](), "threads": threads, "batch": batch}
    return Figure(ratio.ratio, "ratio", low=ratio.low, high=ratio.high, **conditions)


def _running(artifact: Artifact, base: Path, threads: int) -> Runnable:
    runnable = runnable_from_artifact(artifact, base, device="cpu", threads=threads)
    if runnable.session is None:
        raise UnavailableError(
            f"{runnable.label} cannot run here: {runnable.reason}",
            where=f"step {artifact.step}",
            hint="tune for a step that runs here, or on a machine that has what is missing",
        )
    return runnable


def _close(runnable: Runnable) -> None:
    if runnable.session is not None:
        runnable.session.close()
