"""A residual net of three convolutions and a matrix product, with or without signed Q/DQ, and engines of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compress.engines.tensorrt_builder import build_engine

ACTIVATIONS = ("image", "c1_relu", "c2_relu", "c3", "sum_relu", "flat")
WIDTH = 8
ZERO = np.int8(0)


class Graph:
    """Collects nodes and initializers; `quantized` names the activations that get a Q/DQ pair."""

    def __init__(self, quantized: tuple[str, ...], weights_int8: bool, zero_point: Any) -> None:
        self.quantized = quantized
        self.weights_int8 = weights_int8
        self.zero_point = zero_point
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def activation(self, name: str) -> str:
        if name not in self.quantized:
            return name
        scale = self.constant(f"{name}_scale", np.float32(0.03))
        zero = self.constant(f"{name}_zero", self.zero_point)
        codes = self.node("QuantizeLinear", [name, scale, zero], f"{name}_codes")
        return self.node("DequantizeLinear", [codes, scale, zero], f"{name}_dequantized")

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        values = (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        if not self.weights_int8:
            return self.constant(name, values)
        scales = np.abs(values).reshape(shape[0], -1).max(1) / 127
        codes = np.round(values / scales.reshape(-1, *[1] * (len(shape) - 1))).astype(np.int8)
        inputs = [
            self.constant(f"{name}_codes", codes),
            self.constant(f"{name}_scales", scales.astype(np.float32)),
            self.constant(f"{name}_zeros", np.zeros(shape[0], np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, name, axis=0)

    def conv(self, name: str, source: str, channels: int) -> str:
        weight = self.weight(f"{name}_weight", (WIDTH, channels, 3, 3))
        bias = self.constant(f"{name}_bias", np.zeros(WIDTH, np.float32))
        return self.node("Conv", [source, weight, bias], name, pads=[1, 1, 1, 1])


def make_net(
    *,
    quantized: tuple[str, ...] = (),
    weights_int8: bool | None = None,
    zero_point: Any = ZERO,
    batch: int | str = "batch",
) -> ModelProto:
    """The net; weights are int8 where any activation is, unless told otherwise."""
    graph = Graph(quantized, bool(quantized) if weights_int8 is None else weights_int8, zero_point)
    first = graph.activation(graph.node("Relu", [graph.conv("c1", graph.activation("image"), 3)], "c1_relu"))
    second = graph.activation(graph.node("Relu", [graph.conv("c2", first, WIDTH)], "c2_relu"))
    third = graph.activation(graph.conv("c3", second, WIDTH))
    graph.node("Relu", [graph.node("Add", [third, first], "sum")], "sum_relu")
    graph.node("GlobalAveragePool", [graph.activation("sum_relu")], "pooled")
    flat = graph.activation(graph.node("Flatten", ["pooled"], "flat"))
    head = [flat, graph.weight("head_weight", (10, WIDTH)), graph.constant("head_bias", np.zeros(10, np.float32))]
    graph.nodes.append(helper.make_node("Gemm", head, ["logits"], name="head", transB=1))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # the folder is on no path, and one of them imports another
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Installs a stand-in for TensorRT of some version; returns it."""

    def install(version: str, *, name: str = "tensorrt", **options: Any) -> Any:
        beside("fake_runtime")
        trt = beside("fake_tensorrt").make_tensorrt(version, **options)
        monkeypatch.setitem(sys.modules, name, trt)
        return trt

    return install


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """Installs a stand-in for PyCUDA and the driver's library; returns both."""

    def install(*, fails: str = "", **options: Any) -> tuple[Any, Any]:
        fakes = beside("fake_pycuda")
        package, cuda = fakes.make_pycuda(**options)
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)
        driver = fakes.FakeDriver(cuda, fails)
        monkeypatch.setattr("compress.engines.cuda_graph.load_driver", lambda: driver)
        return cuda, driver

    return install


@pytest.fixture(scope="session")
def int8_of() -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """Reads from a sidecar: convolutions with int8 operands, all of them, then the same of Gemms."""

    def read(document: dict[str, Any]) -> tuple[int, ...]:
        types = document["operand_types"]
        return tuple(types[kind][count] for kind in ("convolutions", "gemms") for count in ("int8", "total"))

    return read


@pytest.fixture(scope="session")
def net() -> Callable[..., ModelProto]:
    return make_net


@pytest.fixture(scope="session")
def all_activations() -> tuple[str, ...]:
    return ACTIVATIONS


@pytest.fixture(scope="session")
def int8_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the plan; the sidecar and `model.onnx` are beside it."""
    folder = tmp_path_factory.mktemp("int8_engine")
    onnx.save(make_net(quantized=ACTIVATIONS), folder / "model.onnx")
    build_engine(folder / "model.onnx", folder / "model.plan")
    return folder / "model.plan"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[ModelProto | bytes], Path]:
    """Writes a model, or any bytes, to `model.onnx`."""

    def write(model: ModelProto | bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


@pytest.fixture
def build(onnx_file: Callable[[ModelProto | bytes], Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Builds an engine of a model, `model.plan`; returns the sidecar."""

    def run(model: ModelProto | bytes, **options: Any) -> dict[str, Any]:
        return build_engine(onnx_file(model), tmp_path / "model.plan", **options)

    return run
