"""What training leaves beside its result: event files for TensorBoard, and a profile of a few steps."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from compress.log import get_logger

WRITER = "tensorboardX"
PROFILE, OPERATORS = "profile.json", "operators.txt"
# Steps before recording (allocations, the first choice of kernels), steps in which the profiler itself warms up, and
# steps that are recorded.
WAIT, WARM_UP, RECORDED = 5, 2, 5
_ROWS = 25
_SILENT = "6"  # above every level that the tracer knows

log = get_logger(__name__)


@contextmanager
def event_file(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a TensorBoard event file in a folder; each record of an epoch becomes its scalars at once.

    Where tensorboardX is not installed nothing is written, and that is said once a process.

    Args:
        folder: made if it is missing.

    Yields:
        A function of a record of `fit`'s history: every number in it but the epoch, which is the step in TensorBoard,
        under the name that it has there; the parts of the loss as `parts/<name>`.

    Raises:
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec(WRITER) is None:
        _say_missing()
        yield lambda record: None
        return
    # The library's SummaryWriter writes from a thread of its own, where an error (a full disk) would be lost.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))

    def write(record: Mapping[str, Any]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(record).items()]
        writer.write_event(Event(wall_time=time.time(), step=record["epoch"], summary=Summary(value=values)))
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's record by name, `parts/soft` for nested ones; the epoch itself is none of them."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in scalars(value).items()}
        elif name != "epoch" and isinstance(value, int | float):
            found[name] = value
    return found


@contextmanager
def profiled(folder: Path, device: str) -> Iterator[Callable[[], None]]:
    """Profile a few training steps after the first ones; neither weights nor random numbers depend on it.

    `profile.json` is a trace for chrome://tracing or ui.perfetto.dev, `operators.txt` names the slowest operators.

    Args:
        folder: made if it is missing; gets both files.
        device: cpu or cuda: whose work is recorded.

    Yields:
        What is to be called after every training step.

    Raises:
        OSError: the files cannot be written.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    on_gpu = device == "cuda"
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    folder.mkdir(parents=True, exist_ok=True)
    if not on_gpu:  # where the tracer's messages say no more than that it starts and stops; read at its first use
        os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    steps, saved = 0, False

    def save(profiler: profile) -> None:
        nonlocal saved
        if steps <= WAIT + WARM_UP:  # training ended as recording began
            return
        profiler.export_chrome_trace(str(folder / PROFILE))
        table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS)
        (folder / OPERATORS).write_text(table + "\n", encoding="utf-8")
        saved = True

    def step() -> None:
        nonlocal steps
        steps += 1
        profiler.step()

    plan = schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, schedule=plan, on_trace_ready=save) as profiler:
        yield step
    if not saved:
        log.warning(
            "no profile in %s: training took %d steps, expected more than %d before one is recorded",
            *(folder, steps, WAIT + WARM_UP),
        )


@cache
def _say_missing() -> None:
    log.info("optional: with %s installed, training leaves event files for TensorBoard; pip install %s", WRITER, WRITER)
