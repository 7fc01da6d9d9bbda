"""A small network of four layers, one of which int8 serves badly; what several folders try their parts on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

CHAIN = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 1, 8, 8] image) => (float[batch, 10] logits) {
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0, b0)
    r0 = Relu (c0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16> (r0, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [1, 1]> (r1, w2, b2)
    r2 = Relu (c2)
    p0 = GlobalAveragePool (r2)
    f0 = Reshape (p0, shape)
    logits = Gemm <transB = 1> (f0, w3, b3)
}
"""
SHAPES = [(16, 1, 3, 3), (16, 1, 3, 3), (32, 16, 1, 1), (10, 32)]


def chain_graph(stretch: float = 1.0, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """The network; every other channel in front of the depthwise c1 is `stretch` times as large, and c1 undoes that.

    Relu keeps positive factors, so that the network computes the same for every `stretch`.
    """
    arrays: dict[str, np.ndarray] = {"shape": np.array([-1, 32])}
    rng = np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        arrays[f"w{number}"] = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        arrays[f"b{number}"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    arrays |= weights or {}
    factors = np.where(np.arange(len(arrays["b0"])) % 2, stretch, 1).astype(np.float32)
    arrays["w0"] = arrays["w0"] * factors[:, None, None, None]
    arrays["b0"] = arrays["b0"] * factors
    arrays["w1"] = arrays["w1"] / factors[:, None, None, None]
    model = onnx.parser.parse_model(CHAIN.replace("group = 16", f"group = {len(arrays['b0'])}"))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def blocky_images(samples: int, seed: int) -> np.ndarray:
    """Images of four random grey squares each, which differ more than noise does once they are averaged."""
    squares = np.random.default_rng(seed).random((samples, 1, 2, 2), np.float32)
    return np.kron(squares, np.ones((4, 4), np.float32))


@pytest.fixture
def images() -> Callable[[int, int], np.ndarray]:
    """`images(samples, seed)`, see `blocky_images`."""
    return blocky_images


@pytest.fixture
def chain() -> Callable[..., onnx.ModelProto]:
    """`chain(stretch)`, see `chain_graph`; its answers vary: no class has larger logits than another on average."""
    session = onnxruntime.InferenceSession(chain_graph().SerializeToString(), providers=["CPUExecutionProvider"])
    mean = np.asarray(session.run(None, {"image": blocky_images(256, 9)})[0]).mean(axis=0)
    bias = next(numpy_helper.to_array(t) for t in chain_graph().graph.initializer if t.name == "b3") - mean

    def make(stretch: float = 1.0, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
        return chain_graph(stretch, weights or {"b3": bias})

    return make
