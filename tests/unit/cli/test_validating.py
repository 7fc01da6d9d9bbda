"""A run that ended, measured again: from its record alone, against other recipes, data and machines."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compress.engines.availability import why_not
from compress.report.document import report_schema

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow

PLAIN = """\
  plain:
    stage: benchmark
    reference: teacher
    variants: [float]
    latency: {batches: [1], blocks: 6, slot_iterations: 1, slot_ms: 1, warmup_ms: 1, processes: 2}
"""
REASON = why_not("tensorrt_rtx")


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_recipe: str) -> Path:
    """A project whose recipe has run once; nothing is done in it."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "pyproject.toml").touch()
    (folder / "tiny.yaml").write_text(tiny_recipe.replace("gates:", f"{PLAIN}gates:"))
    done = cli("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ran(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in another folder, as if on another machine; tests measure in it."""
    return Path(shutil.copytree(first, tmp_path_factory.mktemp("project") / "copy"))


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(first, tmp_path / "copy"))


@pytest.fixture(scope="module")
def validated(ran: Path, cli: Cli) -> Any:
    """What validating the int8 ONNX printed as JSON."""
    done = cli("validate", "tiny-0001", "--device", "cpu", "--step", "report", "--json", cwd=ran)
    assert done.returncode == 0, done.stderr
    return document(done)


def test_the_int8_onnx_is_measured_against_the_reference(ran: Path, validated: Any, cli: Cli) -> None:
    report = validated["report"]
    assert validated["validated"] == "tiny-0001"
    assert validated["run"].startswith("tiny-validate-")
    assert (validated["device"], validated["measured"]) == ("cpu", ["int8"])
    assert [one["name"] for one in report["variants"]] == ["teacher", "int8", "float"]
    assert {one["status"] for one in report["variants"]} == {"measured"}
    assert [hop["hop"] for hop in report["ladder"]] == ["teacher", "teacher -> float", "float -> int8"]
    assert report["environment"]["device"] == "cpu"
    assert report["n"] == 450
    jsonschema.validate(report, report_schema())
    first = document(cli("report", "tiny-0001:report", "--json", cwd=ran))
    before, now = ({one["name"]: one["top1"] for one in found["variants"]} for found in (first, report))
    assert now == {name: before[name] for name in ("teacher", "int8", "float")}
    assert [(gate["gate"], gate["variant"], gate["verdict"]) for gate in validated["gates"]] == [
        ("top1_drop_pp", "int8", "pass")
    ]


def test_the_answer_is_a_run_that_the_other_commands_take(ran: Path, validated: Any, cli: Cli) -> None:
    run = validated["run"]
    assert {step["name"]: step["status"] for step in validated["steps"]} == {
        **dict.fromkeys(("teacher", "float", "int8"), "hit"),
        "report": "run",
    }
    assert "Loss ladder" in cli("report", run, cwd=ran).stdout
    assert "report " in cli("show", f"{run}:report", cwd=ran).stdout
    assert (ran / "artifacts" / "runs" / f"{run}.html").is_file()
    again = cli("validate", run, "--device", "cpu", cwd=ran)
    assert again.returncode == 0, again.stderr
    lines = again.stdout.splitlines()
    assert lines[0] == f"{run}: report again on cpu"
    newest, _, end = lines[-1].partition(": ")
    assert newest.startswith("tiny-validate-")
    assert end.startswith("passed; 4 steps, 3 hits, ")
    compared = cli("compare", run, newest, "--json", cwd=ran)
    assert compared.returncode in (0, 3, 4), "two processes a side prove little"
    assert document(compared)["mismatches"] == []
    assert cli("tag", "checked", run, cwd=ran).returncode == 0
    keys = [one["path"] for one in document(cli("ls", "--json", cwd=ran))["artifacts"] if "benchmark" in one["path"]]
    assert sum("." in Path(path).name for path in keys) >= 4, "every measurement is a revision of its own"


def test_only_data_and_gates_of_a_recipe_count(copy: Path, validated: Any, cli: Cli) -> None:
    # The recipe lies elsewhere and says other things by now; the run's artifacts are what they were.
    (copy / "tiny.yaml").rename(copy / "moved.yaml")
    done = cli("validate", "tiny-0001:report", "--device", "cpu", cwd=copy)
    assert done.returncode == 2
    assert "the recipe of run tiny-0001 is not here: tiny.yaml" in done.stderr
    done = cli(
        *("validate", "tiny-0001:report", "--device", "cpu", "--json", "--recipe", "moved.yaml"),
        *("--set", "steps.teacher.epochs=99", "--set", "seed=5", "--set", "gates.top1_drop_pp=30"),
        cwd=copy,
    )
    assert done.returncode == 0, done.stderr
    assert document(done)["report"]["lineage"] == validated["report"]["lineage"]
    assert "gate top1_drop_pp is 30 in the recipe, and was 20 in tiny-0001" in done.stderr
    planned = cli("plan", "moved.yaml", "--set", "steps.teacher.epochs=99", cwd=copy).stdout
    assert "config changed: epochs 3 -> 99" in planned, "what it looks back on is the recipe's own last run"


def test_gates_decide(ran: Path, cli: Cli) -> None:
    done = cli("validate", "tiny-0001", "--device", "cpu", "--step", "report", "--gate", "size_bytes_max=10", cwd=ran)
    assert done.returncode == 3, done.stderr
    assert ": a gate failed; " in done.stdout.splitlines()[-1]
    assert "warning" not in done.stderr, "the command line asked for this gate"


@pytest.mark.skipif(REASON is None, reason="the engine runs here")
def test_without_a_gpu_nothing_is_measured(ran: Path, cli: Cli) -> None:
    before = sorted((ran / "artifacts" / "runs").iterdir())
    done = cli("validate", "tiny-0001:report", "--json", cwd=ran)
    assert (done.returncode, done.stdout) == (7, "")
    assert f"engine of run tiny-0001 cannot run here: {REASON}" in done.stderr
    assert "--device cpu validates the int8 ONNX instead" in done.stderr
    assert sorted((ran / "artifacts" / "runs").iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent-0001"], 2, "there is no run 'absent-0001'"),
        (["tiny-0001"], 2, "run tiny-0001 has 2 reports"),
        (["tiny-0001:float"], 2, "step 'float' of run tiny-0001 wrote no report"),
        (["tiny-0001:plain"], 2, "step 'plain' of run tiny-0001 measured no int8 ONNX, only float"),
        (["tiny-0001:plain", "--step", "report"], 2, "tiny-0001:plain and --step report contradict each other"),
        (["tiny-0001:report", "--recipe", "other.yaml"], 2, "there is no such recipe"),
        (["tiny-0001:report", "--gate", "top1_dorp_pp=1"], 2, "nearest: 'top1_drop_pp'"),
        (["tiny-0001:report", "--set", "data.test_samples=99"], 5, "the test data are not those of the run: got SHA"),
    ],
)
def test_what_is_refused(ran: Path, cli: Cli, arguments: list[str], code: int, said: str) -> None:
    done = cli("validate", *arguments, "--device", "cpu", "--json", cwd=ran)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr


def test_a_device_that_does_not_exist(ran: Path, cli: Cli) -> None:
    assert cli("validate", "tiny-0001", "--device", "tpu", cwd=ran).returncode == 2


def test_damaged_and_missing_artifacts(copy: Path, cli: Cli) -> None:
    weights = next(copy.glob("artifacts/train/*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    done = cli("validate", "tiny-0001:report", "--device", "cpu", cwd=copy)
    assert done.returncode == 6
    assert "the artifact is damaged: weights.safetensors has another SHA-256 than its manifest" in done.stderr
    done = cli("validate", "tiny-0001:report", "--device", "cpu", cwd=copy)  # the damaged one lies in quarantine now
    assert done.returncode == 6
    assert "the artifact of step 'teacher' is damaged or gone" in done.stderr
    assert not list(copy.glob("artifacts/runs/tiny-validate-*"))


class EngineInFloat:
    """An engine's session, computed by ONNX Runtime from the graph that the engine was built from."""

    @staticmethod
    def load(plan: Path, device: str = "cuda", *, graphs: bool = False) -> Any:
        from compress.engines.onnxruntime_session import OnnxRuntimeSession

        signed = next(plan.parent.parent.parent.glob("calibrate/*/model.onnx"))
        return OnnxRuntimeSession.load(signed, optimized=False)


def validate_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Validate the engine in this process, whose GPU is made up."""
    from compress.artifacts.store import Store
    from compress.cli.reporting import find_report
    from compress.engines import availability
    from compress.pipeline.recipe import load_recipe
    from compress.stages import CATALOGUE, fresh_process
    from compress.stages.validate import validate_run

    monkeypatch.setattr(availability, "obstacle", lambda backend, **_: None)
    monkeypatch.setattr(fresh_process, "measure_fresh", lambda variants, **_: {})
    store = Store(project / "artifacts")
    run = store.read_run("tiny-0001")
    recipe = load_recipe(project / "tiny.yaml", [], CATALOGUE)
    return validate_run(run, find_report(store, run, "report"), recipe, store, "cuda")


def test_the_engine_is_measured_where_it_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.engines import tensorrt_session
    from compress.report.document import report_from_json

    monkeypatch.setattr(tensorrt_session, "TensorRTSession", EngineInFloat)
    done = validate_here(copy, monkeypatch)
    report = report_from_json((done.report.path / "report.json").read_bytes())
    assert done.measured == ("engine",)
    assert [(one.name, one.status) for one in report.variants] == [
        ("teacher", "measured"),
        ("engine", "measured"),
        ("float", "measured"),
    ]
    assert report.ladder[-1].hop == "int8 -> engine"
    assert report.variant("engine").session == "tensorrt_rtx cuda"
    assert [gate["variant"] for gate in done.record.gates] == ["engine"]
    assert done.record.exit_code == 0


def test_an_engine_for_another_gpu_is_reported_and_ends_with_7(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.engines import tensorrt_session
    from compress.errors import UnavailableError
    from compress.report.document import report_from_json

    class Refused:
        @staticmethod
        def load(plan: Path, device: str = "cuda", *, graphs: bool = False) -> Any:
            raise UnavailableError("this GPU's compute capability is not among those that it was built for")

    monkeypatch.setattr(tensorrt_session, "TensorRTSession", Refused)
    done = validate_here(copy, monkeypatch)
    engine = report_from_json((done.report.path / "report.json").read_bytes()).variant("engine")
    assert (engine.status, engine.reason) == (
        "not run",
        "this GPU's compute capability is not among those that it was built for",
    )
    assert (done.record.status, done.record.exit_code) == ("done", 7)
    assert done.record.steps[-1].name == "report"


def test_a_measurement_that_fails_is_in_the_record(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.artifacts.store import Store
    from compress.engines import tensorrt_session
    from compress.errors import ModelError

    class Broken:
        @staticmethod
        def load(plan: Path, device: str = "cuda", *, graphs: bool = False) -> Any:
            raise ModelError("TensorRT refuses the run")

    monkeypatch.setattr(tensorrt_session, "TensorRTSession", Broken)
    with pytest.raises(ModelError, match="TensorRT refuses the run"):
        validate_here(copy, monkeypatch)
    record = Store(copy / "artifacts").read_run("tiny-validate-0002")
    assert (record.status, record.exit_code) == ("failed", 5)
    assert (record.steps[-1].status, record.steps[-1].error) == ("failed", "TensorRT refuses the run")
