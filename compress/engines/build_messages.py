"""What a backend says while it builds: kept, written as it comes, and turned into errors that help."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError, ModelError, UnavailableError

if TYPE_CHECKING:
    import tensorrt

_MAX_LISTED = 10
_KEPT = ("INTERNAL_ERROR", "ERROR", "WARNING")
# Times and addresses differ from build to build.
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\b\d+(?:\.\d+)?(?:e-?\d+)? ?(?:ms|us|seconds|sec)\b")

# The parser's whole explanation for these is the word "false".
_QUANTIZED_OPERATORS = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearAdd", "QGemm"}
)


class BuildLog:
    """Messages of the backend: kept here, and written to a file as they come.

    Args:
        path: one JSON object a line; what a crash leaves behind.
    """

    def __init__(self, path: Path) -> None:
        self.messages: list[tuple[str, str]] = []
        self._file = path.open("w", encoding="utf-8")

    def add(self, severity: str, text: str) -> None:
        """Keep one message; verbose ones are dropped."""
        if severity == "VERBOSE":
            return
        self.messages.append((severity, text))
        self._file.write(json.dumps({"severity": severity, "text": text}) + "\n")
        self._file.flush()

    def errors(self) -> list[str]:
        """Texts of errors, oldest first."""
        return [text for severity, text in self.messages if severity in _KEPT[:2]]

    def summary(self) -> tuple[str, ...]:
        """Warnings and errors, each once with its count, without what varies between builds."""
        counts = Counter(
            f"{severity}: {_VARYING.sub('…', text.strip())}" for severity, text in self.messages if severity in _KEPT
        )
        return tuple(text if count == 1 else f"{text} ({count} times)" for text, count in counts.items())

    def close(self) -> None:
        """Close the file; the messages stay."""
        self._file.close()


def parser_error(parser: tensorrt.OnnxParser) -> ModelError:
    """Every node that the parser refuses, with a reason of ours where its own says nothing."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [_explained(error.node_name(), error.node_operator(), error.desc(), error.code()) for error in errors]
    shown = "".join(f"\n  {line}" for line in lines[:_MAX_LISTED])
    if len(lines) > _MAX_LISTED:
        shown += f"\n  and {len(lines) - _MAX_LISTED} more"
    return ModelError(
        f"The TensorRT parser refuses {len(lines)} nodes of the ONNX model:{shown or ' it gives no reason'}",
        hint="replace these operators in the model, then export it again",
    )


def _explained(name: str, operator: str, text: str, code: Any) -> str:
    # "Invalid Node - name" repeats what is known; the lines after it have the reason.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Invalid Node - ")]
    reason = lines[0] if lines else ""
    if operator in _QUANTIZED_OPERATORS:
        reason = "not supported; int8 is spelled with QuantizeLinear and DequantizeLinear around float operators"
    elif "Plugin not found" in reason:
        reason = "unknown operator"
    elif reason.lower() in ("", "false"):
        reason = f"not supported (the parser says no more than {getattr(code, 'name', code)})"
    return f"{name or 'the model'} ({operator or 'no operator'}): {reason}"


def build_error(backend: str, log: BuildLog) -> CompressError:
    """Why a build gave nothing, from the last errors that were logged."""
    errors = log.errors()[-_MAX_LISTED:]
    text = "".join(f"\n  {line.strip()}" for line in errors) or " it gives no reason"
    # On a machine without a GPU, parts that need one say so beside the true cause, so only the last error decides.
    if errors and re.search(r"OutOfMemory|out of memory|OUT_OF_MEMORY", errors[-1]):
        return UnavailableError(f"{backend} ran out of memory while building:{text}")
    return ModelError(f"{backend} cannot build this model:{text}")
