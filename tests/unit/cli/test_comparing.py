"""`compress compare`, `tag` and `report --gate`, each in a process of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.artifacts.fingerprint import document_digest
from compress.artifacts.manifest import Artifact, Kind, Manifest, Source
from compress.artifacts.runs import RunRecord, StepRecord
from compress.artifacts.store import Store
from compress.cli.comparing import print_comparison
from compress.errors import CompressError
from compress.measure.statistics import wilson

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
N = 2000
RIGHT = b"\xff" * (N // 8)


def variant(name: str, kind: str, ms: float, correct: bytes) -> dict[str, Any]:
    right = sum(byte.bit_count() for byte in correct)
    interval = wilson(right, N)
    return {
        "name": name, "kind": kind, "status": "measured", "session": "onnxruntime cpu", "top1": right / N,
        "top1_interval": [interval.low, interval.high], "agreement": 1.0, "mean_kl": 0.0, "size_bytes": 1000,
        "correct": base64.b64encode(correct).decode(),
        "fresh": [{"batch": 1, "medians_ms": [ms * (1 + step / 200) for step in range(-2, 3)]}],
    }  # fmt: skip


def document(*, ms: float = 1.0, correct: bytes = RIGHT, **fields: Any) -> dict[str, Any]:
    variants = [variant("teacher", "checkpoint", 2.0, RIGHT), variant("int8", "quantized_onnx", ms, correct)]
    return {
        "schema_version": 1, "reference": "teacher", "float_twin": None, "split": "test", "n": N, "variants": variants,
        "ladder": [], "environment": {"cpu": "Example"}, "lineage": [], "fingerprint": {"threads": 2, "data": "ab"},
        **fields,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "base": document(),
        "same": document(),
        "slow": document(ms=1.2),
        "open": document(ms=1.05),
        "wrong": document(correct=b"\x0f" * 100 + b"\xff" * 150),
        "threads": document(fingerprint={"threads": 4, "data": "ab"}),
        "data": document(fingerprint={"threads": 2, "data": "cd"}),
        "lost": document(variants=document()["variants"][:1]),
        "version": document(schema_version=2),
        "none": document(variants=[]),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "blank.json").write_text(" \n")
    (tmp_path / "malformed.json").write_text('{"schema_version": 1,')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.json").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("new", "options", "code", "last"),
    [
        ("same", [], 0, "nothing is worse"),
        ("slow", [], 3, "something is worse: int8 latency, batch 1 1.200 x"),
        ("open", [], 4, "inconclusive: int8 latency, batch 1 1.050 x"),
        ("wrong", [], 3, "something is worse: int8 top-1 -20.00 pp"),
        ("slow", ["informational"], 0, "informational: figures without verdicts"),
        ("threads", ["informational"], 0, "informational: figures without verdicts"),
        ("lost", ["informational"], 0, "informational: figures without verdicts"),
        ("slow", ["latency_ratio=1.3"], 0, "the gates passed"),
        ("slow", ["latency_ratio=1.05"], 3, "a gate failed: latency_ratio of int8"),
        ("slow", ["latency_ratio=1.2"], 4, "a gate is inconclusive: latency_ratio of int8"),
        ("wrong", ["top1_drop_pp=30", "latency_ratio=1.1"], 0, "the gates passed"),
        ("same", ["size_bytes_max=999"], 3, "a gate failed: size_bytes_max of int8"),
        ("same", ["require=[int8]"], 0, "the gates passed"),
    ],
)
def test_exit_codes(
    folder: Path, capsys: pytest.CaptureFixture[str], new: str, options: list[str], code: int, last: str
) -> None:
    asked: dict[str, Any] = {"gates": options, "informational": False}
    if options == ["informational"]:
        asked = {"informational": True}
    base = str(folder / "base.json")
    assert print_comparison(base, str(folder / f"{new}.json"), "table", None, folder / "store", **asked) == code
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["base.json"], 2, "Missing argument 'NEW'"),
        (["base.json", "same.json", "--format", "pdf"], 2, "--format"),
        (["base.json", "same.json", "--json", "--format", "md"], 2, "--json and --format md contradict each other"),
        (["base.json", "same.json", "--gate", "latency=1"], 2, "unknown gate 'latency'; nearest: 'latency_ratio'"),
        (["base.json", "same.json", "--informational", "--gate", "top1_drop_pp=1"], 2, "gives no verdict"),
        (["base.json", "same.json", "-o", "absent/x.md"], 2, "cannot write absent/x.md"),
        (["base.json", "threads.json", "--json"], 4, "threads: 2 in the base, 4"),
        (["base.json", "malformed.json"], 6, "the report is not JSON"),
    ],
)
def test_wrong_command_lines(cli: Cli, folder: Path, arguments: list[str], code: int, said: str) -> None:
    done = cli("compare", *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "a document is whole or absent"


@pytest.mark.parametrize(
    ("new", "gates", "code", "said"),
    [
        ("absent.json", [], 2, "there is no file absent.json"),
        ("folder.json", [], 2, "folder.json is a folder"),
        ("no-such-tag", [], 2, "nothing is called 'no-such-tag'"),
        ("digits-0001:report", [], 2, "there is no run 'digits-0001', and no tag of that name"),
        ("same.json", ["latency_ratio"], 2, "expected NAME=VALUE"),
        ("same.json", ["require=[int4]"], 2, "no variant 'int4'; nearest: 'int8'"),
        ("same.json", ["top1_drop_to_float_pp=1"], 2, "no quantized variant beside its float twin to judge"),
        ("lost.json", ["top1_drop_pp=1"], 4, "the new report has no variant 'int8'"),
        ("threads.json", [], 4, "threads: 2 in the base, 4"),
        ("data.json", [], 4, "data: ab in the base, cd"),
        ("lost.json", [], 4, "the new report has no variant 'int8'; it has: teacher"),
        ("version.json", [], 6, "the report has schema version 2, expected 1"),
        ("none.json", [], 6, "reference must be one of the variants [], got 'teacher'"),
        ("blank.json", [], 6, "the report is empty"),
        ("malformed.json", [], 6, "the report is not JSON"),
        ("list.json", [], 6, "schema version None"),
        ("bytes.json", [], 6, "the report is not JSON"),
        ("deep.json", [], 6, "nested too deeply"),
    ],
)
def test_wrong_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, new: str, gates: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(CompressError) as caught:
        print_comparison("base.json", new, "table", None, Path("store"), gates=gates)
    assert caught.value.exit_code == code
    assert said in caught.value.message
    assert caught.value.hint
    if code != 4:
        with pytest.raises(CompressError) as caught:
            print_comparison(new, "base.json", "table", None, Path("store"), gates=gates)
        assert (caught.value.exit_code, said in caught.value.message) == (code, True), "on either side"


def test_formats(cli: Cli, folder: Path) -> None:
    command = ("compare", "base.json", "slow.json")
    found = json.loads(cli(*command, "--json", cwd=folder).stdout)
    assert found == json.loads(cli(*command, "--format", "json", cwd=folder).stdout)
    assert (found["schema_version"], found["exit_code"]) == (1, 3)
    assert found["base"]["name"] == "base.json"
    (slower,) = [claim for claim in found["claims"] if claim["verdict"] == "slower"]
    assert (slower["variant"], slower["metric"], slower["batch"]) == ("int8", "latency", 1)
    assert slower["low"] < slower["change"] < slower["high"]
    assert "# slow.json against base.json" in cli(*command, "--format", "md", cwd=folder).stdout
    junit = ElementTree.fromstring(cli(*command, "--format", "junit", cwd=folder).stdout.encode())
    assert junit.attrib["failures"] == "1"
    done = cli(*command, "--format", "html", "-o", "page.html", cwd=folder)
    assert (done.returncode, done.stdout) == (3, "")
    assert "<html" in (folder / "page.html").read_text()


def test_lean_and_quick(folder: Path) -> None:
    probe = (
        "import sys\nfrom compress.cli.app import main\n"
        "try: main(['compare', 'base.json', 'slow.json', '--format', sys.argv[1], '-o', 'out'])\n"
        "except SystemExit as end: assert end.code == 3, end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'numpy', 'tensorrt_rtx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    for form in ("table", "json", "md", "junit"):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", probe, form], cwd=folder, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - started < 10, "seconds on a busy machine; alone it takes .6"


@pytest.fixture
def stored(folder: Path) -> Path:
    """A store with two runs of a benchmark; the second is slower."""
    store = Store(folder / "artifacts")
    store.prepare()
    for seed, name in enumerate(("base", "slow")):
        made = commit_report(store, (folder / f"{name}.json").read_bytes(), seed)
        step = StepRecord(
            name="report", stage="benchmark", status="done", key=made.manifest.key, digest=made.manifest.digest,
            path=f"benchmark/{made.path.name}", revision=made.manifest.revision,
        )  # fmt: skip
        store.create_run(
            RunRecord(id="tiny", recipe="tiny", recipe_path="t.yaml", seed=0, started_at="2024", steps=(step,))
        )
    return folder


def commit_report(store: Store, content: bytes, seed: int) -> Artifact:
    found = {"stage": "benchmark", "seed": seed}
    key = document_digest(found)
    with store.lock("benchmark", key), store.draft("benchmark", key) as draft:
        (draft / "report.json").write_bytes(content)
        entries, digest = store.seal(draft)
        manifest = Manifest(
            kind=Kind.REPORT, stage="benchmark", stage_version=1, key=key, key_document=found, digest=digest,
            inputs={}, config={}, files=entries, environment={}, source=Source(commit=None, dirty=None),
            created_at="2024-01-01T00:00:00+00:00", duration_s=0.0,
        )  # fmt: skip
        return store.commit(draft, manifest, new_revision=True, step="report")


@pytest.mark.slow
def test_tags_from_giving_to_comparing(cli: Cli, stored: Path) -> None:
    assert cli("tag", "main", "tiny-0001", cwd=stored).stdout == "main names tiny-0001\n"
    assert cli("tag", "main", "tiny-0002", cwd=stored).stdout == "main names tiny-0002 (before: tiny-0001)\n"
    assert cli("tag", "slow", "main", cwd=stored).stdout == "slow names tiny-0002\n"
    moved = json.loads(cli("tag", "main", "tiny-0001", "--json", cwd=stored).stdout)
    assert moved == {"tag": "main", "run": "tiny-0001", "before": "tiny-0002"}
    listed = json.loads(cli("ls", "--json", cwd=stored).stdout)["tags"]
    assert [(tag["tag"], tag["run"]) for tag in listed] == [("main", "tiny-0001"), ("slow", "tiny-0002")]
    assert "\nTags: 2\n" in cli("ls", cwd=stored).stdout
    assert cli("show", "main", cwd=stored).stdout.startswith("Run tiny-0001\n")
    assert json.loads(cli("report", "main", "--json", cwd=stored).stdout)["run"] == "tiny-0001"
    for new in ("slow", "tiny-0002", "slow:report", "slow.json"):
        done = cli("compare", "main", new, "--json", cwd=stored)
        assert done.returncode == 3, done.stderr
        found = json.loads(done.stdout)
        assert (found["base"]["name"], found["base"]["run"], found["new"]["name"]) == ("main", "tiny-0001", new)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tag", "1st", "tiny-0001"], "a tag is a letter"),
        (["tag", "tiny-0009", "tiny-0001"], "would read as a run id or as a key"),
        (["tag", "main", "tiny-0003"], "there is no run 'tiny-0003', and no tag of that name; nearest: tiny-0002"),
        (["compare", "tiny-0001", "mian"], "nothing is called 'mian'; nearest: main"),
        (["compare", "mian:report", "main"], "there is no run 'mian', and no tag of that name; nearest: main"),
        (["compare", "main:repot", "main"], "step 'repot' of run tiny-0001 wrote no report"),
        (["report", "mian"], "there is no run 'mian', and no tag of that name; nearest: main"),
        (["show", "mian"], "nothing is called 'mian'; nearest: main"),
        (["report", "main", "--gate", "sise_bytes_max=1"], "unknown gate 'sise_bytes_max'; nearest: 'size_bytes_max'"),
    ],
)
def test_wrong_names(cli: Cli, stored: Path, arguments: list[str], said: str) -> None:
    assert cli("tag", "main", "tiny-0001", cwd=stored).returncode == 0
    done = cli(*arguments, cwd=stored)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("gate", "code", "verdict"),
    [("size_bytes_max=1000", 0, "pass"), ("size_bytes_max=999", 3, "fail"), ("memory_bytes_max=1", 0, "not run")],
)
def test_report_judges_other_gates(cli: Cli, stored: Path, gate: str, code: int, verdict: str) -> None:
    done = cli("report", "tiny-0001", "--json", "--gate", gate, cwd=stored)
    assert done.returncode == code, done.stderr
    (found,) = json.loads(done.stdout)["gates"]
    assert (found["gate"], found["verdict"]) == (gate.partition("=")[0], verdict)
    assert cli("report", "tiny-0001", "--json", cwd=stored).returncode == 0
