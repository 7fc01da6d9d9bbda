"""What a person may choose about quantization after training; plain values, importable without any tensor library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.onnx_graph.unsigned import UnsignedWeights

Method = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
WeightMethod = Literal["max", "mse"]
Granularity = Literal["per_channel", "per_tensor"]


@dataclass(frozen=True)
class QuantizeSettings:
    """How scales are chosen and which layers stay float.

    Args:
        method: how the range of an activation is chosen from what the samples showed: "minmax" the largest |x|,
            "moving_average" an exponential average of the largest |x| of each batch, "percentile" the |x| that
            `percentile` % of the values do not exceed, "entropy" the range of least information loss, "mse" the range
            of the least squared quantization error.
        percentile: of |x|, in %, above 50 and at most 100; read by the method "percentile" alone.
        weights: "max" takes the largest |w|, "mse" the range of the least squared quantization error.
        granularity: of the scales of weights: one per output channel, or one per tensor.
        float_layers: names of nodes of the canonical graph (conv_3, matmul_0), or patterns like conv_*, that stay
            in float.
        unsigned_weights: which layers of the file for ONNX Runtime store uint8 weights, see `unsigned_from_signed`.

    Raises:
        UsageError: an unknown choice, or a percentile out of range.
    """

    method: Method = "mse"
    percentile: float = 99.99
    weights: WeightMethod = "max"
    granularity: Granularity = "per_channel"
    float_layers: tuple[str, ...] = ()
    unsigned_weights: UnsignedWeights = "shifted"

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("calibration method", self.method, Method),
            ("method for weights", self.weights, WeightMethod),
            ("granularity of weights", self.granularity, Granularity),
        ):
            if value not in get_args(choices):
                raise UsageError(f"Unknown {what} {value!r}; expected one of {', '.join(get_args(choices))}.")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"The percentile is {self.percentile}; expected above 50 and at most 100 (%).")
