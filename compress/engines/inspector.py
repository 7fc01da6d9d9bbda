"""Which types an engine's layers compute in, as the backend's own inspector tells it; needs the GPU to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.engines.rtx_program import Kind, Operation

if TYPE_CHECKING:
    import tensorrt

# Words of the format strings, of several releases: `Int8`, `Row major linear FP16 format`, `Half`.
_TYPES = (
    ("int8", re.compile(r"\bint8\b|\bkINT8\b", re.IGNORECASE)),
    ("bfloat16", re.compile(r"\bbf16\b|\bbfloat16\b", re.IGNORECASE)),
    ("float16", re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE)),
    ("float32", re.compile(r"\bfp32\b|\bfloat\b|\bfloat32\b", re.IGNORECASE)),
    ("int32", re.compile(r"\bint32\b", re.IGNORECASE)),
    ("int64", re.compile(r"\bint64\b", re.IGNORECASE)),
    ("bool", re.compile(r"\bbool\b", re.IGNORECASE)),
)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# Kernels that multiply integers say so in their names, whatever their weights are listed as.
_INTEGER_KERNEL = re.compile(r"i8i8|int8|imma", re.IGNORECASE)


def inspect_plan(trt: Any, logger: Any, plan: bytes) -> str:
    """Load a plan that was built a moment ago and ask for its layers.

    Args:
        trt: the backend's module.
        logger: of the build.
        plan: bytes that this process built itself.

    Returns:
        The inspector's JSON; empty where the engine does not load, for which the logger has the reason.
    """
    runtime: tensorrt.Runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def layer_types(text: str, nodes: Mapping[str, Kind]) -> list[Operation]:
    """Convolutions and matrix products in the inspector's answer, in the engine's order.

    Args:
        text: JSON of an engine that was built with detailed profiling verbosity.
        nodes: name -> kind of the ONNX graph's convolutions and matrix products.

    Returns:
        An operation for each layer that such nodes went into; a type that no word of the answer tells is `?`.

    Raises:
        ValueError: no JSON.
    """
    document = json.loads(text)
    layers = document.get("Layers", []) if isinstance(document, dict) else []
    found: list[Operation] = []
    for layer in layers:
        if not isinstance(layer, dict):  # without detailed verbosity a layer is its name
            continue
        names = tuple(_ONNX_LAYER.findall(str(layer.get("Metadata", ""))))
        kinds: set[Kind] = {nodes[name] for name in names if name in nodes}
        for kind in sorted(kinds):
            found.append(
                Operation(
                    kind=kind,
                    operation=str(layer.get("LayerType", "?")),
                    name=str(layer.get("Name", "?")),
                    layers=names,
                    inputs=(*_types(layer, "Inputs")[:1], _weight_type(layer), *_types(layer, "Inputs")[1:]),
                    outputs=_types(layer, "Outputs"),
                )
            )
    return found


def _types(layer: Mapping[str, Any], side: str) -> tuple[str, ...]:
    entries = layer.get(side) or []
    words = ("Format", "ype")  # of keys like `Format/Datatype`, `Datatype`, `DataType`
    return tuple(
        _type(" ".join(str(value) for key, value in entry.items() if any(word in key for word in words)))
        for entry in entries
    )


def _weight_type(layer: Mapping[str, Any]) -> str:
    weights = layer.get("Weights")
    if isinstance(weights, dict) and "Type" in weights:
        return _type(str(weights["Type"]))
    if _INTEGER_KERNEL.search(str(layer.get("TacticName", ""))):
        return "int8"
    inputs = _types(layer, "Inputs")
    return inputs[1] if len(inputs) > 1 else "?"


def _type(text: str) -> str:
    return next((name for name, pattern in _TYPES if pattern.search(text)), "?")
