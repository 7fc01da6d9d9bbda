"""The commands that need no artifact, and what they refuse."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

RECIPE = """\
name: tiny
data: {dataset: digits}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  float: {stage: export, model: teacher}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, "compress 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum", "x.yaml"], "No such command 'rum'. Did you mean 'run'?"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "x.yaml", "--forse", "a"], "No such option: --forse"),
        (["run", "x.yaml", "--lock-timeout", "-1"], "--lock-timeout"),
        (["report", "r-1", "--format", "pdf"], "--format"),
        (["report", "r-1", "--json", "--format", "md"], "--json and --format md contradict each other"),
        (["report", "r-1", "--format", "table", "--json"], "--json and --format table contradict each other"),
        (["report", "r-1", "--json", "--format", "json"], "there is no run 'r-1'"),
        (["run", "x.yaml"], "there is no such recipe"),
        (["plan", "x.yaml"], "there is no such recipe"),
        (["show", "0123"], "no artifact has the key '0123'"),
        (["show", "what?"], "nothing is called 'what?'"),
        (["report", "tiny-0001"], "there is no run 'tiny-0001'"),
        (["schema", "-o", "absent/schema.json"], "cannot write absent/schema.json: No such file or directory"),
    ],
)
def test_usage_errors(cli: Cli, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--until", "floot"], "--until floot: the recipe has no such step"),
        (["--only", "floot"], "--only floot: the recipe has no such step"),
        (["--force", "floot"], "--force floot: the recipe has no such step"),
        (["--until", "float", "--only", "float"], "--until and --only contradict each other"),
        (["--set", "steps.teacher.epoch=2"], "unknown key 'epoch'"),
        (["--set", "nonsense"], "nonsense"),
        (["--gate", "top1_dorp_pp=1"], "--gate top1_dorp_pp=1: unknown gate 'top1_dorp_pp'; nearest: 'top1_drop_pp'"),
        (["--gate", "top1_drop_pp"], "--gate top1_drop_pp: expected NAME=VALUE"),
        (["--gate", "top1_drop_pp=1"], "gates: no step writes a report that they could be judged from"),
    ],
)
def test_options_that_do_not_fit_the_recipe(cli: Cli, recipe: Path, arguments: list[str], said: str) -> None:
    done = cli("run", recipe.name, "--json", *arguments, cwd=recipe.parent)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == "", "a document is whole or absent"


def test_plan_of_an_empty_store(cli: Cli, recipe: Path) -> None:
    done = cli("plan", recipe.name, cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    header, teacher, export = done.stdout.splitlines()
    assert header.split() == ["step", "stage", "plan", "key", "reason"]
    assert teacher.split()[:3] == ["teacher", "train", "run"]
    assert teacher.endswith("first run")
    assert export.split() == ["float", "export", "depends", "-", "depends", "on", "teacher"]
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["tiny.yaml"], "a plan writes nothing"


def test_plan_as_json(cli: Cli, recipe: Path) -> None:
    done = cli("plan", recipe.name, "--json", "--set", "seed=3", "--store", "there", cwd=recipe.parent)
    document = json.loads(done.stdout)
    assert document["recipe"] == "tiny"
    assert document["seed"] == 3
    assert document["store"] == str(recipe.parent / "there")
    assert [step["status"] for step in document["steps"]] == ["run", "depends"]
    assert set(document["steps"][0]) == {"name", "stage", "status", "reason", "key", "path"}
    assert len(document["steps"][0]["key"]) == 64


def test_ls_of_an_empty_store(cli: Cli, tmp_path: Path) -> None:
    assert cli("ls", "--store", "s", cwd=tmp_path).stdout == "s is empty; compress run RECIPE fills it\n"
    document = json.loads(cli("ls", "--store", "s", "--json", cwd=tmp_path).stdout)
    assert document == {"store": str(tmp_path / "s"), "runs": [], "tags": [], "artifacts": [], "damaged": []}


def test_schema_goes_to_a_file(cli: Cli, tmp_path: Path) -> None:
    printed = cli("schema").stdout
    assert cli("schema", "--json").stdout == printed
    assert cli("schema", "-o", "schema.json", cwd=tmp_path).stdout == ""
    assert (tmp_path / "schema.json").read_text() == printed
    assert json.loads(printed)["title"] == "A recipe of compress"


def test_doctor_names_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    checks = {check["name"]: check for check in json.loads(cli("doctor", "--json", cwd=tmp_path).stdout)["checks"]}
    assert set(checks) == {"torch", "onnxruntime", "tensorrt_rtx", "tensorrt", "pycuda", "driver", "gpu", "disk"}
    assert checks["torch"]["available"]
    assert "CPUExecutionProvider" in checks["onnxruntime"]["details"]["providers"]
    for check in checks.values():
        assert check["available"] or check["reason"]
    shown = cli("doctor", cwd=tmp_path).stdout
    assert shown.splitlines()[0].split() == ["what", "here", "version", "details"]
    for name in ("torch", "onnxruntime", "NVIDIA driver", "disk of the store"):
        assert f"\n{name} " in shown
