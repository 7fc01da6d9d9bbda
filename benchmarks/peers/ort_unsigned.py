"""ONNX Runtime's `quantize_static` as its documentation advises for x86 with VNNI: u8 activations, s8 weights."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, Reader, main
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Asymmetric activations, weights per channel, ranges from the smallest and largest values (its default)."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared,
        folder / "model.onnx",
        Reader(images),  # type: ignore[arg-type]  # it asks for get_next alone
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {"run": "model.onnx", "engine": "model.onnx"}


if __name__ == "__main__":
    main(quantize, ("onnx", "onnxruntime"))
