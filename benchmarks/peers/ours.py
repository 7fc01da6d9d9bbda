"""`compress`: its default calibration; the unsigned file is measured, the signed one is for TensorRT."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, main

from compress.onnx_graph.loading import load_onnx, save_onnx
from compress.quantization.quantize import quantize_onnx


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Both int8 files from one scale table."""
    quantized = quantize_onnx(load_onnx(model), iter(images))
    save_onnx(quantized.signed, folder / "model.onnx")
    save_onnx(quantized.unsigned, folder / "model.ort.onnx")
    return {"run": "model.ort.onnx", "engine": "model.onnx"}


if __name__ == "__main__":
    main(quantize, ("onnx", "onnxruntime"))
