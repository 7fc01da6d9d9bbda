"""NNCF on the ONNX graph, with its defaults; transformers are named as such, as its documentation asks for."""

from __future__ import annotations

from pathlib import Path

import nncf  # pyright: ignore[reportMissingImports]
import onnx
from adapter import INPUT, Images, main


def quantize(model: Path, images: Images, folder: Path) -> dict[str, str]:
    """One image at a time: statistics of whole batches are another, less accurate mode of NNCF."""
    graph = onnx.load(model)
    transformer = any(node.op_type == "Softmax" for node in graph.graph.node)
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(images, lambda batch: {INPUT: batch}),
        subset_size=images.shape[0],
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    onnx.save(quantized, folder / "model.onnx")
    return {"run": "model.onnx", "engine": "model.onnx"}


if __name__ == "__main__":
    main(quantize, ("nncf", "onnx", "onnxruntime"), batch=1)
