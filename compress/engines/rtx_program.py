"""Which types a TensorRT-RTX engine computes in, read from the program text inside its plan.

TensorRT-RTX keeps its program as plain text in the plan, which makes int8 provable without a GPU. The text
is not documented: what is read here is evidence, and an engine whose text cannot be read is reported as
unseen, never as int8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["convolution", "gemm"]
CONVOLUTION: Kind = "convolution"
GEMM: Kind = "gemm"

# Names seen in engines of TensorRT-RTX 1.7; the second half are those that its kernels go by elsewhere.
_KINDS: dict[str, Kind] = {
    "corrltn": CONVOLUTION,
    "fully_connected": GEMM,
    "deconvolution": CONVOLUTION,
    "convolution": CONVOLUTION,
    "matmul": GEMM,
    "gemm": GEMM,
}
KIND_OF_ONNX: dict[str, Kind] = {"Conv": CONVOLUTION, "ConvTranspose": CONVOLUTION, "Gemm": GEMM, "MatMul": GEMM}

# Several programs may sit in one plan; each opens with a header, and tensor names hold within one.
_PROGRAM = re.compile(rb"\bheader \{\n  version = ")
_TENSOR = re.compile(rb'\n  (?:sub_)?tensor=\{[^\n]*? name="([^"\n]+)"[^\n]* type=(\w+) \}')
_OPERATION = re.compile(
    rb"\n  (" + "|".join(_KINDS).encode() + rb')=\{ name="([^"\n]+)" output=\{([^}\n]*)\} input=\{([^}\n]*)\}([^\n]*)'
)
# Attention that was fused into one kernel: both its products take int8 where queries, keys and values are int8.
_ATTENTION = re.compile(
    rb"\n  function=\{ name=(_gemm_mha\w*) [^\n]*?\binput_args=\{([^}\n]*)\}[^\n]*?\boutput_args=\{([^}\n]*)\}([^\n]*)"
)
_ATTENTION_FACTORS = 3
_LAYERS = re.compile(rb' layers="([^"\n]*)"')
_LAYER = re.compile(r"\[ONNX Layer: (.*)\]", re.DOTALL)
_LAYER_SEPARATOR = "\x1f"
_QUOTED = re.compile(rb'"([^"]+)"')

_MAGIC = b"vtrt"
_VERSION_AT = 24
_MASK_AT = 32
# One bit for each capability; the next one says that later GPUs may run the engine too.
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class Operation:
    """One convolution or matrix product of the engine."""

    kind: Kind
    operation: str  # the program's word, e.g. corrltn
    name: str  # of the ONNX node, made unique; where the builder merged nodes, joined by +
    layers: tuple[str, ...]  # the ONNX nodes that went into it, Q/DQ nodes among them
    inputs: tuple[str, ...]  # data type of each operand: data, weights, then scales and bias; ? if unreadable
    outputs: tuple[str, ...]

    @property
    def int8(self) -> bool:
        """All factors are int8, so the products are formed in integers."""
        factors = _ATTENTION_FACTORS if self.operation.startswith("_gemm_mha") else 2
        return self.inputs[:factors] == ("int8",) * factors


@dataclass(frozen=True)
class OperandCounts:
    """How many of a graph's convolutions and matrix products multiply int8 by int8."""

    convolutions_int8: int
    convolutions: int
    gemms_int8: int
    gemms: int
    float_nodes: tuple[str, ...]  # seen in the engine, not int8
    unseen_nodes: tuple[str, ...]  # not found: folded into a constant, or fused beyond recognition


def operand_types(plan: bytes) -> list[Operation]:
    """Convolutions and matrix products of a TensorRT-RTX plan, in the program's order.

    Args:
        plan: bytes of the engine; of another backend, or without program text, they give an empty list.

    Returns:
        Operations with the data type of every operand.
    """
    starts = [match.start() for match in _PROGRAM.finditer(plan)]
    found: list[Operation] = []
    for start, end in zip(starts, [*starts, len(plan)][1:], strict=True):
        types = {match[1]: match[2].decode() for match in _TENSOR.finditer(plan, start, end)}
        for match in _OPERATION.finditer(plan, start, end):
            found.append(
                Operation(
                    kind=_KINDS[match[1].decode()],
                    operation=match[1].decode(),
                    name=match[2].decode("utf-8", "replace"),
                    layers=_layers(match[5]),
                    inputs=_types(match[4], types),
                    outputs=_types(match[3], types),
                )
            )
        for match in _ATTENTION.finditer(plan, start, end):
            name = match[1].decode()
            inputs, outputs = _types(match[2], types), _types(match[3], types)
            found.append(Operation(GEMM, name, name, _layers(match[4]), inputs, outputs))
    return found


def _layers(text: bytes) -> tuple[str, ...]:
    layers = _LAYERS.search(text)
    parts = layers[1].decode("utf-8", "replace").split(_LAYER_SEPARATOR) if layers else []
    return tuple(part[1] for part in map(_LAYER.fullmatch, parts) if part)


def _types(names: bytes, types: Mapping[bytes, str]) -> tuple[str, ...]:
    return tuple(types.get(name, "?") for name in _QUOTED.findall(names))


def count_int8(operations: Iterable[Operation], nodes: Mapping[str, Kind]) -> OperandCounts:
    """Judge every convolution and matrix product of the ONNX graph by the operations it went into.

    Args:
        operations: of the engine.
        nodes: name -> kind of the graph's convolutions and matrix products.

    Returns:
        Counts over `nodes`; a node counts as int8 when all operations that it went into do.
    """
    verdicts: dict[str, bool] = {}
    for operation in operations:
        for name in {*operation.layers, *operation.name.split("+"), operation.name}:
            if nodes.get(name) == operation.kind:
                verdicts[name] = verdicts.get(name, True) and operation.int8
    int8 = {
        kind: sum(verdicts.get(name, False) for name in nodes if nodes[name] == kind) for kind in (CONVOLUTION, GEMM)
    }
    total = {kind: sum(other == kind for other in nodes.values()) for kind in (CONVOLUTION, GEMM)}
    return OperandCounts(
        convolutions_int8=int8[CONVOLUTION],
        convolutions=total[CONVOLUTION],
        gemms_int8=int8[GEMM],
        gemms=total[GEMM],
        float_nodes=tuple(name for name in nodes if verdicts.get(name) is False),
        unseen_nodes=tuple(name for name in nodes if name not in verdicts),
    )


def compute_capabilities(plan: bytes) -> tuple[str, ...]:
    """Compute capabilities that the plan's header names, e.g. ("8.0", "8.6"); empty if it is no RTX plan."""
    if plan[: len(_MAGIC)] != _MAGIC or len(plan) < _MASK_AT + 4:
        return ()
    mask = int.from_bytes(plan[_MASK_AT : _MASK_AT + 4], "little")
    return tuple(name for bit, name in enumerate(_CAPABILITIES) if mask >> bit & 1)
