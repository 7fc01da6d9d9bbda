"""Reading and writing ONNX files, trusting nothing that a file says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import checker, external_data_helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonical_bytes

SIZE_LIMIT_BYTES = 2**31 - 1  # of a protobuf message; weights beyond it must be external data
EXPORT_AGAIN = "Export the model again; see `compress show` for the artifact that the file came from."
_INSIDE = "Save the model again with its weights inside (save_as_external_data=False)."
_MOST_DIGITS = 19  # of a place in a file
# Infinity is an ordinary constant in front of these; elsewhere it is a weight that diverged.
_TAKE_INFINITY = frozenset({"Where", "Clip", "Min", "Max", "Equal", "Less", "Greater"})


def load_onnx(path: Path | str, *, limit_bytes: int = SIZE_LIMIT_BYTES) -> onnx.ModelProto:
    """Read, check and complete an ONNX file; external data is loaded from the file's own folder only.

    Args:
        path: the .onnx file.
        limit_bytes: largest size of the file and its external data together, at most 2 GiB.

    Returns:
        The model with every weight inside and finite.

    Raises:
        ModelError: no such file, empty, too large, not ONNX, truncated, refused by onnx.checker, external data
            that is missing, symlinked or outside the folder, or NaN or infinite weights.
    """
    model = read_onnx(path, limit_bytes=limit_bytes)
    check_model(model, str(path))
    require_finite(model, str(path))
    return model


def read_onnx(path: Path | str, *, limit_bytes: int = SIZE_LIMIT_BYTES) -> onnx.ModelProto:
    """The same without judging the graph: for whoever wants to say more about it than onnx.checker does.

    Every tensor of what is returned holds as many bytes as its shape wants, and every name is text.

    Raises:
        ModelError: as `load_onnx`, but for the checks of the graph and of the weights' values.
    """
    path = Path(path)
    where = str(path)
    limit_bytes = min(limit_bytes, SIZE_LIMIT_BYTES)
    if not path.is_file():
        raise ModelError("There is no ONNX file at this path.", where=where, hint=EXPORT_AGAIN)
    try:
        size_bytes = path.stat().st_size
        if not 0 < size_bytes <= limit_bytes:
            raise ModelError(
                f"The ONNX file has {size_bytes} bytes; expected 1 to {limit_bytes}.", where=where, hint=EXPORT_AGAIN
            )
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The ONNX file cannot be read: {error.strerror}", where=where) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        _require_text(model)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"The file is no ONNX model, or it is cut off: {error}", where=where, hint=EXPORT_AGAIN
        ) from error
    _require_nodes(model, where)
    _load_external_data(model, path.parent, where, limit_bytes - size_bytes)
    _require_whole_tensors(model, where)
    return model


def check_model(model: onnx.ModelProto, where: str = "") -> None:
    """Run onnx.checker with shape inference; some garbage parses as a model without nodes, so that is refused too.

    Raises:
        ModelError: with the checker's own words.
    """
    _require_nodes(model, where)
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(f"onnx.checker refuses the graph: {error}", where=where, hint=EXPORT_AGAIN) from error


def _require_nodes(model: onnx.ModelProto, where: str) -> None:
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ModelError(
            f"The file holds a graph of {len(model.graph.node)} nodes and {len(model.graph.output)} outputs; "
            "expected at least one of each.",
            where=where,
            hint=EXPORT_AGAIN,
        )


def require_finite(model: onnx.ModelProto, where: str = "") -> None:
    """Raise `ModelError` naming every float weight that holds NaN or infinity."""
    bad = [f"{name} ({count} of {size})" for name, count, size in non_finite(model)]
    if bad:
        raise ModelError(
            f"Weights are NaN or infinite: {', '.join(bad)}.",
            where=where,
            hint="Train again with a lower learning rate, or bring other weights.",
        )


def non_finite(model: onnx.ModelProto) -> Iterator[tuple[str, int, int]]:
    """Name, bad values and size of every float initializer with NaN or infinity; infinite masks are no weights."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        if np.isnan(array).any() or not _is_mask(tensor.name, model):
            yield tensor.name, int(np.count_nonzero(~np.isfinite(array))), array.size


def _is_mask(name: str, model: onnx.ModelProto) -> bool:
    readers = [node for node in model.graph.node if name in node.input]
    softmaxed = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.input}
    return bool(readers) and all(
        node.op_type in _TAKE_INFINITY or (node.op_type == "Add" and node.output[0] in softmaxed) for node in readers
    )


def save_onnx(model: onnx.ModelProto, path: Path | str) -> None:
    """Check the model, then write its canonical bytes: no metadata, the same bytes for the same graph.

    Raises:
        ModelError: onnx.checker refuses it, or it exceeds the 2 GiB that one file holds.
    """
    Path(path).write_bytes(checked_bytes(model, str(path)))


def checked_bytes(model: onnx.ModelProto, where: str = "") -> bytes:
    """What `save_onnx` writes.

    Raises:
        ModelError: see there.
    """
    check_model(model, where)
    try:
        return canonical_bytes(model)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"The model does not fit into one ONNX file of 2 GiB: {error}", where=where) from error


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: bodies of loops, branches of conditions."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def nodes_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph or function, those of inner graphs behind the node that holds them."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes_of(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor, wherever it is."""
    nodes = [node for part in (model.graph, *model.functions) for node in nodes_of(part)]
    for graph in (model.graph, *(inner for node in nodes for inner in inner_graphs(node))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _require_text(message: Message) -> None:
    """Raise `ValueError` where a text is none: protobuf hands out bytes in its place, and never complains."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, (str, bytes)) else value:
                if not isinstance(text, str):
                    raise ValueError(f"{field.full_name} is no text: {text[:20]!r}")
        elif isinstance(value, Message):
            _require_text(value)
        elif field.type == field.TYPE_MESSAGE:
            for inner in value:
                _require_text(inner)


def _require_whole_tensors(model: onnx.ModelProto, where: str) -> None:
    """Raise `ModelError` for a tensor whose bytes are not what its type and shape say."""
    for tensor in _tensors(model):
        try:
            if any(size < 0 for size in tensor.dims):  # numpy would work it out from the bytes
                raise ValueError("an axis is negative")
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
            raise ModelError(
                f"Tensor {tensor.name or '(nameless)'} does not hold what its shape {list(tensor.dims)} says: {error}",
                where=where,
                hint=EXPORT_AGAIN,
            ) from error


def _load_external_data(model: onnx.ModelProto, folder: Path, where: str, limit_bytes: int) -> None:
    outside = [tensor for tensor in _tensors(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in outside:
        limit_bytes -= _external_bytes(tensor, folder, where)
    if limit_bytes < 0:
        raise ModelError(
            f"The external data exceeds the size limit by {-limit_bytes} bytes.",
            where=where,
            hint="Raise the limit up to 2 GiB, or bring a smaller model.",
        )
    for tensor in outside:
        location = _entries(tensor).get("location", "")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, RuntimeError, checker.ValidationError) as error:
            raise ModelError(
                f"External data {location!r} of tensor {tensor.name} cannot be read: {error}", where=where
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_bytes(tensor: onnx.TensorProto, folder: Path, where: str) -> int:
    """How many bytes a tensor would read from its file, which is a plain one below `folder`."""
    entries = _entries(tensor)
    location = entries.get("location", "")
    path = folder / location
    try:
        outside = os.path.isabs(location) or not path.resolve().is_relative_to(folder.resolve())
        linked = any(part.is_symlink() for part in [path, *path.parents][: len(Path(location).parts)])
        missing = not location or not path.is_file()
        size_bytes = 0 if outside or linked or missing else path.stat().st_size
    except (OSError, ValueError) as error:  # a name with a null byte, a loop of links
        raise ModelError(f"External data {location!r} of tensor {tensor.name}: {error}", where=where) from error
    if outside or linked or missing:
        reason = "is outside the folder" if outside else "is a symbolic link" if linked else "is missing"
        raise ModelError(
            f"External data {location!r} of tensor {tensor.name} {reason}; expected a plain file beside the model.",
            where=where,
            hint=_INSIDE,
        )
    for key in ("offset", "length"):
        number = entries.get(key, "0")
        if not (number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS):
            raise ModelError(
                f"External data {location!r} of tensor {tensor.name} has {key} {number[:_MOST_DIGITS]!r}; expected "
                "a number of bytes.",
                where=where,
                hint=_INSIDE,
            )
    return min(int(entries["length"]), size_bytes) if "length" in entries else size_bytes
