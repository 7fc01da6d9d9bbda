"""One GPU through PyCUDA: its primary context, a stream, and pairs of pinned and device memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from compress.errors import UnavailableError


class CudaDevice:
    """The primary context of a GPU, shared with whatever else uses it in this process, and a stream of our own.

    Args:
        index: of the GPU among those that CUDA sees.

    Raises:
        UnavailableError: CUDA does not start, or there is no such GPU.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver as cuda

        try:
            cuda.init()
            count = cuda.Device.count()
            if index >= count:
                raise UnavailableError(f"There is no GPU {index}: CUDA sees {count}", hint="see `compress doctor`")
            device = cuda.Device(index)
            self.name: str = device.name()
            self.compute_capability = ".".join(str(part) for part in device.compute_capability())
            self.pci_bus_id: str = device.pci_bus_id()
            self._context: Any = device.retain_primary_context()
            with self.current():
                # Not the default stream: there TensorRT adds device-wide synchronizations to every run.
                self._stream: Any = cuda.Stream()
        except cuda.Error as error:
            raise UnavailableError(f"CUDA does not start: {error}", hint="see `compress doctor`") from error

    @property
    def stream_handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream.handle)

    @property
    def stream(self) -> Any:
        """The stream as PyCUDA takes it."""
        return self._stream

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU's context the calling thread's for a while."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self._stream.synchronize()

    def mark(self) -> Any:
        """Put a mark into the stream; `milliseconds` says how long the device took from one to the next."""
        import pycuda.driver as cuda

        event = cuda.Event()
        event.record(self._stream)
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Time between two marks that the device has passed, to about half a microsecond."""
        return float(end.time_since(start))

    def close(self) -> None:
        """Give stream and context back."""
        self._stream = None
        self._context = None


class TensorBuffer:
    """Pinned host memory and device memory of one tensor, large enough for its largest shape.

    Pinned memory is what makes copies asynchronous. The context of `device` must be current in every call.

    Args:
        device: whose memory it is.
        dtype: of the elements.
        largest: shape of the largest batch.

    Raises:
        UnavailableError: the GPU's memory, or what the host may pin, is used up.
    """

    def __init__(self, device: CudaDevice, dtype: np.dtype, largest: tuple[int, ...]) -> None:
        import pycuda.driver as cuda

        self._cuda = cuda
        self._device = device
        self._dtype = dtype
        size_bytes = max(1, math.prod(largest) * dtype.itemsize)
        try:
            self._host: Any = cuda.pagelocked_empty(size_bytes, np.uint8)
            self._memory: Any = cuda.mem_alloc(size_bytes)
        except cuda.Error as error:
            raise UnavailableError(
                f"There is no room for a buffer of {size_bytes} bytes on {device.name}: {error}",
                hint="build the engine with a smaller largest batch",
            ) from error

    @property
    def address(self) -> int:
        """Address in device memory; it never changes."""
        return int(self._memory)

    def stage(self, array: np.ndarray) -> None:
        """Copy into pinned memory, from where `start_upload` takes it."""
        self.view(array.shape)[...] = array

    def start_upload(self, array: np.ndarray) -> None:
        """Copy what was staged to the device, on the stream; returns before that is done."""
        self._cuda.memcpy_htod_async(self.address, self._host[: array.nbytes], self._device.stream)

    def start_download(self, shape: tuple[int, ...]) -> None:
        """Copy to pinned memory on the stream, from where `view` shows it once the stream is synchronized."""
        size_bytes = math.prod(shape) * self._dtype.itemsize
        self._cuda.memcpy_dtoh_async(self._host[:size_bytes], self.address, self._device.stream)

    def free(self) -> None:
        """Free both sides."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None
            self._host = None  # PyCUDA unpins it with the array

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """Pinned memory as an array of that shape; good until the next run."""
        size_bytes = math.prod(shape) * self._dtype.itemsize
        return self._host[:size_bytes].view(self._dtype).reshape(shape)
