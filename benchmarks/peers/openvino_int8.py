"""OpenVINO's int8: NNCF on its own intermediate representation, which its own runtime runs."""

from __future__ import annotations

from pathlib import Path

import nncf  # pyright: ignore[reportMissingImports]
import openvino  # pyright: ignore[reportMissingImports]
from adapter import Images, main


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """One image at a time, as for NNCF on ONNX."""
    graph = openvino.Core().read_model(model)
    transformer = any(node.get_type_name() == "Softmax" for node in graph.get_ops())
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(images),
        subset_size=images.shape[0],
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return {"run": "model.xml"}


if __name__ == "__main__":
    main(quantize, ("nncf", "openvino"), batch=1)
