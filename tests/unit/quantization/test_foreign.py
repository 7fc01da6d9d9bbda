from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.lint import lint
from compress.quantization.foreign import layers_of, prepare_foreign
from compress.quantization.quantize import quantize_onnx
from compress.quantization.settings import QuantizeSettings

CONV = "Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
BODY = f"""
    c = {CONV} (photo, w0, b0)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    scores = Gemm <transB = 1> (f, w1, b1)
"""


def make(
    body=BODY, *, opset=20, batch: int | str = "n", names=True, ir=10, inputs="", outputs="float[n, 5] scores", **arrays
):
    head = f'<ir_version: {ir}, opset_import: ["": {opset}]> net (float[{batch}, 3, 8, 8] photo{inputs}) => ({outputs})'
    model = onnx.parser.parse_model(f"{head} {{ {body} }}")
    random = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (5, 8), "b1": (5,)}
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    used = {name for node in model.graph.node for name in node.input}
    for name, array in {**weights, **arrays}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in model.graph.node:
        node.name = f"/{node.output[0]}/{node.op_type}" if names else ""
    return model


def photos(count=64):
    return np.random.default_rng(1).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)


def infer(model, data, **more):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"photo": data, **more})[0])


def assert_refused(model, words):
    with pytest.raises(ModelError, match=words) as caught:
        prepare_foreign(model)
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_a_good_model_keeps_its_names():
    prepared, notes = prepare_foreign(make())
    assert notes == []
    assert [node.name for node in prepared.graph.node] == [
        "/c/Conv", "/r/Relu", "/p/GlobalAveragePool", "/f/Flatten", "/scores/Gemm",
    ]  # fmt: skip


def test_metadata_is_dropped():
    model = make()
    model.graph.node[0].metadata_props.add(key="trace", value="/home/me/net.py")
    model.graph.doc_string = "/home/me"
    prepared, notes = prepare_foreign(model)
    assert notes == []
    assert b"/home/me" not in prepared.SerializeToString()
    assert model.graph.doc_string == "/home/me"


@pytest.mark.parametrize("opset", [9, 11, 13, 16])
def test_old_opsets_are_converted(opset):
    model = make(opset=opset, ir=4)
    prepared, notes = prepare_foreign(model)
    assert notes == [f"opset {opset} was converted to 20"]
    assert prepared.opset_import[0].version == 20
    np.testing.assert_allclose(infer(prepared, photos()), infer(model, photos()), atol=1e-5)


def test_weights_among_the_inputs_of_an_old_file():
    model = make(opset=9, ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    onnx.checker.check_model(model)
    prepared, _ = prepare_foreign(model)
    assert [value.name for value in prepared.graph.input] == ["photo"]
    result = quantize_onnx(prepared, [photos()], value_range=None)
    assert {layer.why for layer in layers_of(result.signed)} == {""}


@pytest.mark.parametrize("names", ["none", "shared"])
def test_nodes_get_names_where_they_have_none_of_their_own(names):
    model = make(names=False)
    if names == "shared":
        for node in model.graph.node:
            node.name = "block"
    prepared, notes = prepare_foreign(model)
    assert [node.name for node in prepared.graph.node][:2] == ["conv_0", "relu_0"]
    assert "all nodes got canonical ones" in notes[0]
    assert ("without a name" if names == "none" else "share a name") in notes[0]
    assert [value.name for value in (*prepared.graph.input, *prepared.graph.output)] == ["photo", "scores"]


def test_functions_are_inlined():
    text = """
    <ir_version: 10, opset_import: ["": 20, "own": 1]>
    net (float[n, 3, 8, 8] photo) => (float[n, 8, 8, 8] scores) { scores = own.block (photo, w0, b0) }
    <domain: "own", opset_import: ["": 20]>
    block (x, w, b) => (y) { y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b) }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(make().graph.initializer[:2])
    prepared, notes = prepare_foreign(model)
    assert notes[0] == "1 local functions were inlined"
    assert [node.op_type for node in prepared.graph.node] == ["Conv"]


def test_a_fixed_batch_stays_fixed():
    body = BODY.replace("Flatten (p)", "Reshape (p, shape)")
    model = make(body, batch=4, outputs="float[4, 5] scores", shape=np.array([4, 8]))
    prepared, _ = prepare_foreign(model)
    result = quantize_onnx(prepared, [photos(32)], value_range=None, static_batch=True)
    got = infer(result.unsigned, photos(4))
    want = infer(model, photos(4))
    assert got.shape == (4, 5)
    assert 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()) > 20
    assert {finding.rule for finding in lint(result.signed)} == {"static-batch"}
    with pytest.raises(ModelError, match="static-batch"):
        quantize_onnx(prepared, [photos(32)], value_range=None)


def test_several_inputs():
    body = BODY.replace("Gemm <transB = 1> (f, w1, b1)", "Add (g, extra)").replace(
        "f = Flatten (p)", "f = Flatten (p) g = Gemm <transB = 1> (f, w1, b1)"
    )
    model = make(body, inputs=", float[n, 5] extra")
    prepared, _ = prepare_foreign(model)
    extra = np.random.default_rng(2).random((64, 5), np.float32)
    result = quantize_onnx(prepared, [{"photo": photos(), "extra": extra}], value_range=None)
    got, want = (infer(graph, photos(), extra=extra) for graph in (result.unsigned, model))
    assert 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()) > 20


def test_half_precision_is_refused():
    model = make(w0=np.zeros((8, 3, 3, 3), np.float16))
    assert_refused(model, r"1 inputs or weights are not float32: w0 \(float16\)")
    model = make()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert_refused(model, r"not float32: photo \(float64\)")


def test_custom_operators_are_refused():
    model = make()
    model.graph.node[1].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    assert_refused(model, "cannot be quantized: custom-operator at /r/Relu: acme::Relu is a custom operator")


def test_integer_operators_are_refused():
    body = "y, ys, yz = DynamicQuantizeLinear (photo) z = Cast <to = 1> (y) "
    body += "scores = ReduceMean <keepdims = 0> (z, axes)"
    assert_refused(make(body, outputs="float[n, 3] scores", axes=np.array([2, 3])), "integer-operator at /y/Dynamic")


def test_control_flow_is_refused():
    model = make()
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["c"], ["t"])], "t", [], [value])
    node = helper.make_node("If", ["yes"], ["r"], "choice", then_branch=branch, else_branch=branch)
    model.graph.node[1].CopyFrom(node)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    assert_refused(model, "control-flow at choice: If has 2 inner graph")


def test_opsets_that_cannot_be_converted():
    body = "b = BatchNormalization <spatial = 0> (photo, s, s, s, s) scores = Flatten (b)"
    model = make(body, opset=7, outputs="float[n, k] scores", s=np.ones(3, np.float32))
    assert_refused(model, "Opset 7 cannot be converted to 20: .*spatial must have value 1")


def test_why_layers_are_float():
    body = f"""
        t = ConvTranspose <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (photo, wt)
        c = {CONV} (t, w0, b0)
        k = {CONV} (c, w2)
        p = GlobalAveragePool (k)
        f = Flatten (p)
        g = Gemm <transB = 1, alpha = 0.5> (f, w1)
        a = Reshape (g, column)
        m = MatMul (left, a)
        scores = Flatten (m)
    """
    arrays = {
        "wt": np.ones((3, 3, 3, 3), np.float32) / 9,
        "w2": np.random.default_rng(3).normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32),
        "column": np.array([-1, 5, 1]),
        "left": np.ones((5, 5), np.float32),
    }
    prepared, _ = prepare_foreign(make(body, **arrays))
    settings = QuantizeSettings(float_layers=("/c/*",))
    result = quantize_onnx(prepared, [photos()], settings, value_range=None)
    assert [(layer.node, layer.operator, layer.why) for layer in layers_of(result.signed, settings.float_layers)] == [
        ("/t/ConvTranspose", "ConvTranspose", "TensorRT computes int8 ConvTranspose in float"),
        ("/c/Conv", "Conv", "asked for"),
        ("/k/Conv", "Conv", ""),
        ("/g/Gemm", "Gemm", "integer kernels take no factors: alpha 0.5"),
        ("/m/MatMul", "MatMul", "its weight is the left operand"),
    ]
