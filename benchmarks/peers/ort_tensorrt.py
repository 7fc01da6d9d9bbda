"""ONNX Runtime's `quantize_static` with the options that make its files fit for TensorRT: signed and symmetric."""

from __future__ import annotations

from pathlib import Path

from adapter import Images, main
from onnxruntime.quantization import QuantType
from ort_static import ort_static

OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "MaxPool"]
OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True}


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """Symmetric activations, float biases, a Q/DQ pair for each reader."""
    activations = QuantType.QInt8
    return ort_static(
        model, images, folder, op_types_to_quantize=OPERATORS, activation_type=activations, extra_options=OPTIONS
    )


if __name__ == "__main__":
    main(quantize, ("onnx", "onnxruntime"))
