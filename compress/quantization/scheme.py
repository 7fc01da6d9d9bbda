"""What numbers an int8 network is made of; plain values, no tensor library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.errors import UsageError

QUANTIZER_VERSION = 1  # bump when the same network would get other fake-quant nodes or other ranges

ACTIVATION_RANGE = (-128, 127)
MIN_WEIGHT_BITS, MAX_WEIGHT_BITS = 2, 8


@dataclass(frozen=True)
class Scheme:
    """Signed symmetric integers for TensorRT: zero point 0, activations per tensor, weights per output channel.

    Weights never use the lowest code (-128 at 8 bits), so that the range is symmetric and a weight can be negated.
    On x86 processors with AVX2 but without VNNI, ONNX Runtime multiplies unsigned activations and signed weights
    with an instruction that saturates at 16 bits (vpmaddubsw); `weight_bits=7` keeps every pair of products inside
    (2 x 255 x 63 < 2^15) at the price of half the weight resolution. The integers are stored as int8 either way.

    Attributes:
        name: of the scheme, as it appears in manifests.
        weight_bits: bits a weight may use, 2 to 8.
    """

    name: str = "int8-symmetric"
    weight_bits: int = 8

    def __post_init__(self) -> None:
        """Refuse widths that int8 storage cannot hold."""
        if not MIN_WEIGHT_BITS <= self.weight_bits <= MAX_WEIGHT_BITS:
            raise UsageError(
                f"weight_bits is {self.weight_bits}, expected {MIN_WEIGHT_BITS} to {MAX_WEIGHT_BITS}",
                hint="leave weight_bits out (8), or set 7 for processors without VNNI",
            )

    @property
    def weight_range(self) -> tuple[int, int]:
        """Lowest and highest weight code: (-127, 127) at 8 bits, (-63, 63) at 7."""
        top = 2 ** (self.weight_bits - 1) - 1
        return -top, top

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"name": self.name, "weight_bits": self.weight_bits}
