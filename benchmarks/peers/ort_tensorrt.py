"""ONNX Runtime's `quantize_static` with the options that make its files fit for TensorRT: signed and symmetric."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, Reader, main
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "MaxPool"]


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Symmetric activations, float biases, a Q/DQ pair for each reader."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared,
        folder / "model.onnx",
        Reader(images),  # type: ignore[arg-type]  # it asks for get_next alone
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
        },
    )
    return {"run": "model.onnx", "engine": "model.onnx"}


if __name__ == "__main__":
    main(quantize, ("onnx", "onnxruntime"))
