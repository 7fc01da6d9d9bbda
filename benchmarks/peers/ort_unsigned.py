"""ONNX Runtime's `quantize_static` as its documentation advises for x86 with VNNI: u8 activations, s8 weights."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, main
from onnxruntime.quantization import QuantType
from ort_static import ort_static


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Asymmetric activations, weights per channel, ranges from the smallest and largest values (its default)."""
    return ort_static(model, images, folder, activation_type=QuantType.QUInt8)


if __name__ == "__main__":
    main(quantize, ("onnx", "onnxruntime"))
