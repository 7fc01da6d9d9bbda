"""What the linter says: rules, problems and findings; plain values that import nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx

    from compress.onnx_graph.graph import GraphIndex

Target = Literal["tensorrt", "onnxruntime"]
Severity = Literal["error", "warning"]
TENSORRT: tuple[Target, ...] = ("tensorrt",)
ONNXRUNTIME: tuple[Target, ...] = ("onnxruntime",)
BOTH: tuple[Target, ...] = ("tensorrt", "onnxruntime")
LAYERS = ("Conv", "Gemm", "MatMul")  # what int8 is worth the trouble for


@dataclass(frozen=True)
class Finding:
    """One problem: which rule, how bad, at which node (empty: the whole graph), what is wrong, what cures it."""

    rule: str
    severity: Severity
    node: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.severity} {self.rule} at {self.node or 'graph'}: {self.message} {self.cure}"

    def as_json(self) -> dict[str, str]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """What a check reports; its rule adds the rest."""

    node: str
    message: str


# Handed the model as it is in the file, and an index of its flattened copy; see `lint_files.flattened`.
Check = Callable[["onnx.ModelProto", "GraphIndex"], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """One check, the targets that it concerns, and the cure that it recommends."""

    name: str
    severity: Severity
    targets: tuple[Target, ...]
    check: Check
    cure: str


def count_by_severity(findings: list[Finding]) -> tuple[int, int]:
    """Number of errors, number of warnings."""
    errors = sum(finding.severity == "error" for finding in findings)
    return errors, len(findings) - errors
