"""`compress tune` on a few hundred digits: interrupted, shared, resumed, written down and run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.cli.tuning import TuneOptions, reason_line, tune_recipe
from compress.errors import CompressError, RecipeError, UsageError
from compress.pipeline.machine import FACTS
from compress.pipeline.recipe import load_recipe
from compress.stages import CATALOGUE

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

STEPS = """\
# of a few hundred digits
name: tiny
data: {dataset: digits, train_samples: 300}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [32]}, epochs: 2, learning_rate: 0.05, threads: 1}
  student:
    stage: distill
    teacher: teacher
    model: {name: mlp, widths: [16]}  # small
    epochs: 2
    learning_rate: 0.05  # peak
    threads: 1
  float: {stage: export, model: student}
  int8: {stage: calibrate, model: float, samples: 100, method: minmax}
  report: {stage: benchmark, reference: teacher, float_twin: float, variants: [int8]}
"""
STUDENT = """\
tune:
  objectives: {accuracy: student}
  space:
    steps.student.temperature: {low: 1, high: 16, log: true}
    steps.student.kd_weight: {low: 0, high: 1}
    steps.student.learning_rate: {low: 0.01, high: 0.2, log: true}
    student.model.widths: {choices: [[8], [16], [32]]}
  trials: 20
"""
INT8 = """\
tune:
  objectives: {accuracy: int8, latency: int8, size: int8}
  space:
    steps.student.model.widths: {choices: [[4], [64]]}
    steps.int8.method: {choices: [minmax, mse]}
  trials: 3
"""


def recipe(folder: Path, tune: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(STEPS + tune)
    return path


def options(**given: Any) -> TuneOptions:
    usual: dict[str, Any] = {
        "overrides": [], "workers": 1, "storage": None, "study": None, "best": None, "trial": None, "as_json": False,
        "quiet": False, "helper": False,
    }  # fmt: skip
    return TuneOptions(**(usual | given))


def done_trials(journal: Path) -> int:
    """How many trials of a study are finished, read while others write it."""
    if not journal.is_file():
        return 0
    ends = [json.loads(line) for line in journal.read_bytes().splitlines() if line.endswith(b"}")]
    return sum(entry["op_code"] == 6 and entry["state"] == 1 for entry in ends)


def start_and_stop(folder: Path, number: int, after: int) -> int:
    """Two workers; a signal to all of them once so many trials are done. Returns the exit code."""
    command = [sys.executable, "-m", "compress", "tune", "tiny.yaml", "--workers", "2", "--store", "store"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    limit = time.monotonic() + 300
    while process.poll() is None and done_trials(folder / "store" / "tune" / "tiny.journal") < after:
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output, output
    return process.returncode


@pytest.mark.slow
def test_twenty_trials_of_two_workers_interrupted_killed_and_resumed(tmp_path: Path, cli: Cli) -> None:
    recipe(tmp_path, STUDENT)
    assert start_and_stop(tmp_path, signal.SIGINT, 3) == 130
    assert start_and_stop(tmp_path, signal.SIGKILL, 8) == -signal.SIGKILL
    tune = ("tune", "tiny.yaml", "--workers", "2", "--store", "store", "--best", "best.yaml", "--json")
    finished = cli(*tune, cwd=tmp_path, timeout=600)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    trials = document["trials"]
    outcomes = Counter(trial["outcome"] for trial in trials)
    interrupted = [trial["number"] for trial in trials if trial["outcome"] == "interrupted"]
    repeats = {trial["number"]: trial["repeats"] for trial in trials if trial["repeats"] is not None}
    assert outcomes["done"] == 20, "no trial is lost"
    assert set(outcomes) <= {"done", "interrupted"}
    assert 1 <= len(interrupted) <= 4
    assert sorted(repeats.values()) == interrupted, "none is done twice"
    by_number = {trial["number"]: trial for trial in trials}
    for number, before in repeats.items():
        assert by_number[before]["values"].items() <= by_number[number]["values"].items()

    best = by_number[document["best"]["number"]]
    assert best["objectives"]["accuracy"] == max(trial["objectives"].get("accuracy", 0) for trial in trials)
    assert "# peak" in (tmp_path / "best.yaml").read_text()
    run = cli("run", "best.yaml", "--until", "student", "--store", "store", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    steps = {step["name"]: step for step in json.loads(run.stdout)["steps"]}
    assert [step["status"] for step in steps.values()] == ["hit", "hit"]
    made = best["artifacts"]["student"]
    assert (steps["student"]["key"], steps["student"]["digest"]) == (made["key"], made["digest"])
    manifest = json.loads((Path(steps["student"]["path"]) / "manifest.json").read_text())
    assert manifest["metrics"][0]["value"] == best["objectives"]["accuracy"]
    again = cli(*tune, cwd=tmp_path)
    assert json.loads(again.stdout)["trials"] == trials, "a finished study is only read"


class Sealed:
    """A test split that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"tuning read the test split: {name}")


@pytest.mark.slow
def test_three_objectives_without_a_look_at_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compress.artifacts.store import Store
    from compress.data import datasets
    from compress.engines.onnxruntime_session import OnnxRuntimeSession

    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: replace(load(*given), test=Sealed()))
    path, root = recipe(tmp_path, INT8), tmp_path / "store"
    assert tune_recipe(path, root, options(best=tmp_path / "best.yaml")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny: 3 trials for accuracy of int8, latency of int8, size of int8; study ")
    assert len(re.findall(r"^trial \d", printed, re.M)) == 3
    assert "Pareto front" in printed
    assert not (root / "benchmark").exists()

    assert tune_recipe(path, root, options(as_json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    validation = load(load_recipe(path, [], CATALOGUE).data, tmp_path).validation
    for trial in document["trials"]:
        made = trial["artifacts"]["int8"]
        artifact = Store(root).find(made["stage"], made["key"])
        assert artifact is not None
        file = artifact.path / "model.ort.onnx"
        answers = OnnxRuntimeSession.load(file).run({"image": (validation.images / 255).astype("float32")})["logits"]
        top1 = float((answers.argmax(1) == validation.labels).mean())
        figures = trial["figures"]
        assert figures["accuracy"] == {"value": top1, "unit": "fraction", "split": "validation", "n": len(validation)}
        assert figures["size"] == {"value": file.stat().st_size, "unit": "bytes"}
        assert figures["latency"].items() >= {"unit": "ratio", "cpu": FACTS["cpu"](), "threads": 1, "batch": 1}.items()
        assert figures["latency"]["low"] < figures["latency"]["value"] < figures["latency"]["high"]
    sizes = {
        trial["values"]["steps.student.model.widths"][0]: trial["objectives"]["size"] for trial in document["trials"]
    }
    assert sorted(sizes, key=lambda width: sizes[width]) == sorted(sizes)
    assert set(document["pareto"]) <= {0, 1, 2}
    assert Path(document["figure"]).read_text().count('<g id="axes_') == 2


@pytest.mark.slow
def test_a_first_trial_that_equals_the_recipe_is_as_fast_as_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = INT8.replace("[[4], [64]]", "[[16]]").replace("accuracy: int8, ", "").replace(", size: int8", "")
    path = recipe(tmp_path, tune.replace("trials: 3", "trials: 1"))
    assert tune_recipe(path, tmp_path / "store", options(as_json=True)) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert trial["values"] == {"steps.student.model.widths": [16], "steps.int8.method": "minmax"}
    assert 0.8 < trial["objectives"]["latency"] < 1.25


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (("trials: 20", "trails: 20"), 2, "tune: unknown key 'trails'; nearest: 'trials'"),
        (("{accuracy: student}", "{accuracy: studnet}"), 2, "unknown step 'studnet'; nearest: 'student'"),
        (("{accuracy: student}", "{accuracy: report}"), 2, "step 'report' makes Report, which has no accuracy"),
        (("student.temperature", "student.temprature"), 2, "unknown key 'temprature'; nearest: 'temperature'"),
        (("low: 1, high: 16", "low: 16, high: 1"), 2, "low is 16, expected less than high, 1"),
        (("{low: 0, high: 1}", "{low: 0, high: 2}"), 2, "steps.student.kd_weight=2"),
        (("choices: [[8], [16], [32]]", "choices: [[0], [16]]"), 2, "student.model.widths=[0]"),
        (
            ("trials: 20", "trials: 20\n  pruner: sharp"),
            2,
            "Input should be 'none', 'median', 'hyperband' or 'halving'",
        ),
    ],
)
def test_wrong_recipes(tmp_path: Path, change: tuple[str, str], code: int, told: str) -> None:
    assert change[0] in STUDENT
    path = recipe(tmp_path, STUDENT.replace(*change))
    with pytest.raises(CompressError) as caught:
        tune_recipe(path, tmp_path / "store", options())
    assert caught.value.exit_code == code
    assert told in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_recipe_without_tune(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it has no key `tune`") as caught:
        tune_recipe(recipe(tmp_path, ""), tmp_path / "store", options())
    assert caught.value.hint.startswith("tune: {objectives:")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"study": "../../x"}, "--study '../../x': expected a letter"),
        ({"study": ""}, "--study '': expected a letter"),
        ({"best": Path("nowhere/best.yaml")}, "there is no folder nowhere"),
        ({"best": Path()}, "this is a folder"),
        ({"best": Path("tiny.yaml")}, "this is the recipe itself"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, STUDENT)
    with pytest.raises(UsageError) as caught:
        tune_recipe(Path("tiny.yaml"), tmp_path / "store", options(**given))
    assert told in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("the loss is nan\n  where: step student\n  next:  lower it", "the loss is nan"),
        ("x.yaml has 1 problem:\n  x.yaml:3: student: too many", "x.yaml:3: student: too many"),
        ("x.yaml has 2 problems:\n  3: a\n  4: b\n  next:  mend them", "3: a; 4: b"),
    ],
)
def test_a_failed_trial_says_its_reason_in_one_line(reason: str, line: str) -> None:
    assert reason_line(reason) == line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--storage", "sqlite:////no/such/folder/x.db"), 75, "the study's database cannot be used"),
        (("--storage", "carrier-pigeon://x"), 2, "expected a database's URL|sqlalchemy.dialects:carrier"),
        (("--workers", "0"), 2, "workers"),
        (("--set", "tune.trials=0"), 2, "greater than or equal to 1"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, cli: Cli, arguments: tuple[str, ...], code: int, told: str) -> None:
    recipe(tmp_path, STUDENT)
    done = cli("tune", "tiny.yaml", "--store", "store", "--json", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert re.search(told, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_optuna_that_is_not_installed(tmp_path: Path) -> None:
    recipe(tmp_path, STUDENT)
    code = "import sys; sys.modules['optuna'] = None; from compress.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "tune", "tiny.yaml", "--store", "store"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr
    assert "pip install" in done.stderr


@pytest.mark.slow
def test_a_study_of_other_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "nets.py"
    code.write_text(
        "import torch\n\n\n"
        "def build(width):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, 10))\n"
    )
    text = (STEPS + STUDENT).replace(
        "model: {name: mlp, widths: [16]}", 'model: {name: "nets:build", kwargs: {width: 4}}'
    )
    text = text.replace("    student.model.widths: {choices: [[8], [16], [32]]}\n", "").replace(
        "trials: 20", "trials: 1"
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    tune_recipe(path, tmp_path / "store", options())
    code.write_text(code.read_text() + "# another network, for all that a digest knows\n")
    with pytest.raises(UsageError, match=r"is of another recipe: sources\.nets\.py") as caught:
        tune_recipe(path, tmp_path / "store", options())
    assert caught.value.exit_code == 2
