"""What an engine computes in, proven on its plan, with the two controls that show that the proof can fail."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A residual network as the exporter and the calibration make it: float file, and its signed Q/DQ model."""
    import numpy as np
    import torch

    from compress.models.catalogue import build_model
    from compress.models.normalized import Normalized
    from compress.onnx_graph.export import export_onnx
    from compress.onnx_graph.loading import load_onnx
    from compress.quantization.quantize import quantize_onnx

    torch.manual_seed(0)
    net = build_model({"name": "resnet", "widths": [8, 16]}, image_shape=(1, 8, 8), classes=10, base=Path())
    path = tmp_path_factory.mktemp("onnx") / "float.onnx"
    export_onnx(Normalized(net, (0.3,), (0.35,)).eval(), torch.zeros(2, 1, 8, 8), path)
    images = np.random.default_rng(0).random((128, 1, 8, 8), dtype=np.float32)
    return path, quantize_onnx(load_onnx(path), iter([images])).signed


def counts(model, folder) -> tuple[int, int]:
    """Convs and Gemms with int8 operands, and all of them, of the engine built from a model."""
    from compress.engines.tensorrt_builder import build_engine
    from compress.onnx_graph.loading import save_onnx

    folder.mkdir()
    save_onnx(model, folder / "model.onnx")
    sidecar = build_engine(folder / "model.onnx", folder / "model.plan", batch=(1, 8, 64))
    operands = sidecar["operand_types"]
    kinds = [operands[kind] for kind in ("convolutions", "gemms")]
    return sum(kind["int8"] for kind in kinds), sum(kind["total"] for kind in kinds)


@pytest.mark.slow
def test_every_conv_and_gemm_has_int8_operands(signed, tmp_path):
    int8, total = counts(signed[1], tmp_path / "int8")

    assert int8 == total == 7  # the stem, two blocks of two, a shortcut, the classifier


@pytest.mark.slow
def test_the_float_engine_of_the_same_model_has_none(signed, tmp_path):
    from compress.onnx_graph.loading import load_onnx

    int8, total = counts(load_onnx(signed[0]), tmp_path / "float")

    assert (int8, total) == (0, 7)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_one_pair_less_is_one_operator_less(operator, signed, tmp_path):
    from compress.onnx_graph.qdq import remove_qdq_pair

    node = next(node for node in signed[1].graph.node if node.op_type == operator)

    int8, total = counts(remove_qdq_pair(signed[1], node.name), tmp_path / "fewer")

    assert (int8, total) == (6, 7)
