"""Files and functions stay small enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE_LINES = 400
FUNCTION_LINES = 60
FOLDERS = ("compress", "tests", "benchmarks", "examples")
# path or path::function -> the reason; an entry that is no longer needed fails
EXCEPTIONS: dict[str, str] = {}


def oversized(path: Path, name: str) -> Iterator[str]:
    """Yield `name`, or `name::function`, for whatever is too long."""
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > FILE_LINES:
        yield name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                yield f"{name}::{node.name}"


def test_files_and_functions_are_short(root: Path) -> None:
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    assert len(files) > 60, "the search found too little to mean anything"
    found = {entry for path in files for entry in oversized(path, path.relative_to(root).as_posix())}
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["def f():", *["    x = 1"] * (FUNCTION_LINES - 1)], []),
        (["def f():", *["    x = 1"] * FUNCTION_LINES], ["m.py::f"]),
        (["x = 1"] * FILE_LINES, []),
        (["x = 1"] * (FILE_LINES + 1), ["m.py"]),
    ],
)
def test_the_limits_themselves(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    path = tmp_path / "m.py"
    path.write_text("\n".join(lines) + "\n")
    assert list(oversized(path, "m.py")) == expected
