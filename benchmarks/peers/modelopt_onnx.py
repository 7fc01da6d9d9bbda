"""NVIDIA ModelOpt on the ONNX graph, with its defaults, except that what stays float stays float32: CPUs run it."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, Reader, main
from modelopt.onnx.quantization import quantize as modelopt_quantize  # pyright: ignore[reportMissingImports]


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Entropy calibration, as by default; in batches, since each one costs a pass over all histograms."""
    modelopt_quantize(
        str(model),
        quantize_mode="int8",
        calibration_data_reader=Reader(images),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(folder / "model.onnx"),
        log_level="WARNING",
    )
    return {"run": "model.onnx", "engine": "model.onnx"}


if __name__ == "__main__":
    main(quantize, ("nvidia-modelopt", "onnx", "onnxruntime"))
