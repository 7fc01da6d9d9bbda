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

TRANSFORMER = """
    t0 = Reshape (image, tokens)
    m0 = MatMul (t0, w0)
    e0 = Add (m0, b0)
    x0 = Add (e0, positions)
    n0 = LayerNormalization (x0, ones, zeros)
    m1 = MatMul (n0, w1)
    a1 = Add (m1, b1)
    h1 = Reshape (a1, heads)
    q0 = Transpose <perm = [0, 2, 1, 3]> (h1)
    m2 = MatMul (n0, w2)
    a2 = Add (m2, b2)
    h2 = Reshape (a2, heads)
    k0 = Transpose <perm = [0, 2, 3, 1]> (h2)
    m3 = MatMul (n0, w3)
    a3 = Add (m3, b3)
    h3 = Reshape (a3, heads)
    v0 = Transpose <perm = [0, 2, 1, 3]> (h3)
    s0 = MatMul (q0, k0)
    s1 = Mul (s0, half)
    p0 = Softmax (s1)
    o0 = MatMul (p0, v0)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o2 = Reshape (o1, tokens)
    m4 = MatMul (o2, w4)
    a4 = Add (m4, b4)
    x1 = Add (x0, a4)
    n1 = LayerNormalization (x1, ones, zeros)
    m5 = MatMul (n1, w5)
    a5 = Add (m5, b5)
    r5 = Relu (a5)
    m6 = MatMul (r5, w6)
    a6 = Add (m6, b6)
    x2 = Add (x1, a6)
    n2 = LayerNormalization (x2, ones, zeros)
    g0 = ReduceMean <keepdims = 0> (n2, one)
    logits = Gemm <transB = 1> (g0, w7, b7)
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
def transformer() -> onnx.ModelProto:
    """One encoder block on rows of the image as tokens: attention of two heads, a ReLU MLP, pre-norm."""
    weights = random_weights(*[(8, 8)] * 7, (10, 8))
    rng = np.random.default_rng(2)
    extra = {
        "tokens": np.array([0, 8, 8]),
        "heads": np.array([0, 8, 2, 4]),
        "one": np.array([1]),
        "positions": rng.normal(0, 0.3, (1, 8, 8)).astype(np.float32),
        "ones": np.ones(8, np.float32),
        "zeros": np.zeros(8, np.float32),
        "half": np.float32(0.5),
    }
    return build_graph(TRANSFORMER, **extra, **weights)


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


@pytest.fixture(name="random_weights")
def random_weights_fixture() -> Callable[..., dict[str, Any]]:
    """`random_weights((16, 1, 3, 3), (10, 16))`: weights w0, w1... of these shapes, and biases b0, b1..."""
    return random_weights
