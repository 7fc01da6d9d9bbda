"""Small graphs with real weights, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

Build = Callable[..., onnx.ModelProto]

RESIDUAL = """
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = Relu (c0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r1, w2, b2)
    a0 = Add (c2, r0)
    r2 = Relu (a0)
    p0 = GlobalAveragePool (r2)
    f0 = Reshape (p0, shape)
    logits = Gemm <transB = 1> (f0, w3, b3)
"""
DEPTHWISE = """
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    k0 = Clip (c0, low, high)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16> (k0, w1, b1)
    k1 = Clip (c1, low, high)
    c2 = Conv <kernel_shape = [1, 1]> (k1, w2, b2)
    a0 = Add (k0, c2)
    p0 = GlobalAveragePool (a0)
    f0 = Reshape (p0, shape)
    logits = Gemm <transB = 1> (f0, w3, b3)
"""
MLP = """
    f0 = Reshape (image, shape)
    g0 = Gemm <transB = 1> (f0, w0, b0)
    r0 = Relu (g0)
    logits = Gemm <transB = 1> (r0, w1, b1)
"""


def build_graph(body: str, outputs: str = "float[batch, 10] logits", opset: int = 20, **arrays: Any) -> onnx.ModelProto:
    """A model from ONNX text: input `image`, nodes named after their first output, `arrays` as initializers."""
    header = f'<ir_version: 10, opset_import: ["": {opset}]> net (float[batch, 1, 8, 8] image) => ({outputs})'
    model = onnx.parser.parse_model(f"{header} {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def random_weights(*shapes: tuple[int, ...]) -> dict[str, Any]:
    """Weights w0, w1... of these shapes, and biases b0, b1..."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for number, shape in enumerate(shapes):
        spread = 1.5 / np.sqrt(np.prod(shape[1:]))
        arrays[f"w{number}"] = rng.normal(0, spread, shape).astype(np.float32)
        arrays[f"b{number}"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    return arrays


@pytest.fixture
def build() -> Build:
    """`build(text, **initializers)`."""
    return build_graph


@pytest.fixture
def residual() -> onnx.ModelProto:
    """Three convs, a residual add, an average pool, a Gemm; Relu in between."""
    weights = random_weights((16, 1, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (10, 16))
    return build_graph(RESIDUAL, shape=np.array([-1, 16]), **weights)


@pytest.fixture
def depthwise() -> onnx.ModelProto:
    """The same with a depthwise conv and Clip(0, 6)."""
    weights = random_weights((16, 1, 3, 3), (16, 1, 3, 3), (16, 16, 1, 1), (10, 16))
    bounds = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    return build_graph(DEPTHWISE, shape=np.array([-1, 16]), **bounds, **weights)


@pytest.fixture
def mlp() -> onnx.ModelProto:
    """Two Gemms and a Relu."""
    return build_graph(MLP, shape=np.array([-1, 64]), **random_weights((32, 64), (10, 32)))


@pytest.fixture
def images() -> np.ndarray:
    """Images in [0, 1], (64, 1, 8, 8), float32."""
    return np.random.default_rng(1).random((64, 1, 8, 8), np.float32)


@pytest.fixture
def infer() -> Callable[..., np.ndarray]:
    """`infer(model, images, optimize=True)`: ONNX Runtime's logits on one thread."""

    def run(model: onnx.ModelProto, images: np.ndarray, optimize: bool = True) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"image": images})[0])

    return run


@pytest.fixture
def kernels(tmp_path: Path) -> Callable[[onnx.ModelProto], Counter[str]]:
    """`kernels(model)`: operators of the graph that ONNX Runtime's CPU provider executes after its optimizations."""

    def run(model: onnx.ModelProto) -> Counter[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the file depends on this machine
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

    return run
