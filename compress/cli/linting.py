"""`compress lint`: what a builder would refuse in an ONNX file, or silently run in float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli.render import print_document
from compress.errors import EXIT_OK, ModelError

if TYPE_CHECKING:
    from compress.onnx_graph.findings import Finding, Target

MIB = 1 << 20
_SHOWN = 5  # nodes of one rule on a terminal


def lint_file(path: Path, target: Target, *, max_mib: int, as_json: bool) -> int:
    """Hold an ONNX file from any source against all that is known about a target.

    Args:
        path: the .onnx file; its external data lies in its folder.
        target: `tensorrt` or `onnxruntime`.
        max_mib: largest size of the file with its external data, MiB.
        as_json: print a document instead of text.

    Returns:
        The exit code: that of a bad model where there is an error, 0 for warnings only and for a clean file.

    Raises:
        ModelError: the file cannot be read as ONNX at all.
    """
    from compress.onnx_graph.findings import count_by_severity
    from compress.onnx_graph.graph import opset_of
    from compress.onnx_graph.lint import lint_foreign
    from compress.onnx_graph.loading import read_onnx

    model = read_onnx(path, limit_bytes=max_mib * MIB)
    findings = lint_foreign(model, target)
    errors, warnings = count_by_severity(findings)
    if as_json:
        print_document(
            {
                "file": str(path),
                "target": target,
                "opset": opset_of(model),
                "errors": errors,
                "warnings": warnings,
                "findings": [finding.as_json() for finding in findings],
            }
        )
    else:
        print(f"{path} for {target}, opset {opset_of(model)}: {counts_text(errors, warnings)}")
        for line in finding_lines(findings):
            print(line)
    return ModelError.exit_code if errors else EXIT_OK


def counts_text(errors: int, warnings: int) -> str:
    """Return `2 errors, 1 warning`, or `clean`."""
    parts = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(parts) or "clean"


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield for each rule its cure and the first few nodes that it found."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.rule, finding.cure), []).append(finding)
    for (severity, rule, cure), found in groups.items():
        yield f"{severity} {rule}" + (f" ({len(found)})" if len(found) > 1 else "") + f": {cure}"
        for finding in found[:_SHOWN]:
            yield f"  {finding.node or 'graph'}: {finding.message}"
        if len(found) > _SHOWN:
            yield f"  and {len(found) - _SHOWN} more; --json lists all"
