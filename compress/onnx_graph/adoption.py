"""A classifier from elsewhere gets the names and the input that every deployable file here has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper, shape_inference

from compress.errors import ModelError
from compress.onnx_graph.export import BATCH, INPUT, OUTPUT
from compress.onnx_graph.graph import copy_model
from compress.onnx_graph.loading import inner_graphs, load_onnx

Dims = list[int | str]
_INNER = "brought/"


def load_self_contained(path: Path) -> onnx.ModelProto:
    """Load an ONNX file of which nothing lies in other files, so that its content is all that counts.

    Raises:
        ModelError: it has external data, or what `load_onnx` refuses.
    """
    model = load_onnx(path)
    alone = onnx.load_model(path, load_external_data=False).graph.initializer
    outside = [tensor.name for tensor in alone if external_data_helper.uses_external_data(tensor)]
    if outside:
        raise ModelError(
            f"{len(outside)} weights lie in other files, {outside[0]} first; expected all of them inside.",
            where=str(path),
            hint="Save the model again with its weights inside (save_as_external_data=False).",
        )
    return model


def adopt_classifier(
    model: onnx.ModelProto,
    image_shape: Sequence[int],
    classes: int,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    where: str = "",
) -> onnx.ModelProto:
    """Put a model's own preprocessing inside its graph, and name its input and output as ours.

    Args:
        model: checked; one float32 input, (batch, channels, height, width), and one float32 output, (batch, classes).
            Left alone.
        image_shape: (channels, height, width) of the images that will come.
        classes: how many there are.
        value_range: what the model wants black and white to be.
        mean: per channel, in units of that range, subtracted from it; empty for none.
        std: per channel, by which the difference is divided, > 0; empty for none.
        where: the file, for messages.

    Returns:
        A model with input `image`, in [0, 1], and output `logits`, the first axis of both dynamic and named `batch`.

    Raises:
        ModelError: another number, type or shape of inputs or outputs, or a batch of a fixed size.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inferred = shape_inference.infer_shapes(model).graph  # an output need not say its own shape
    taken = _only([value for value in inferred.input if value.name not in stored], "input", where)
    given = _only(list(inferred.output), "output", where)
    _require_images(taken, image_shape, where)
    _require_logits(given, classes, where)
    result = copy_model(model)
    graph = result.graph
    before = _preprocessing(value_range, mean, std)
    constants = [f"preprocessing.{number}" for number in range(len(before))]
    made = [f"preprocessed.{number}" for number in range(len(before))]
    taken_names = {INPUT, OUTPUT, taken.name, given.name, *constants, *made}
    _rename(graph, {name: _INNER + name for name in taken_names})
    inner_in, inner_out = _INNER + taken.name, _INNER + given.name
    nodes, name = [], INPUT
    for (operator, value), constant, output in zip(before, constants, made, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, constant))
        nodes.append(helper.make_node(operator, [name, constant], [output], name=output))
        name = output
    nodes.append(helper.make_node("Identity", [name], [inner_in], name="brought_in"))
    nodes += [*graph.node, helper.make_node("Identity", [inner_out], [OUTPUT], name="brought_out")]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in [value for value in graph.input if value.name == inner_in]:
        graph.input.remove(value)
    graph.input.insert(0, helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *image_shape]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, classes]))
    del graph.value_info[:]  # they may name axes in another way
    return result


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors, in inner graphs too: ONNX has no two tensors of one name in a graph and what is inside it."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for position, name in enumerate(tensors):
                tensors[position] = names.get(name, name)
        for inner in inner_graphs(node):
            _rename(inner, names)


def _preprocessing(
    value_range: tuple[float, float], mean: Sequence[float], std: Sequence[float]
) -> list[tuple[str, np.ndarray]]:
    """Operators with their constants, from [0, 1] to what the model wants; none that changes nothing."""
    low, high = value_range

    def channels(values: Sequence[float]) -> np.ndarray:
        return np.array(values, np.float32).reshape(1, -1, 1, 1)

    steps = [("Mul", channels([high - low])), ("Add", channels([low]))]
    steps += [("Sub", channels(mean))] if mean else []
    steps += [("Div", channels(std))] if std else []
    return [(operator, c) for operator, c in steps if (c != (1.0 if operator in ("Mul", "Div") else 0.0)).any()]


def _only(values: Sequence[onnx.ValueInfoProto], what: str, where: str) -> onnx.ValueInfoProto:
    if len(values) != 1:
        named = ", ".join(value.name for value in values) or "none"
        raise ModelError(
            f"The model has {len(values)} {what}s ({named}); a classifier has one.",
            where=where,
            hint=f"Export the model with one {what}: images in, logits out.",
        )
    return values[0]


def _dims(value: onnx.ValueInfoProto) -> Dims:
    shape = value.type.tensor_type.shape
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in shape.dim]


def _require_images(value: onnx.ValueInfoProto, image_shape: Sequence[int], where: str) -> None:
    dims, fitting = _dims(value), _is_float(value)
    fits = len(dims) == 4 and all(
        isinstance(got, str) or got == want for got, want in zip(dims[1:], image_shape, strict=True)
    )
    if not fitting or not fits:
        raise ModelError(
            f"The model's input {value.name} is {_said(value)}; expected float32 images of these data, "
            f"(batch, {', '.join(map(str, image_shape))}).",
            where=where,
            hint="Export it for float32 images with channels first, or point `data:` at images of its size.",
        )
    _require_dynamic(dims, value.name, where)


def _require_logits(value: onnx.ValueInfoProto, classes: int, where: str) -> None:
    dims = _dims(value)
    if not _is_float(value) or len(dims) != 2 or (isinstance(dims[1], int) and dims[1] != classes):
        raise ModelError(
            f"The model's output {value.name} is {_said(value)}; expected logits of these data, (batch, {classes}).",
            where=where,
            hint="Bring a classifier of the data's classes; other models cannot teach it.",
        )
    _require_dynamic(dims, value.name, where)


def _require_dynamic(dims: Dims, name: str, where: str) -> None:
    if isinstance(dims[0], int):
        raise ModelError(
            f"The batch of {name} is fixed at {dims[0]}; expected a dynamic axis.",
            where=where,
            hint="Export the model with a dynamic batch, e.g. dynamic_shapes of torch.onnx.export.",
        )


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT


def _said(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "of unknown type"
    return f"{dtype}, ({', '.join(map(str, _dims(value)))})"
