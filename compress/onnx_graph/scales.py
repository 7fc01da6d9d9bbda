"""The scale table: one scale for every quantized tensor, and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from compress.errors import ModelError

Source = Literal["qat", "minmax", "moving_average", "percentile", "entropy", "mse", "max", "weights"]
LEVELS = 127  # codes on each side of zero: -127..127, so that the range is symmetric


@dataclass(frozen=True)
class Scale:
    """Step between two int8 codes: real value = code * scale, zero point 0.

    Args:
        scale: one positive number per tensor, or one per output channel.
        source: "qat" learned while training; of activations the method that calibrated them, of weights "max" or
            "mse" (in tables of older versions "weights", which was "max").
        axis: the output-channel axis of a weight; None for an activation, and for a weight with one scale.
    """

    scale: float | tuple[float, ...]
    source: Source
    axis: int | None = None

    def __post_init__(self) -> None:
        values = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not values or not all(math.isfinite(value) and value > 0 for value in values):
            raise ModelError(f"A scale must be positive and finite, got {self.scale}.")
        if self.source not in get_args(Source):
            raise ModelError(f"Unknown source of a scale: {self.source!r}; expected one of {get_args(Source)}.")


@dataclass(frozen=True)
class ScaleTable(Mapping[str, Scale]):
    """Tensor name -> scale, in the order of names."""

    scales: Mapping[str, Scale]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", dict(sorted(self.scales.items())))

    def __getitem__(self, name: str) -> Scale:
        return self.scales[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def to_json(self) -> str:
        """`{tensor: {"scale": number or list, "source": ..., "axis": only for weights}}`, sorted, one line each."""
        rows = []
        for name, scale in self.scales.items():
            row: dict[str, Any] = {"scale": scale.scale, "source": scale.source}
            if scale.axis is not None:
                row["axis"] = scale.axis
            rows.append(f"  {json.dumps(name)}: {json.dumps(row)}")
        return "{\n" + ",\n".join(rows) + "\n}\n" if rows else "{}\n"

    @classmethod
    def from_json(cls, text: str) -> ScaleTable:
        """Read what `to_json` wrote.

        Raises:
            ModelError: not JSON, unknown fields, or a scale that is not positive and finite.
        """
        try:
            document = json.loads(text)
            rows = {
                name: Scale(
                    tuple(row["scale"]) if isinstance(row["scale"], list) else float(row["scale"]),
                    row["source"],
                    row.get("axis"),
                )
                for name, row in document.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"The scale table is malformed: {type(error).__name__}: {error}",
                hint="Run the `calibrate` step again.",
            ) from error
        return cls(rows)
