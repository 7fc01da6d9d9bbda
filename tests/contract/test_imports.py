"""Importing does nothing, starting costs little, and the layers hold."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import compress

HEAVY = (
    "torch", "torchao", "lightning_fabric", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "onnxscript",
    "tensorrt_rtx", "tensorrt", "pycuda", "matplotlib", "PIL", "optuna", "sqlalchemy",
)  # fmt: skip
COMMANDS = (
    "run", "plan", "tune", "ls", "tag", "show", "report", "compare", "validate", "bench", "lint", "quantize", "schema",
    "doctor",
)  # fmt: skip
# `compress --help` needs Typer and a little of the standard library: 160 modules. Rich would add 100, pydantic 80.
HELP_MODULES = 220

# Runs a command in process, then says on standard error what was imported for it.
PROBE = """
import json, sys
from compress.cli.app import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code or 0
print("MODULES " + json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def modules_after(arguments: list[str], cwd: Path) -> tuple[int, set[str]]:
    """Exit code of a command, and the modules that it imported."""
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, timeout=60)
    last = [line for line in done.stderr.splitlines() if line.startswith("MODULES ")]
    assert last, done.stderr
    code, modules = json.loads(last[-1].removeprefix("MODULES "))
    return code, set(modules)


def public_modules() -> list[str]:
    """Every module of the package, by name."""
    found = pkgutil.walk_packages(compress.__path__, "compress.")
    return sorted(module.name for module in found if not module.name.endswith("__main__"))


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_imports_little(arguments: list[str], tmp_path: Path) -> None:
    code, modules = modules_after(arguments, tmp_path)
    assert code == 0
    assert not modules.intersection(HEAVY)
    assert not modules.intersection({"rich", "pydantic", "ruamel"})
    assert len(modules) < HELP_MODULES


def test_every_command_is_checked(tmp_path: Path) -> None:
    import typer.main

    from compress.cli.app import app

    group = typer.main.get_command(app)
    assert tuple(group.commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", ["digits.yaml", "bring_your_own.yaml"])
def test_plan_imports_no_tensor_library(root: Path, tmp_path: Path, recipe: str) -> None:
    code, modules = modules_after(["plan", str(root / "pipelines" / recipe), "--store", "store"], tmp_path)
    assert code == 0
    assert not modules.intersection(HEAVY)


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "--store", "store"],
        ["schema"],
        ["show", "0123", "--store", "store"],
        ["tag", "main", "r-1", "--store", "store"],
        ["compare", "base.json", "new.json", "--store", "store"],
        ["report", "r-1", "--store", "store", "--gate", "top1_drop_pp=1"],
    ],
    ids=" ".join,
)
def test_questions_import_no_tensor_library(command: list[str], tmp_path: Path) -> None:
    _, modules = modules_after(command, tmp_path)
    assert not modules.intersection(HEAVY)


def test_doctor_imports_no_torch(tmp_path: Path) -> None:
    _, modules = modules_after(["doctor"], tmp_path)
    assert not modules.intersection({"torch", "tensorrt_rtx", "tensorrt", "pycuda"})


IMPORT_ALL = """
import importlib, json, os, sys, threading, warnings
warnings.simplefilter("error")
before = dict(os.environ), os.listdir(), threading.active_count(), list(sys.path)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = dict(os.environ), os.listdir(), threading.active_count(), list(sys.path)
assert before[1:] == after[1:], (before[1:], after[1:])
print(json.dumps(sorted(sys.modules)))
"""


def test_stages_and_pipeline_import_without_a_tensor_library(tmp_path: Path) -> None:
    lean = (
        "compress.cli",
        "compress.tuning",
        "compress.stages",
        "compress.pipeline",
        "compress.artifacts",
        "compress.report",
    )
    names = [name for name in public_modules() if name.startswith(lean)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(names)],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "an import printed something"
    assert not set(json.loads(done.stdout)).intersection(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize("name", public_modules())
def test_every_module_can_be_imported_alone(name: str, tmp_path: Path) -> None:
    code = f"import {name}"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir()), "an import wrote a file"
