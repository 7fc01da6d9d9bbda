from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.adoption import adopt_classifier, load_self_contained

SHAPE, CLASSES = (2, 3, 3), 4
Build = Callable[..., onnx.ModelProto]


def build(
    *,
    image: tuple[int | str, ...] = ("n", *SHAPE),
    classes: int = CLASSES,
    output: tuple[int | str, ...] | None = ("n", CLASSES),
    dtype: int = TensorProto.FLOAT,
    names: tuple[str, str] = ("pixels", "scores"),
) -> onnx.ModelProto:
    """Flatten and one layer; the names inside are those that the result wants for itself."""
    weight = np.random.default_rng(0).normal(size=(int(np.prod(SHAPE)), classes)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", [names[0]], ["logits" if names[1] != "logits" else "flat"]),
        helper.make_node("MatMul", ["logits" if names[1] != "logits" else "flat", "weight"], [names[1]]),
    ]
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info(names[0], dtype, image)],
        [helper.make_tensor_value_info(names[1], dtype, output)],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in session.get_inputs()]
    return np.asarray(session.run(None, {name: images})[0])


@pytest.mark.parametrize("names", [("pixels", "scores"), ("image", "logits"), ("logits", "image")])
def test_names_and_preprocessing_are_ours(names: tuple[str, str]) -> None:
    model = build(names=names) if names != ("logits", "image") else build()
    images = np.random.default_rng(1).random((5, *SHAPE), dtype=np.float32)
    before = model.SerializeToString()
    adopted = adopt_classifier(model, SHAPE, CLASSES, value_range=(-1, 1), mean=(0.1, 0.2), std=(0.5, 2.0))
    checker.check_model(adopted, full_check=True)
    assert model.SerializeToString() == before
    assert [value.name for value in adopted.graph.input] == ["image"]
    assert [value.name for value in adopted.graph.output] == ["logits"]
    mean, std = (np.array(one, np.float32).reshape(1, 2, 1, 1) for one in ((0.1, 0.2), (0.5, 2.0)))
    wanted = answers(model, ((images * 2 - 1) - mean) / std)
    assert np.allclose(answers(adopted, images), wanted, atol=1e-5)


def test_nothing_is_added_where_nothing_is_to_be_done() -> None:
    adopted = adopt_classifier(build(), SHAPE, CLASSES)
    assert [node.op_type for node in adopted.graph.node] == ["Identity", "Flatten", "MatMul", "Identity"]


def test_the_shape_of_an_output_is_inferred() -> None:
    adopted = adopt_classifier(build(output=None), SHAPE, CLASSES)
    assert len(adopted.graph.output[0].type.tensor_type.shape.dim) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build(image=("n", 3, 3, 2)), r"input pixels is float32, \(n, 3, 3, 2\); expected float32 images"),
        (build(image=("n", 18)), r"input pixels is float32, \(n, 18\)"),
        (build(classes=3, output=("n", 3)), r"output scores is float32, \(n, 3\); expected logits of these data"),
        (build(image=(1, *SHAPE), output=(1, CLASSES)), r"The batch of pixels is fixed at 1; expected a dynamic axis"),
    ],
)
def test_no_classifier_of_these_images(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        adopt_classifier(model, SHAPE, CLASSES, where="teacher.onnx")
    assert caught.value.exit_code == 5
    assert caught.value.where == "teacher.onnx"
    assert caught.value.hint


def test_several_outputs_and_other_types() -> None:
    several = build()
    several.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 18)))
    with pytest.raises(ModelError, match=r"2 outputs \(scores, logits\); a classifier has one"):
        adopt_classifier(several, SHAPE, CLASSES)
    integers = build()
    integers.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(ModelError, match=r"input pixels is uint8, .*expected float32"):
        adopt_classifier(integers, SHAPE, CLASSES)


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    onnx.save(build(), path)
    assert load_self_contained(path).graph.node
    onnx.save(build(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ModelError, match="1 weights lie in other files, weight first"):
        load_self_contained(path)


def test_branches_that_read_weights_from_outside() -> None:
    model = build(names=("image", "scores"))
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["logits", "weight"], [f"branch{i}"])],
            f"branch{i}",
            [],
            [helper.make_tensor_value_info(f"branch{i}", TensorProto.FLOAT, ("n", CLASSES))],
        )
        for i in range(2)
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    chosen = helper.make_node("If", ["yes"], ["scores"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node.remove(model.graph.node[1])
    model.graph.node.append(chosen)
    images = np.random.default_rng(1).random((3, *SHAPE), dtype=np.float32)
    adopted = adopt_classifier(model, SHAPE, CLASSES, value_range=(0, 255))
    checker.check_model(adopted, full_check=True)
    assert np.allclose(answers(adopted, images), answers(model, images * 255), rtol=1e-4)
