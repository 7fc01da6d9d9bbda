"""A whole chain on a few hundred digits: what is printed, what the documents hold, how a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compress.report.document import report_schema

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow

STEPS = ["teacher", "float", "int8", "engine", "report"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: str) -> Path:
    """A project with a recipe that has run once."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").touch()
    (folder / "tiny.yaml").write_text(tiny_recipe)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, cli: Cli) -> subprocess.CompletedProcess[str]:
    """The first run, for people."""
    done = cli("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def ran(first: subprocess.CompletedProcess[str], folder: Path) -> Path:
    """The project, after the first run."""
    return folder


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one document on standard output."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_lines_tables_and_last_line(first: subprocess.CompletedProcess[str]) -> None:
    lines = first.stdout.splitlines()
    assert lines[0] == "tiny: 5 steps, seed 0, store artifacts"
    for line, step in zip(lines[1:6], STEPS, strict=True):
        assert line.split()[0] == step
        assert line.split()[2] == "run"
        assert "(first run)" in line
    assert "top1" in lines[1]
    titles = [line for line in lines if line.startswith(("Variants", "Latency", "Loss ladder", "Gates", "Files"))]
    assert [title.split()[0] for title in titles] == ["Variants", "Latency", "Loss", "Gates", "Files"]
    files = [line.split()[-1] for line in lines if line.startswith("  ")]
    names = ["model.onnx", "model.ort.onnx", "model.plan", "report.json", "tiny-0001.html"]
    assert [Path(file).name for file in files] == names
    assert all(file.startswith("artifacts/") for file in files)
    assert lines[-4] == "training, epoch by epoch: tensorboard --logdir artifacts/traces/tiny-0001"
    assert lines[-2].startswith("tiny-0001: passed; 5 steps, 0 hits, ")
    assert lines[-1] == "not evaluated: top1_drop_pp of engine"
    assert "\x1b" not in first.stdout + first.stderr, "no colours or bars without a terminal"


def test_files_are_where_it_says(ran: Path, first: subprocess.CompletedProcess[str]) -> None:
    for line in first.stdout.splitlines():
        if line.startswith("  "):
            assert (ran / line.split()[-1]).is_file()


def test_second_run_is_all_hits_and_lean(ran: Path) -> None:
    probe = (
        "import sys\nfrom compress.cli.app import main\n"
        "try: main(['run', 'tiny.yaml', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'numpy', 'tensorrt_rtx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ran, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert [step["status"] for step in found["steps"]] == ["hit"] * 5
    assert found["exit_code"] == 0


def test_run_document(ran: Path, cli: Cli) -> None:
    found = document(cli("run", "tiny.yaml", "--json", cwd=ran))
    assert set(found) == {"run", "recipe", "seed", "status", "steps", "gates", "pages", "traces", "exit_code"}
    assert found["traces"] is None, "nothing was trained"
    assert [step["name"] for step in found["steps"]] == STEPS
    for step in found["steps"]:
        assert len(step["key"]) == 64
        assert Path(step["path"], "manifest.json").is_file()
        assert step["seconds"] >= 0
    assert {gate["variant"]: gate["verdict"] for gate in found["gates"]}["engine"] == "not run"


def test_a_profile_is_left_beside_the_run_and_changes_nothing(ran: Path, cli: Cli) -> None:
    command = ("run", "tiny.yaml", "--until", "float", "--set", "steps.teacher.batch_size=32")  # enough steps
    plain = document(cli(*command, "--json", cwd=ran))
    done = cli(*command, "--json", "--profile", "--force", "teacher", cwd=ran)
    found = document(done)
    assert [step["status"] for step in found["steps"]] == ["run", "hit"], done.stderr
    assert [(s["key"], s["digest"]) for s in found["steps"]] == [(s["key"], s["digest"]) for s in plain["steps"]]
    assert Path(found["traces"]) == ran / "artifacts" / "traces" / found["run"]
    names = sorted(path.name.split(".")[0] for path in Path(found["traces"], "teacher").iterdir())
    assert names == ["events", "operators", "profile"]
    again = cli(*command, "--profile", "--force", "teacher", cwd=ran)
    folder = f"artifacts/traces/{again.stdout.splitlines()[-1].partition(':')[0]}"
    assert again.stdout.splitlines()[-4:-2] == [
        f"training, epoch by epoch: tensorboard --logdir {folder}",
        f"profiles of training, for ui.perfetto.dev: {folder}/*/profile.json; "
        "slowest operators: operators.txt beside them",
    ]
    assert f"traces of training  {folder}" in cli("show", folder.rpartition("/")[2], cwd=ran).stdout


def test_a_hit_is_not_profiled_and_says_so(ran: Path, cli: Cli) -> None:
    done = cli("run", "tiny.yaml", "--until", "float", "--profile", cwd=ran)
    assert done.stderr == "warning: teacher: a hit, so it is not profiled; --force teacher trains it again\n"
    assert "profiles of training" not in done.stdout


def test_quiet_keeps_gates_and_the_last_lines(ran: Path, cli: Cli) -> None:
    done = cli("run", "tiny.yaml", "--quiet", cwd=ran)
    assert "Loss ladder" not in done.stdout
    assert "teacher" not in done.stdout.splitlines()[0]
    assert "Gates" in done.stdout
    assert done.stdout.splitlines()[-1] == "not evaluated: top1_drop_pp of engine"
    assert done.stderr == ""


def test_until_and_only(ran: Path, cli: Cli) -> None:
    found = document(cli("run", "tiny.yaml", "--json", "--until", "int8", cwd=ran))
    assert [step["name"] for step in found["steps"]] == ["teacher", "float", "int8"]
    found = document(cli("run", "tiny.yaml", "--json", "--only", "float", "--force", "float", cwd=ran))
    assert {step["name"]: step["status"] for step in found["steps"]} == {"teacher": "hit", "float": "run"}


def test_plan_says_what_changed(ran: Path, cli: Cli) -> None:
    done = cli("plan", "tiny.yaml", "--set", "steps.teacher.epochs=4", cwd=ran)
    assert done.stdout.splitlines()[1].endswith("config changed: epochs 3 -> 4")


@pytest.mark.parametrize(
    ("override", "code", "end"),
    [
        ("gates.size_bytes_max=10", 3, "a gate failed"),
        ("gates.require=[engine]", 7, "a required variant was not run"),
        ("gates.top1_drop_pp=0.01", None, ""),
    ],
)
def test_gates_decide_the_exit_code_of_warm_runs_too(
    ran: Path, cli: Cli, override: str, code: int | None, end: str
) -> None:
    if code == 7 and "no" not in cli("doctor", cwd=ran).stdout.split("NVIDIA GPU")[1].splitlines()[0]:
        pytest.skip("the engine runs here")
    done = cli("run", "tiny.yaml", "--set", override, cwd=ran)
    if code is None:
        assert done.returncode in (3, 4), "450 samples cannot prove a hundredth of a point"
        return
    assert done.returncode == code
    assert f": {end}; 5 steps, 5 hits, " in done.stdout


def test_gates_from_the_command_line_join_those_of_the_recipe(ran: Path, cli: Cli) -> None:
    done = cli("run", "tiny.yaml", "--json", "--gate", "size_bytes_max=10", "--gate", "top1_drop_pp=90", cwd=ran)
    assert done.returncode == 3, done.stderr
    gates = {(gate["gate"], gate["variant"]): gate for gate in document(done)["gates"]}
    assert gates["size_bytes_max", "int8"]["verdict"] == "fail"
    assert gates["top1_drop_pp", "int8"]["limit"] == 90, "in place of the recipe's own"


def test_ls(ran: Path, cli: Cli) -> None:
    found = document(cli("ls", "--json", cwd=ran))
    assert found["runs"][-1]["run"] == "tiny-0001"
    assert found["damaged"] == []
    assert {artifact["stage"] for artifact in found["artifacts"]} >= {
        "train",
        "export",
        "calibrate",
        "engine",
        "benchmark",
    }
    shown = cli("ls", cwd=ran).stdout
    assert "tiny-0001" in shown
    assert "quantized_onnx" in shown


def test_ls_names_damaged_artifacts(ran: Path, cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "export" / "0123456789ab"
    broken.mkdir(parents=True)
    assert "damaged: " in cli("ls", "--store", tmp_path, cwd=ran).stdout
    (entry,) = document(cli("ls", "--store", tmp_path, "--json", cwd=ran))["damaged"]
    assert entry == {"path": str(broken), "reason": "manifest.json is missing"}


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        ("teacher", ("checkpoint ", "config.epochs", "weights.safetensors", "top1")),
        (
            "int8",
            (
                "quantized_onnx ",
                "qdq.gemms_quantized",
                "onnxruntime_cpu.operators.QGemm",
                "model.ort.onnx",
                "(batch, 1, 8, 8)",
            ),
        ),
        ("engine", ("engine ", "plan_sha256", "operand_types.operations", "int8, int8")),
        ("report", ("report ", "Loss ladder", "samples.npz")),
    ],
)
def test_show(ran: Path, cli: Cli, step: str, parts: tuple[str, ...]) -> None:
    shown = cli("show", f"tiny-0001:{step}", cwd=ran)
    assert shown.returncode == 0, shown.stderr
    for part in parts:
        assert part in shown.stdout
    found = document(cli("show", f"tiny-0001:{step}", "--json", cwd=ran))
    key = found["manifest"]["key"]
    assert document(cli("show", key[:12], "--json", cwd=ran))["manifest"]["key"] == key


def test_show_documents(ran: Path, cli: Cli) -> None:
    int8 = document(cli("show", "tiny-0001:int8", "--json", cwd=ran))
    assert set(int8["onnx"]) == {"model.onnx", "model.ort.onnx"}
    assert int8["precision"]["int8_macs"] == 1
    kernels = int8["onnx"]["model.ort.onnx"]["onnxruntime_cpu"]
    assert (kernels["float_layers"], kernels["integer_layers"]) == ([], kernels["operators"]["QGemm"])
    assert int8["onnx"]["model.onnx"]["qdq"]["gemms"] == int8["onnx"]["model.onnx"]["qdq"]["gemms_quantized"]
    engine = document(cli("show", "tiny-0001:engine", "--json", cwd=ran))
    assert engine["engine"]["operand_types"]["gemms"]["int8"] == engine["engine"]["operand_types"]["gemms"]["total"] > 0


def test_show_a_run(ran: Path, cli: Cli) -> None:
    shown = cli("show", "tiny-0001", cwd=ran).stdout
    assert shown.startswith("Run tiny-0001\n")
    assert "Gates" in shown
    assert document(cli("show", "tiny-0001", "--json", cwd=ran))["id"] == "tiny-0001"


def test_report_in_every_form(ran: Path, cli: Cli) -> None:
    found = document(cli("report", "tiny-0001", "--format", "json", cwd=ran))
    assert document(cli("report", "tiny-0001", "--json", cwd=ran)) == found
    assert found["run"] == "tiny-0001"
    assert {gate["gate"] for gate in found["gates"]} == {"top1_drop_pp"}
    jsonschema.validate(found, report_schema())
    shown = cli("report", "tiny-0001", cwd=ran).stdout
    assert shown.startswith("Variants (test, n 450)\n")
    assert shown.endswith("not evaluated: top1_drop_pp of engine\n")
    assert cli("report", "tiny-0001:report", cwd=ran).stdout == shown
    cli("report", "tiny-0001", "--format", "md", "-o", "report.md", cwd=ran)
    assert (ran / "report.md").read_text().startswith("# Report of run tiny-0001\n")
    cli("report", "tiny-0001", "--format", "html", "-o", "report.html", cwd=ran)
    assert (ran / "report.html").read_bytes() == (ran / "artifacts/runs/tiny-0001.html").read_bytes()


def test_every_run_writes_a_page_for_every_benchmark(ran: Path, cli: Cli, tmp_path: Path, tiny_recipe: str) -> None:
    found = document(cli("run", "tiny.yaml", "--json", cwd=ran))
    (path,) = found["pages"].values()
    assert Path(path) == ran / "artifacts" / "runs" / f"{found['run']}.html"
    assert f"<h1>Report of run {found['run']}</h1>" in Path(path).read_text()
    assert document(cli("run", "tiny.yaml", "--json", "--until", "float", cwd=ran))["pages"] == {}
    again = """\
  again:
    stage: benchmark
    reference: teacher
    variants: [float]
    latency: {batches: [1], blocks: 6, slot_iterations: 1, slot_ms: 1, warmup_ms: 1, processes: 2}
gates:"""
    (tmp_path / "twice.yaml").write_text(tiny_recipe.replace("gates:", again))
    twice = document(cli("run", tmp_path / "twice.yaml", "--store", ran / "artifacts", "--json"))
    pages = {step: Path(page) for step, page in twice["pages"].items()}
    assert {step: page.name for step, page in pages.items()} == {
        step: f"{twice['run']}.{step}.html" for step in ("report", "again")
    }
    assert "<dt>Speed" not in pages["again"].read_text(), "it has no float twin"


def test_a_page_that_cannot_be_written_hides_no_gate(ran: Path, cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    subprocess.run(["cp", "-r", ran / "artifacts", store], check=True)
    taken = {int(path.stem.rpartition("-")[2]) for path in store.glob("runs/tiny-*.json")}
    page = store / "runs" / f"tiny-{max(taken) + 1:04}.html"
    page.mkdir()
    done = cli("run", "tiny.yaml", "--json", "--store", store, "--gate", "size_bytes_max=10", cwd=ran)
    assert done.returncode == 3, done.stderr
    found = document(done)
    assert (found["run"], found["exit_code"], found["pages"]) == (page.stem, 3, {})
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "warning"
    assert json.loads(line)["message"].startswith("the report for browsers could not be written: ")


def test_report_of_a_run_without_one(ran: Path, cli: Cli) -> None:
    run = document(cli("run", "tiny.yaml", "--json", "--until", "float", cwd=ran))["run"]
    done = cli("report", run, cwd=ran)
    assert done.returncode == 2
    assert f"run {run} has no finished benchmark" in done.stderr
    done = cli("report", "tiny-0001:float", cwd=ran)
    assert done.returncode == 2
    assert "step 'float' of run tiny-0001 wrote no report; reports: report" in done.stderr


def test_a_damaged_payload_is_not_shown(ran: Path, cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    subprocess.run(["cp", "-r", ran / "artifacts", store], check=True)
    plan = next(store.glob("engine/*/model.plan"))
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    done = cli("show", "tiny-0001:engine", "--store", store, cwd=ran)
    assert done.returncode == 6
    assert "the artifact is damaged: model.plan has another SHA-256" in done.stderr
    assert "quarantine" in done.stderr


def test_a_failed_step_is_in_the_document(ran: Path, cli: Cli) -> None:
    done = cli("run", "tiny.yaml", "--json", "--set", "steps.int8.samples=20", cwd=ran)
    assert done.returncode == 5
    found = document(done)
    assert found["status"] == "failed"
    assert found["exit_code"] == 5
    status = {step["name"]: step["status"] for step in found["steps"]}
    assert status == {"teacher": "hit", "float": "hit", "int8": "failed", "engine": "pending", "report": "pending"}
    assert "where: step int8" in done.stderr
    done = cli("run", "tiny.yaml", "--set", "steps.int8.samples=20", cwd=ran)
    assert done.stdout.splitlines()[3].split()[:3] == ["int8", "calibrate", "failed"]


def test_the_document_of_a_failed_run_is_its_own_and_not_that_of_a_newer_one(
    cli: Cli, tmp_path: Path, tiny_recipe: str
) -> None:
    (tmp_path / "net.py").write_text("""
from pathlib import Path
from compress.artifacts.runs import RunRecord
from compress.artifacts.store import Store
def build():
    record = RunRecord(id="tiny", recipe="tiny", recipe_path="", seed=0, started_at="", steps=())
    assert Store(Path("store")).create_run(record).id == "tiny-0002"
    raise ValueError("no network")
""")
    model = "steps.teacher.model={name: 'net:build'}"
    (tmp_path / "tiny.yaml").write_text(tiny_recipe)
    done = cli("run", "tiny.yaml", "--json", "--store", "store", "--set", model, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    found = document(done)
    assert (found["run"], found["steps"][0]["status"]) == ("tiny-0001", "failed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption(
    ran: Path, cli: Cli, tmp_path: Path, request: pytest.FixtureRequest, number: int, code: int
) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "compress", "run", "tiny.yaml", "--json", "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--set", "steps.teacher.epochs=100000"],
        cwd=ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 60
    while not list(store.glob(".drafts/train-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(4)  # into the training itself
    asked = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    # Where the interrupt lands inside exec(), Python ends by the signal itself, which a shell reports as 130 as well.
    assert process.returncode in (code, -number), err
    assert out == "", "a document is whole or absent"
    assert "what was finished is kept" in err
    assert "Traceback" not in err
    assert not list(store.glob("train/*")), "nothing half made is published"
    assert not list(store.glob(".drafts/train-*"))
    (run,) = document(cli("ls", "--json", "--store", store, cwd=ran))["runs"]
    assert (run["status"], run["exit_code"]) == ("interrupted", code)
