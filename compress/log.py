"""Log lines for people or machines, and the one progress helper.

Library code asks for `get_logger(__name__)` and `progress(...)`; only the command line calls `configure`.
Everything here goes to standard error, so that standard output carries results alone.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

ROOT = "compress"
# Loggers of others whose warnings say nothing to a user; their errors still come through.
_NOISY = {
    "torchao": "kernels for GPUs that this machine does not have, named one by one at import",
    "torch.utils._pytree": "a deprecation inside torchao, repeated at every import",
}


@dataclass
class _Output:
    """What the command line chose, and the bars on the screen at this moment."""

    quiet: bool = False
    json: bool = False
    bars: Progress | None = None


_output = _Output()


class JsonLines(logging.Formatter):
    """One JSON object a line: level, logger, message, and the exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        document = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class _Console(logging.Handler):
    """Writes to the standard error of the moment, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if _output.bars is not None:
            _output.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class _Plain(logging.Formatter):
    """The message alone; from warning upwards the level leads."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of one module.

    Args:
        name: the module's `__name__`; a name outside the package is put below it.
    """
    inside = name == ROOT or name.startswith(f"{ROOT}.")
    return logging.getLogger(name if inside else f"{ROOT}.{name}")


def configure(*, quiet: bool = False, json: bool = False) -> None:
    """Choose what reaches standard error; called by the command line, once a process.

    Args:
        quiet: warnings and errors only, no progress.
        json: log records as JSON lines, no progress.
    """
    _output.quiet, _output.json = quiet, json
    handler = _Console()
    handler.setFormatter(JsonLines() if json else _Plain())
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


class Bar:
    """One piece of long work; every method is free of effect where no bar is shown."""

    def __init__(self, bars: Progress | None, task: TaskID | None) -> None:
        self._bars = bars
        self._task = task

    def advance(self, n: float = 1) -> None:
        """Count `n` more units as done."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def show(self, done: float, total: float) -> None:
        """Set how many units are done and how many there are; the latter may grow."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def update(self, **fields: object) -> None:
        """Show values beside the bar, e.g. `update(loss=0.31)`; floats get four significant digits."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, fields=_joined(fields))


def _joined(fields: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


def _visible() -> bool:
    return not _output.quiet and not _output.json and sys.stderr.isatty()


def _new_bars() -> Progress:
    # Rich costs a tenth of a second to import, and most commands show no bar.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units done per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.3g} {task.fields['unit']}/s")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}", markup=False),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def progress(description: str, total: float | None, unit: str) -> Iterator[Bar]:
    """Show a bar with rate and remaining time while the block runs; silent unless standard error is a terminal.

    Args:
        description: what is going on, e.g. "teacher: epoch 3 of 30".
        total: how many units there are; None if unknown.
        unit: plural name of a unit, e.g. "samples".

    Yields:
        A `Bar`: `advance(n)` and `update(loss=...)`. Blocks may nest: the bars stand below one another.
    """
    if not _visible():
        yield Bar(None, None)
        return
    outer = _output.bars
    bars = outer if outer is not None else _new_bars()
    task = bars.add_task(description, total=total, unit=unit, fields="")
    if outer is None:
        _output.bars = bars
        bars.start()
    try:
        yield Bar(bars, task)
    finally:
        bars.remove_task(task)
        if outer is None:
            bars.stop()
            _output.bars = None
