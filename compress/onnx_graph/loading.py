"""Reading and writing ONNX files, trusting nothing that a file says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import checker, external_data_helper, numpy_helper

from compress.errors import ModelError
from compress.onnx_graph.canonical import canonical_bytes

SIZE_LIMIT_BYTES = 2**31 - 1  # of a protobuf message; weights beyond it must be external data
EXPORT_AGAIN = "Export the model again; see `compress show` for the artifact that the file came from."


def load_onnx(path: Path | str) -> onnx.ModelProto:
    """Read, check and complete an ONNX file; external data is loaded from the file's own folder only.

    Args:
        path: the .onnx file.

    Returns:
        The model with every weight inside and finite.

    Raises:
        ModelError: no such file, empty, too large, not ONNX, truncated, refused by onnx.checker, external data
            that is missing, symlinked or outside the folder, or NaN or infinite weights.
    """
    path = Path(path)
    where = str(path)
    if not path.is_file():
        raise ModelError("There is no ONNX file at this path.", where=where, hint=EXPORT_AGAIN)
    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= SIZE_LIMIT_BYTES:
        raise ModelError(
            f"The ONNX file has {size_bytes} bytes; expected 1 to {SIZE_LIMIT_BYTES}.", where=where, hint=EXPORT_AGAIN
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(
            f"The file is no ONNX model, or it is cut off: {error}", where=where, hint=EXPORT_AGAIN
        ) from error
    _load_external_data(model, path.parent, where)
    check_model(model, where)
    require_finite(model, where)
    return model


def check_model(model: onnx.ModelProto, where: str = "") -> None:
    """Run onnx.checker with shape inference; some garbage parses as a model without nodes, so that is refused too.

    Raises:
        ModelError: with the checker's own words.
    """
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ModelError(
            f"The file holds a graph of {len(model.graph.node)} nodes and {len(model.graph.output)} outputs; "
            "expected at least one of each.",
            where=where,
            hint=EXPORT_AGAIN,
        )
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(f"onnx.checker refuses the graph: {error}", where=where, hint=EXPORT_AGAIN) from error


def require_finite(model: onnx.ModelProto, where: str = "") -> None:
    """Raise `ModelError` naming every float initializer that holds NaN or infinity."""
    bad = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad.append(f"{tensor.name} ({np.count_nonzero(~np.isfinite(array))} of {array.size})")
    if bad:
        raise ModelError(
            f"Weights are NaN or infinite: {', '.join(bad)}.",
            where=where,
            hint="Train again with a lower learning rate, or bring other weights.",
        )


def save_onnx(model: onnx.ModelProto, path: Path | str) -> None:
    """Check the model, then write its canonical bytes: no metadata, the same bytes for the same graph.

    Raises:
        ModelError: onnx.checker refuses it, or it exceeds the 2 GiB that one file holds.
    """
    check_model(model, str(path))
    try:
        content = canonical_bytes(model)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"The model does not fit into one ONNX file of 2 GiB: {error}", where=str(path)) from error
    Path(path).write_bytes(content)


def _load_external_data(model: onnx.ModelProto, folder: Path, where: str) -> None:
    root = folder.resolve()
    tensors = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    inner = [a.t for n in model.graph.node for a in n.attribute if external_data_helper.uses_external_data(a.t)]
    for tensor in [*tensors, *inner]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = folder / location
        outside = os.path.isabs(location) or not path.resolve().is_relative_to(root)
        linked = any(part.is_symlink() for part in [path, *path.parents][: len(Path(location).parts)])
        if not location or outside or linked or not path.is_file():
            reason = "is outside the folder" if outside else "is a symbolic link" if linked else "is missing"
            raise ModelError(
                f"External data {location!r} of tensor {tensor.name} {reason}; expected a plain file beside the model.",
                where=where,
                hint="Save the model again with its weights inside (save_as_external_data=False).",
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, checker.ValidationError) as error:
            raise ModelError(
                f"External data {location!r} of tensor {tensor.name} cannot be read: {error}", where=where
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")
