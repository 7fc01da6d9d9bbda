from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, checker, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from compress.errors import ModelError
from compress.onnx_graph.half import is_quantized, to_half

FLOAT = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,3,8,8] image) => (float[batch,4] logits) {
  c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  r1 = Relu (c1)
  mean = GlobalAveragePool (r1)
  flat = Flatten (mean)
  head = Gemm <transB = 1> (flat, w2)
  logits = Softmax (head)
}
"""
INT8 = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,3,8,8] image) => (float[batch,4,8,8] logits) {
  q0 = QuantizeLinear (image, s0, z)
  d0 = DequantizeLinear (q0, s0, z)
  w1 = DequantizeLinear <axis = 0> (codes, scales, zeros)
  c1 = Conv <pads = [1, 1, 1, 1]> (d0, w1, b1)
  r1 = Relu (c1)
  q1 = QuantizeLinear (r1, s1, z)
  d1 = DequantizeLinear (q1, s1, z)
  logits = Mul (d1, two)
}
"""


def make(text: str, **constants: np.ndarray) -> ModelProto:
    random = np.random.default_rng(0)
    given = {
        "w1": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b1": np.zeros(4, np.float32),
        "w2": random.standard_normal((4, 4)).astype(np.float32),
        "s0": np.float32(1 / 127),
        "s1": np.float32(0.05),
        "z": np.int8(0),
        "codes": random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "scales": np.full(4, 0.01, np.float32),
        "zeros": np.zeros(4, np.int8),
        "two": np.float32(2),
        **constants,
    }
    model = parser.parse_model(text)
    made = {name for node in model.graph.node for name in node.output}
    read = dict.fromkeys(name for node in model.graph.node for name in node.input if name in given and name not in made)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(given[name]), name) for name in read)
    checker.check_model(model, full_check=True)
    return model


def types_of(model: ModelProto) -> dict[str, int]:
    checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types | {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}


def reads_half(model: ModelProto) -> dict[str, bool]:
    """Operator -> whether its first input is float16."""
    types = types_of(model)
    return {node.op_type: types[node.input[0]] == TensorProto.FLOAT16 for node in model.graph.node}


def run(model: ModelProto, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


IMAGE = np.random.default_rng(1).random((2, 3, 8, 8), np.float32)


def test_a_float_graph_computes_in_half_between_float_ends():
    model = make(FLOAT)
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    found = reads_half(half)
    assert [found[name] for name in ("Conv", "Relu", "Gemm", "Softmax")] == [True, True, True, False]
    types = types_of(half)
    assert types["image"] == types["logits"] == TensorProto.FLOAT
    assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}
    # Logits of about 20, of which float16 keeps 11 bits, go through a softmax.
    np.testing.assert_allclose(run(half, IMAGE), run(model, IMAGE), atol=0.02)


def test_the_same_graph_gives_the_same_bytes():
    assert to_half(make(FLOAT)).SerializeToString(deterministic=True) == to_half(make(FLOAT)).SerializeToString(
        deterministic=True
    )


def test_pairs_stay_and_their_scales_follow_the_tensor():
    model = make(INT8)
    half = to_half(model)
    assert is_quantized(half)
    assert not is_quantized(make(FLOAT))
    types = types_of(half)
    nodes = {node.op_type: node for node in half.graph.node}
    by_output = {node.output[0]: node for node in half.graph.node}
    # The image is quantized from its own values, the activation from float16.
    assert types[by_output["q0"].input[1]] == TensorProto.FLOAT
    assert types[by_output["q1"].input[1]] == TensorProto.FLOAT16
    assert all(types[by_output[name].input[1]] == TensorProto.FLOAT16 for name in ("d0", "w1", "d1"))
    # No cast stands between a dequantized tensor and its layer: that would cost the layer its integers.
    assert all(by_output[name].op_type == "DequantizeLinear" for name in nodes["Conv"].input[:2])
    assert [node.op_type for node in half.graph.node].count("Cast") == 1
    difference = np.abs(run(half, IMAGE) - run(model, IMAGE))
    assert difference.max() <= 2 * 0.05 * 1.01  # one code
    assert (difference > 0.01).mean() < 0.05


@pytest.mark.parametrize("tiny", [{"scales": np.full(4, 1e-6, np.float32)}, {"s0": np.float32(1e-6)}])
def test_a_scale_that_half_would_blur_keeps_its_layer_in_float(tiny):
    half = to_half(make(INT8, **tiny))
    assert not reads_half(half)["Conv"]
    types = types_of(half)
    conv = next(node for node in half.graph.node if node.op_type == "Conv")
    assert {types[name] for name in conv.input} == {TensorProto.FLOAT}


def test_a_weight_that_half_cannot_hold_keeps_its_layer_in_float():
    weight = make(FLOAT).graph.initializer[0]
    large = numpy_helper.to_array(weight) * np.float32(1e6)
    found = reads_half(to_half(make(FLOAT, w1=large)))
    assert not found["Conv"]
    assert found["Relu"]


NORMALIZED = {
    "clip": "norm = ReduceL2 <keepdims = 1> (raised, axes)  safe = Clip (norm, tiny)",
    "max": "norm = ReduceL2 <keepdims = 1> (raised, axes)  safe = Max (norm, tiny)",
    "add": "norm = ReduceL2 <keepdims = 1> (raised, axes)  safe = Add (norm, tiny)",
    "root": "norm = ReduceSumSquare <keepdims = 1> (raised, axes)  above = Add (norm, tiny)  safe = Sqrt (above)",
}
NORMALIZE = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch,3,8,8] image) => (float[batch,3,8,8] logits) {
  raised = Relu (image)
  %s
  %s
}
"""
DIVISIONS = {
    "div": "shape = Shape (raised)  wide = Expand (safe, shape)  logits = Div (raised, wide)",
    "reciprocal": "inverse = Reciprocal (safe)  logits = Mul (raised, inverse)",
    "one over": "inverse = Div (one, safe)  logits = Mul (raised, inverse)",
}


def normalize(form: str, division: str, tiny: float) -> ModelProto:
    return make(
        NORMALIZE % (NORMALIZED[form], DIVISIONS[division]),
        axes=np.array([1]),
        tiny=np.asarray(tiny, np.float32),
        one=np.asarray(1, np.float32),
    )


def with_a_zero_row() -> np.ndarray:
    image = IMAGE.copy()
    image[0] = 0
    return image


@pytest.mark.parametrize("form", NORMALIZED)
@pytest.mark.parametrize("division", DIVISIONS)
def test_a_zero_row_is_normalized_to_zero(form, division):
    model = normalize(form, division, 1e-12)
    half = to_half(model)
    image = with_a_zero_row()
    # The reference computes in float16 where the graph says so; a NaN would warn too, and warnings are errors.
    got, *_ = [np.asarray(output) for output in ReferenceEvaluator(half).run(None, {"image": image})]
    assert reads_half(half)["Relu"]
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got, run(model, image), atol=2e-3)


def test_an_epsilon_may_come_from_a_node():
    model = normalize("clip", "div", 1e-12)
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("tiny")]
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["tiny"], value_float=1e-12))
    (got,) = ReferenceEvaluator(to_half(model)).run(None, {"image": with_a_zero_row()})
    assert np.isfinite(got).all()


def test_an_epsilon_that_half_holds_costs_nothing():
    found = reads_half(to_half(normalize("clip", "div", 1e-3)))
    assert [found[name] for name in ("ReduceL2", "Clip", "Expand", "Div")] == [False, True, True, True]


def test_single_tiny_weights_keep_nothing_in_float():
    weight = numpy_helper.to_array(make(FLOAT).graph.initializer[0]).copy()
    weight[0, 0] = 1e-12
    found = reads_half(to_half(make(FLOAT, w1=weight, b1=np.full(4, 1e-9, np.float32))))
    assert found["Conv"]
    text = FLOAT.replace("r1 = Relu (c1)", "shifted = Add (c1, shift)  r1 = Relu (shifted)")
    shift = np.array([1e-9, 0.1, 0, 0.3], np.float32).reshape(4, 1, 1)
    assert reads_half(to_half(make(text, shift=shift)))["Add"]
    assert not reads_half(to_half(make(text.replace("Add", "Div"), shift=shift)))["Div"]


def test_the_inside_of_a_layer_norm_stays_float():
    half = to_half(
        make(
            """
            <ir_version: 10, opset_import: ["" : 20]>
            net (float[batch,3,8,8] image) => (float[batch,3,8,8] logits) {
              raised = Relu (image)
              square = Pow (raised, two)
              variance = ReduceMean <keepdims = 1> (square)
              safe = Add (variance, two)
              deviation = Sqrt (safe)
              logits = Div (raised, deviation)
            }
            """
        )
    )
    found = reads_half(half)
    assert [found[name] for name in ("Relu", "Pow", "ReduceMean", "Add", "Sqrt", "Div")] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


def test_what_only_takes_float_is_left_alone():
    half = to_half(
        make(
            """
            <ir_version: 10, opset_import: ["" : 20]>
            net (float[batch,3,8,8] image) => (float[batch,3,16,16] logits, int64[4] sizes) {
              sizes = Shape (image)
              raised = Relu (image)
              logits = Resize (raised, , scales)
            }
            """,
            scales=np.array([1, 1, 2, 2], np.float32),
        )
    )
    types = types_of(half)
    nodes = {node.op_type: node for node in half.graph.node}
    assert types[nodes["Resize"].input[2]] == TensorProto.FLOAT
    assert types[nodes["Resize"].input[0]] == TensorProto.FLOAT16
    assert nodes["Shape"].input[0] == "image"


def test_pairs_of_an_old_opset_are_refused():
    model = make(INT8)
    model.opset_import[0].version = 17
    with pytest.raises(ModelError, match="needs opset 19 or later, got 17") as caught:
        to_half(model)
    assert caught.value.exit_code == 5


def test_control_flow_is_refused():
    model = make(FLOAT)
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["logits"], [], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match="The graph uses If"):
        to_half(model)
