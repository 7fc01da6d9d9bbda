"""How far a build is, from the building process to its parent through a small mapped file.

The monitor is called inside the build. It writes into memory that is there already and allocates nothing else, so
that the plan's bytes cannot depend on it; see docs/decisions/0007.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME_BYTES = 240
_RECORD = struct.Struct(f"<II{_NAME_BYTES}s")  # steps done, steps in all, name of the outermost phase


@dataclass(frozen=True)
class BuildState:
    """The outermost phase of a build at one moment."""

    phase: str
    done: int
    total: int


class ProgressFile:
    """The building side's end of the file.

    Args:
        path: the file is made, or emptied.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_RECORD.size))
        self._file = path.open("r+b")
        self._memory = mmap.mmap(self._file.fileno(), _RECORD.size)

    def write(self, phase: bytes, done: int, total: int) -> None:
        """Say how far the outermost phase is; a name longer than 240 bytes is cut."""
        _RECORD.pack_into(self._memory, 0, done, total, phase)

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()
        self._file.close()


def read_progress(path: Path) -> BuildState | None:
    """What a build last said; None before it said anything. A name may be half written: it is only shown."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) != _RECORD.size:
        return None
    done, total, name = _RECORD.unpack(data)
    return BuildState(name.rstrip(b"\0").decode("utf-8", "replace"), done, total) if total else None


def make_monitor(trt: Any, file: ProgressFile) -> Any:
    """A progress monitor that reports the outermost phase.

    Args:
        trt: a backend that has `IProgressMonitor`.
        file: where it reports to; must outlive the build.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._name = b""
            self._total = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost, self._name, self._total = phase_name, phase_name.encode(), num_steps
                file.write(self._name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                file.write(self._name, min(step + 1, self._total), self._total)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                file.write(self._name, self._total, self._total)

    return Monitor()
