"""A torch module as a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.engines.session import Arrays, wall_timed
from compress.errors import DataError, ModelError, UnavailableError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchSession:
    """One module in torch; make it with `load`.

    Args:
        module: in evaluation mode, on `device`.
        device: where inputs go.
        threads: of torch's intra-op pool, a setting of the whole process that `run` enforces.
        input_names: the module's positional arguments, in order.
        output_names: its outputs, in order.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        threads: int,
        input_names: Sequence[str],
        output_names: Sequence[str],
    ) -> None:
        self._module: nn.Module | None = module
        self._device = device
        self._threads = threads
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)

    @classmethod
    def load(
        cls,
        source: nn.Module,
        device: str = "cpu",
        *,
        threads: int = 1,
        input_names: Sequence[str] = ("image",),
        output_names: Sequence[str] = ("logits",),
    ) -> TorchSession:
        """Take a module over: it is moved to the device and put in evaluation mode.

        Args:
            source: the module; a graph from torch.export stays in the mode that it was exported in.
            device: `cpu`, `cuda` or `cuda:N`.
            threads: intra-op threads, >= 1.
            input_names: names of the positional arguments, in order.
            output_names: names of the outputs, in order.

        Raises:
            UsageError: unknown device, or threads < 1.
            UnavailableError: torch sees no such GPU.
        """
        import torch

        if threads < 1:
            raise UsageError(f"torch needs at least 1 thread, got {threads}")
        try:
            target = torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"Unknown device {device!r} for torch: expected cpu, cuda or cuda:N") from error
        if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
            raise UnavailableError(
                f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs, so not {device}",
                hint="use device cpu, or see `compress doctor`",
            )
        if source.training:
            try:
                source.eval()
            except NotImplementedError:  # a graph from torch.export: its mode was fixed when it was exported
                pass
        return cls(source.to(target), target, threads, input_names, output_names)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one batch; see `Session.run`."""
        import torch

        if self._module is None:
            raise RuntimeError("the session is closed")
        if set(inputs) != set(self._input_names):
            raise DataError(
                f"The inputs do not fit the model: got {', '.join(inputs) or 'none'}, "
                f"expected {', '.join(self._input_names)}"
            )
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            arguments = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._input_names]
            try:
                result = self._module(*(argument.to(self._device) for argument in arguments))
            except (RuntimeError, TypeError) as error:
                shapes = {name: array.shape for name, array in inputs.items()}
                raise ModelError(f"The module fails on inputs of shape {shapes}: {error}") from error
            outputs = result if isinstance(result, tuple | list) else (result,)
            if len(outputs) != len(self._output_names):
                raise ModelError(
                    f"The module gives {len(outputs)} outputs, expected {len(self._output_names)}: "
                    f"{', '.join(self._output_names)}"
                )
            return {name: value.cpu().numpy() for name, value in zip(self._output_names, outputs, strict=True)}

    def timed(self, inputs: Arrays) -> Callable[[], float]:
        """Wall time, or device events on a GPU, of one run, in milliseconds a call; see `Session.timed`."""
        if self._device.type != "cuda":
            return wall_timed(lambda: self.run(inputs))
        import torch

        stream = torch.cuda.current_stream(self._device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def timed() -> float:
            start.record(stream)
            self.run(inputs)
            end.record(stream)
            end.synchronize()
            return start.elapsed_time(end)

        return timed

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, threads and tensor names; torch modules declare no shapes."""
        import torch

        return {
            "backend": "torch",
            "version": torch.__version__,
            "device": str(self._device),
            "threads": self._threads,
            "inputs": [{"name": name} for name in self._input_names],
            "outputs": [{"name": name} for name in self._output_names],
        }

    def close(self) -> None:
        """Let go of the module."""
        self._module = None
