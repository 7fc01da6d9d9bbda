"""PyCUDA and the driver's graph calls on memory of the host, as far as they are used here.

Work on a stream waits until something synchronizes, and work that is captured runs only when its graph is launched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

HANDLE = 4096
SUCCESS, INVALID = 0, 1


class FakeDriver:
    """What libcuda does for stream capture.

    Args:
        cuda: from `make_pycuda`.
        fails: the call that answers with an error.
    """

    def __init__(self, cuda: Any, fails: str = "") -> None:
        self.cuda = cuda
        self.fails = fails
        self.calls: list[str] = []
        self.graphs: list[list[Callable[[], None]]] = []

    def _status(self, name: str) -> int:
        self.calls.append(name)
        return INVALID if name == self.fails else SUCCESS

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        assert stream.value == HANDLE
        status = self._status("begin")
        if status == SUCCESS:
            assert not self.cuda.pending, "capture starts on a stream that has work"
            self.cuda.capturing = True
        return status

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        status = self._status("end")
        self.cuda.capturing = False
        self.graphs.append([*self.cuda.pending])
        self.cuda.pending.clear()
        graph._obj.value = len(self.graphs) if status == SUCCESS else None
        return status

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = graph.value
        return self._status("instantiate")

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        self.cuda.pending.extend(self.graphs[executable.value - 1])
        return self._status("launch")

    def cuGraphExecDestroy(self, executable: Any) -> int:
        return self._status("destroy executable")

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        return self._status("destroy graph")


class Allocation:
    def __init__(self, cuda: Any, size: int) -> None:
        self.cuda, self.address = cuda, 1 << 20 | len(cuda.blocks) << 8
        cuda.blocks[self.address] = np.zeros(size, np.uint8)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        del self.cuda.blocks[self.address]


def make_pycuda(*, name: str = "Fake GPU", capability: tuple[int, int] = (8, 9)) -> tuple[ModuleType, Any]:
    """The modules `pycuda` and `pycuda.driver`, for one GPU."""
    package, cuda = ModuleType("pycuda"), _driver(name, capability)
    package.driver = cuda  # type: ignore[attr-defined]
    package.__path__ = []  # type: ignore[attr-defined] - a package, so that its submodule can be imported
    return package, cuda


def _device_class(cuda: Any, name: str, capability: tuple[int, int]) -> type:
    class Context:
        def push(self) -> None:
            cuda.current += 1

        def pop(self) -> None:
            cuda.current -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return name

        def compute_capability(self) -> tuple[int, int]:
            return capability

        def pci_bus_id(self) -> str:
            return "0000:01:00.0"

        def retain_primary_context(self) -> Context:
            return Context()

    return Device


def _driver(name: str, capability: tuple[int, int]) -> Any:
    cuda: Any = ModuleType("pycuda.driver")
    cuda.Error = type("Error", (Exception,), {})
    cuda.blocks, cuda.pending, cuda.capturing, cuda.current = {}, [], False, 0

    class Stream:
        handle = HANDLE

        def __init__(self) -> None:
            assert cuda.current, "no context is current"

        def synchronize(self) -> None:
            assert not cuda.capturing, "a capturing stream cannot be waited for"
            for work in cuda.pending:
                work()
            cuda.pending.clear()

    class Event:
        def record(self, stream: Stream) -> None:
            assert not cuda.capturing, "events of the clock do not belong into a graph"

        def time_since(self, start: Event) -> float:
            return 0.5

    cuda.init = lambda: None
    cuda.Device, cuda.Stream, cuda.Event = _device_class(cuda, name, capability), Stream, Event
    cuda.pagelocked_empty = np.empty
    cuda.mem_alloc = lambda size: Allocation(cuda, size)
    cuda.memory = lambda address: cuda.blocks[address]

    def enqueue(handle: int, work: Callable[[], None]) -> None:
        assert handle == HANDLE
        assert cuda.current, "no context is current"
        cuda.pending.append(work)

    def upload(address: int, source: Any, stream: Stream) -> None:
        enqueue(stream.handle, lambda: cuda.blocks[address].__setitem__(slice(0, source.nbytes), source))

    def download(target: Any, address: int, stream: Stream) -> None:
        enqueue(stream.handle, lambda: target.__setitem__(slice(None), cuda.blocks[address][: target.nbytes]))

    cuda.enqueue, cuda.memcpy_htod_async, cuda.memcpy_dtoh_async = enqueue, upload, download
    return cuda
