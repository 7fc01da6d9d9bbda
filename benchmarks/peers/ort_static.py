"""What both adapters of ONNX Runtime's `quantize_static` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapter import Images, Reader
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def ort_static(model: Path, images: Images, folder: Path, **settings: Any) -> dict[str, str]:
    """Quantize to Q/DQ, weights per channel in int8; `settings` are more of `quantize_static`'s."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared,
        folder / "model.onnx",
        Reader(images),  # type: ignore[arg-type]  # it asks for get_next alone
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        **settings,
    )
    return {"run": "model.onnx", "engine": "model.onnx"}
