"""What numbers an int8 network is made of; plain values, no tensor library."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compress.errors import UsageError

# Bump when the same network would get other fake-quant nodes, ranges or weight scales: `qat` and `calibrate` run again.
QUANTIZER_VERSION = 4

ACTIVATION_RANGE = (-128, 127)
MIN_WEIGHT_BITS, MAX_WEIGHT_BITS = 2, 8


@dataclass(frozen=True)
class Scheme:
    """Signed symmetric integers for TensorRT: zero point 0, activations per tensor, weights per output channel.

    Weights never use the lowest code (-128 at 8 bits), so that the range is symmetric and a weight can be negated.
    On x86 processors with AVX2 but without VNNI, ONNX Runtime multiplies unsigned activations and signed weights
    with an instruction that saturates at 16 bits (vpmaddubsw). Activations after a ReLU use codes up to 127, which is
    safe (2 x 127 x 127 < 2^15). Those that may be negative, or end at a bound (ReLU6), use codes up to 255: the weights
    they meet have 7 bits (2 x 255 x 63 < 2^15). The integers are stored as int8 either way.

    Attributes:
        name: of the scheme, as it appears in manifests.
        weight_bits: bits of a weight whose activation stays within half the unsigned range, 2 to 8.
        full_range_weight_bits: bits of the other weights, 2 to 8.
    """

    name: str = "int8-symmetric"
    weight_bits: int = 8
    full_range_weight_bits: int = 7

    def __post_init__(self) -> None:
        """Refuse widths that int8 storage cannot hold."""
        for field, bits in (
            ("weight_bits", self.weight_bits),
            ("full_range_weight_bits", self.full_range_weight_bits),
        ):
            if not MIN_WEIGHT_BITS <= bits <= MAX_WEIGHT_BITS:
                raise UsageError(
                    f"{field} is {bits}, expected {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}",
                    hint=f"leave {field} out ({getattr(Scheme, field)})",
                )

    def weight_range(self, *, half_range: bool) -> tuple[int, int]:
        """Lowest and highest weight code: (-127, 127) at 8 bits, (-63, 63) at 7.

        Args:
            half_range: whether the activation that meets the weight stays within half the unsigned range.
        """
        top = 2 ** ((self.weight_bits if half_range else self.full_range_weight_bits) - 1) - 1
        return -top, top

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)
