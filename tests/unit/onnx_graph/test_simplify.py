from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import numpy_helper

from compress.errors import ModelError
from compress.onnx_graph import simplify as module
from compress.onnx_graph.graph import GraphIndex, shapes_of
from compress.onnx_graph.simplify import simplify

FEATURES = "float[batch, 4, 8, 8] logits"
SAME = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


def operators(model):
    return [node.op_type for node in model.graph.node]


def norm(channels=4):
    rng = np.random.default_rng(3)
    parts = {"gamma": rng.uniform(0.5, 2, channels), "beta": rng.normal(size=channels)}
    parts |= {"mean": rng.normal(size=channels), "var": rng.uniform(0.1, 2, channels)}
    return {name: array.astype(np.float32) for name, array in parts.items()}


@pytest.mark.parametrize("bias", ["", ", b"])
def test_batch_norm_is_folded_into_its_conv(build, images, infer, bias):
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(4, 1, 3, 3)).astype(np.float32), **norm()}
    arrays |= {"b": rng.normal(size=4).astype(np.float32)} if bias else {}
    body = f"y = Conv {SAME} (image, w{bias}) logits = BatchNormalization <epsilon = 0.001> (y, gamma, beta, mean, var)"
    model = build(body, outputs=FEATURES, **arrays)
    folded = simplify(model)
    assert operators(folded) == ["Conv"]
    np.testing.assert_allclose(infer(folded, images), infer(model, images), atol=2e-5)


def test_batch_norm_is_folded_into_its_gemm(build, images, infer):
    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    body = "f = Flatten (image) y = Gemm (f, w) logits = BatchNormalization (y, gamma, beta, mean, var)"
    model = build(body, w=weight, **norm(10))
    folded = simplify(model)
    assert operators(folded) == ["Flatten", "Gemm"]
    np.testing.assert_allclose(infer(folded, images), infer(model, images), atol=2e-5)


def test_batch_norm_stays_where_the_conv_has_another_reader(build):
    body = f"y = Conv {SAME} (image, w) z = BatchNormalization (y, gamma, beta, mean, var) logits = Add (y, z)"
    model = build(body, outputs=FEATURES, w=np.ones((4, 1, 3, 3), np.float32), **norm())
    assert operators(simplify(model)) == ["Conv", "BatchNormalization", "Add"]


def test_constants_fold_and_identities_go(build, images, infer):
    body = """
        two = Constant <value = float {2.0}> ()
        four = Mul (two, two)
        a = Identity (image)
        b = Dropout (a)
        y = Mul (b, four)
        logits = Identity (y)
    """
    model = build(body, outputs="float[batch, 1, 8, 8] logits")
    folded = simplify(model)
    assert operators(folded) == ["Mul"]
    assert list(folded.graph.node[0].input) == ["image", "four"]
    np.testing.assert_array_equal(infer(folded, images), images * 4)


def test_an_identity_from_input_to_output_stays(build):
    assert operators(simplify(build("logits = Identity (image)", outputs="float[batch, 1, 8, 8] logits"))) == [
        "Identity"
    ]


@pytest.mark.parametrize(("keepdims", "expected"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Squeeze"])])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_spatial_mean_becomes_a_pool(build, images, infer, keepdims, expected, axes):
    outputs = "float[batch, 1, 1, 1] logits" if keepdims else "float[batch, 1] logits"
    body = f"logits = ReduceMean <keepdims = {keepdims}> (image, axes)"
    model = build(body, outputs=outputs, axes=np.array(axes))
    pooled = simplify(model)
    assert operators(pooled) == expected
    np.testing.assert_allclose(infer(pooled, images), infer(model, images), atol=1e-6)


def test_a_mean_over_channels_stays(build):
    model = build("logits = ReduceMean (image, axes)", outputs="float[batch, 1, 8, 1] logits", axes=np.array([1, 3]))
    assert operators(simplify(model)) == ["ReduceMean"]


def test_a_transposed_int8_weight_is_folded(build, images, infer):
    codes = np.random.default_rng(0).integers(-127, 128, (10, 8), dtype=np.int8)
    steps = np.linspace(0.01, 0.1, 10, dtype=np.float32)
    body = """
        d = DequantizeLinear <axis = 0> (w, s, z)
        t = Transpose <perm = [1, 0]> (d)
        logits = MatMul (image, t)
    """
    arrays = {"w": codes, "s": steps, "z": np.zeros(10, np.int8)}
    model = build(body, outputs="float[batch, 1, 8, 10] logits", **arrays)
    folded = simplify(model)
    assert operators(folded) == ["DequantizeLinear", "MatMul"]
    (weight,) = [t for t in folded.graph.initializer if t.name == "w.transposed"]
    np.testing.assert_array_equal(numpy_helper.to_array(weight), codes.T)
    np.testing.assert_allclose(infer(folded, images, False), infer(model, images, False), rtol=1e-5)


def test_a_quantized_constant_is_stored_as_integers(build):
    body = """
        q = QuantizeLinear <axis = 0> (w, s, z)
        d = DequantizeLinear <axis = 0> (q, s, z)
        logits = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, d)
    """
    weight = np.linspace(-1, 1, 36, dtype=np.float32).reshape(4, 1, 3, 3)
    arrays = {"w": weight, "s": np.full(4, 1 / 127, np.float32), "z": np.zeros(4, np.int8)}
    folded = simplify(build(body, outputs=FEATURES, **arrays))
    assert operators(folded) == ["DequantizeLinear", "Conv"]
    assert GraphIndex(folded).required("q", "weight").dtype == np.int8


def test_the_argument_is_left_alone(residual):
    before = residual.SerializeToString(deterministic=True)
    simplify(residual)
    assert residual.SerializeToString(deterministic=True) == before


def test_a_reshape_by_the_batch_gets_a_stored_shape(build, images, infer):
    body = """
        s = Shape <end = 1> (image)
        n = Concat <axis = 0> (s, rows)
        y = Reshape <allowzero = 1> (image, n)
        z = Reshape (y, open)
        logits = Add (z, z)
    """
    arrays = {"rows": np.array([16, 4]), "open": np.array([-1, 4, 4, 4])}
    model = build(body, outputs="float[batch, 4, 4, 4] logits", **arrays)
    simple = simplify(model)
    assert operators(simple) == ["Reshape", "Reshape", "Add"]
    index = GraphIndex(simple)
    stored = [index.required(node.input[1], "shape").tolist() for node in simple.graph.node[:2]]
    assert stored == [[0, 16, 4], [0, 4, 4, 4]]
    assert not simple.graph.node[0].attribute
    np.testing.assert_array_equal(infer(simple, images), infer(model, images))
    assert shapes_of(simple)["y"] == ("batch", 16, 4)  # a -1 would lose the name


def test_a_reshape_that_moves_the_batch_keeps_a_minus_one(build, images, infer):
    body = """
        s = Shape <end = 1> (image)
        d = Mul (s, two)
        n = Concat <axis = 0> (d, rows)
        y = Reshape (image, n)
        logits = ReduceSum <keepdims = 0> (y, axes)
    """
    arrays = {"two": np.array([2]), "rows": np.array([32]), "axes": np.array([1])}
    model = build(body, outputs="float[twice] logits", **arrays)
    simple = simplify(model)
    assert operators(simple) == ["Reshape", "ReduceSum"]
    index = GraphIndex(simple)
    assert index.required(simple.graph.node[0].input[1], "shape").tolist() == [-1, 32]
    np.testing.assert_array_equal(infer(simple, images), infer(model, images))


def test_a_reshape_by_two_axes_stays_computed(build):
    body = "other = Relu (image) s = Shape (other) logits = Reshape (image, s)"
    model = build(body, outputs="float[a, b, c, d] logits")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = f"d{dim.dim_value}" if dim.HasField("dim_value") else "batch"
    assert "Shape" in operators(simplify(model))


@pytest.mark.parametrize(
    "body",
    [
        "c = ConstantOfShape (sizes)",
        "c = Expand (one, sizes)",
        "c = Tile (one, sizes)",
        "c = Range (step, most, step)",
        "c = Range (least, largest, whole)",
        "c = MatMul (column, row)",
        "c = Pad (one, pads)",
    ],
)
def test_a_huge_constant_is_refused_before_it_takes_memory(build, body):
    arrays = {
        "sizes": np.array([16384, 8192]),
        "one": np.ones((1, 1), np.float32),
        "step": np.float32(1),
        "most": np.float32(1e8),
        "least": np.int32(-(2**31)),
        "largest": np.int32(2**31 - 1),
        "whole": np.int32(1),
        "column": np.ones((16384, 1), np.float32),
        "row": np.ones((1, 8192), np.float32),
        "pads": np.array([0, 0, 16384, 8192]),
    }
    rest = "d = Cast <to = 1> (c) m = ReduceMax <keepdims = 0> (d) logits = Add (image, m)"
    model = build(f"{body} {rest}", outputs="float[batch, 1, 8, 8] logits", **arrays)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="elements are computed in the graph; the limit is 67108864") as caught:
            simplify(model)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert (caught.value.exit_code, caught.value.where) == (5, "node c")
    assert "compute them from the input" in caught.value.hint


def test_many_constants_count_together(build, monkeypatch):
    names = [f"c{number}" for number in range(5)]
    parts = " ".join(f"{name} = ConstantOfShape (sizes)" for name in names)
    model = build(f"{parts} logits = Sum (image, {', '.join(names)})", FEATURES, sizes=np.array([4, 8, 8]))
    monkeypatch.setattr(module, "FOLD_LIMIT_ELEMENTS", 5 * (256 - 3))
    assert operators(simplify(model)) == ["Sum"]
    monkeypatch.setattr(module, "FOLD_LIMIT_ELEMENTS", 5 * (256 - 3) - 1)
    with pytest.raises(ModelError, match=r"Constants of 1265 elements .* the limit is 1264"):
        simplify(model)


def test_what_is_computed_to_an_unknown_size_stays(build):
    model = build("c = Relu (w) logits = Add (image, c)", "float[batch, 1, 8, 8] logits", w=np.ones(8, np.float32))
    model.graph.node[0].domain = "somebody"
    model.opset_import.add(domain="somebody", version=1)
    assert operators(simplify(model)) == ["Relu", "Add"]


def test_indices_of_a_constant_fold(build, images, infer):
    """Their number is not known before, but it cannot be large."""
    body = "n = NonZero (mask) c = Cast <to = 1> (n) logits = Add (image, c)"
    model = build(body, "float[batch, 1, 8, 8] logits", mask=np.ones(8, np.int64))
    folded = simplify(model)
    assert operators(folded) == ["Add"]
    np.testing.assert_array_equal(infer(folded, images), infer(model, images))


@pytest.mark.parametrize("shape", [(1, 10), (1, 1), (1,), ()])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemms_row_of_biases_gets_one_axis(build, images, infer, shape, transposed):
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(10, 64) if transposed else (64, 10)).astype(np.float32)}
    arrays["c"] = rng.normal(size=shape).astype(np.float32)
    model = build(f"f = Flatten (image) logits = Gemm <transB = {transposed}> (f, w, c)", **arrays)
    simple = simplify(model)
    bias = GraphIndex(simple).required(simple.graph.node[1].input[2], "bias")
    np.testing.assert_array_equal(bias, np.broadcast_to(arrays["c"].reshape(-1), 10))
    np.testing.assert_allclose(infer(simple, images), infer(model, images), rtol=1e-6)


@pytest.mark.parametrize(("options", "shape"), [("<beta = 2.0>", (1, 10)), ("", (64, 1)), ("", (64, 10)), ("", (10,))])
def test_another_bias_of_a_gemm_stays(build, images, infer, options, shape):
    arrays = {"w": np.ones((64, 10), np.float32), "c": np.random.default_rng(0).random(shape, np.float32)}
    model = build(f"f = Flatten (image) logits = Gemm {options} (f, w, c)", **arrays)
    simple = simplify(model)
    assert simple.graph.node[1].input[2] == "c"
    np.testing.assert_array_equal(infer(simple, images), infer(model, images))
