"""Work captured from a CUDA stream once and started as a whole afterwards, through the driver's own library.

A few calls, so that nothing depends on what the installed PyCUDA wraps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
_THREAD_LOCAL = 1  # other threads may go on calling CUDA while this one captures


class CaptureError(Exception):
    """The driver does not capture or start this work; the message says which call failed."""


def load_driver() -> Any:
    """The driver's library."""
    return ctypes.CDLL(_LIBRARY)


class CudaGraph:
    """Captured work, ready to be started; make it with `capture`.

    Args:
        driver: from `load_driver`.
        graph: handle of the captured graph, which this object owns.

    Raises:
        CaptureError: the graph cannot be made executable.
    """

    def __init__(self, driver: Any, graph: ctypes.c_void_p) -> None:
        self._driver = driver
        self._graph: ctypes.c_void_p | None = graph
        self._executable = ctypes.c_void_p()
        try:
            # The older entry point takes three more arguments, so the one with flags is asked for by name.
            _check(driver.cuGraphInstantiateWithFlags(ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0)))
        except CaptureError:
            driver.cuGraphDestroy(graph)
            raise

    @classmethod
    def capture(cls, stream: int, work: Callable[[], object], driver: Any = None) -> CudaGraph:
        """Record what `work` puts into a stream; nothing of it runs.

        Args:
            stream: handle; not the default stream. Its context must be current.
            work: enqueues and returns; it must have run once before, so that nothing is allocated while it is captured.
            driver: the driver's library; None to load it.

        Raises:
            CaptureError: the work cannot be captured; the stream is usable again.
        """
        driver = driver if driver is not None else load_driver()
        _check(driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), _THREAD_LOCAL))
        graph = ctypes.c_void_p()
        try:
            work()
        finally:
            # Also after an error: a stream that stays in capture mode refuses everything else.
            ended = driver.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        _check(ended)
        if not graph.value:
            raise CaptureError("the driver captured nothing")
        return cls(driver, graph)

    def launch(self, stream: int) -> None:
        """Start everything that was captured, on a stream; returns before it is done.

        Raises:
            CaptureError: the driver refuses.
        """
        _check(self._driver.cuGraphLaunch(self._executable, ctypes.c_void_p(stream)))

    def free(self) -> None:
        """Give it back to the driver; the context must be current."""
        if self._graph is not None:
            self._driver.cuGraphExecDestroy(self._executable)
            self._driver.cuGraphDestroy(self._graph)
            self._graph = None


def _check(status: int) -> None:
    if status != _SUCCESS:
        raise CaptureError(f"CUDA error {status}")
