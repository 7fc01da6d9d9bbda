import json
import os
import shutil
from pathlib import Path

import pytest

from compress.artifacts.store import Store
from compress.errors import ArtifactError, CompressError, ModelError, TryAgainError, UsageError
from compress.pipeline.runner import exit_code

STEPS = ["teacher", "student", "onnx", "report"]


def test_first_run_makes_everything_and_the_second_nothing(bench):
    first = bench.run()
    assert bench.statuses(first) == ["done"] * 4
    assert bench.toy.CALLS == STEPS
    assert (first.status, first.exit_code, first.id) == ("done", 0, "toy-0001")
    second = bench.run()
    assert bench.statuses(second) == ["hit"] * 4
    assert bench.toy.CALLS == []
    assert second.id == "toy-0002"
    assert [step.digest for step in second.steps] == [step.digest for step in first.steps]
    assert bench.drafts() == []
    assert bench.store.latest_run("toy") == second


def test_key_document_holds_all_that_shapes_an_artifact(bench):
    record = bench.run()
    manifests = {name: bench.store.resolve(f"{record.id}:{name}").manifest for name in STEPS}
    teacher = manifests["teacher"].key_document
    assert (teacher["stage"], teacher["version"], teacher["seed"]) == ("train", 1, 3)
    assert isinstance(teacher["config"]["threads"], int)  # `auto` is what it became
    assert list(teacher["data"]) == ["train"]
    assert teacher["libraries"]["pydantic"][0].isdigit()
    student = manifests["student"]
    assert student.key_document["inputs"] == {"teacher": [manifests["teacher"].digest]}
    assert "seed" not in student.key_document
    assert student.inputs["teacher"][0].step == "teacher"
    assert manifests["onnx"].key_document["libraries"] == {"no-such-library": "not installed"}
    report = manifests["report"].key_document
    assert report["ancestors"] == {name: manifests[name].digest for name in ("teacher", "student")}
    assert report["names"] == {"reference": ["teacher"], "variants": ["onnx"]}
    assert list(report["facts"]) == ["cpu"]
    assert manifests["report"].revision == 1
    assert manifests["teacher"].notes == ("trained",)
    assert json.loads(bench.payload(record, "report").read_text())["ancestors"] == ["teacher", "student"]


def test_clones_at_different_paths_have_equal_keys_and_digests(toy, tmp_path, bench_at):
    recipe = toy.RECIPE.replace("text: abc", "text: abc, source: SOURCE")
    found = []
    for name in ("a", "deeper/b"):
        clone = tmp_path / name
        bench = bench_at(clone, recipe.replace("SOURCE", str(clone / "net.py")))  # an absolute path into the clone
        (clone / "net.py").write_text("x = 1")
        record = bench.run(until="onnx")
        found.append([(step.key, step.digest) for step in record.steps])
        assert str(clone) not in (bench.payload(record, "teacher").parents[1] / "manifest.json").read_text()
    assert found[0] == found[1]


def test_equal_bytes_upstream_stop_the_rebuild(bench):
    bench.run("onnx.keep=5")
    record = bench.run("onnx.keep=5", "teacher.temperature=4.0")
    assert bench.statuses(record) == ["done", "hit", "hit", "hit"]  # another key, the same weights


@pytest.mark.parametrize(("split", "ran"), [("test", ["report"]), ("train", ["teacher", "student", "onnx", "report"])])
def test_changed_data_rerun_only_the_steps_that_read_them(bench, split, ran):
    bench.run()
    (bench.path.parent / "data" / f"{split}.txt").write_text("changed")
    bench.run()
    assert ran == bench.toy.CALLS


def test_a_stage_that_fails_publishes_nothing_and_the_next_run_resumes(bench):
    bench.toy.FAULTS["onnx"] = "nan"
    with pytest.raises(ModelError, match="the loss is nan") as caught:
        bench.run()
    assert caught.value.where == "step onnx, epoch 1"
    record = bench.store.latest_run("toy")
    assert (record.status, record.exit_code) == ("failed", 5)
    assert bench.statuses(record) == ["done", "done", "failed", "pending"]
    assert record.step("onnx").error == "the loss is nan"
    assert bench.drafts() == []
    assert len(bench.artifacts()) == 2
    bench.toy.FAULTS.clear()
    assert bench.statuses(bench.run()) == ["hit", "hit", "done", "done"]


@pytest.mark.parametrize(("fault", "said"), [("enospc", "full"), ("native_enospc", "full"), ("refused", "written")])
def test_full_disk_ends_with_75_and_without_a_draft(bench, fault, said):
    bench.toy.FAULTS["student"] = fault
    with pytest.raises(TryAgainError, match=said) as caught:
        bench.run()
    assert caught.value.exit_code == 75
    assert caught.value.where.startswith("step student")
    assert bench.drafts() == []
    assert bench.store.latest_run("toy").exit_code == 75
    assert len(bench.artifacts()) == 1


@pytest.mark.parametrize(("fault", "code"), [("interrupt", 130), ("terminate", 143)])
def test_interrupts_pass_through_after_clean_up(bench, fault, code):
    bench.toy.FAULTS["student"] = fault
    with pytest.raises(KeyboardInterrupt if code == 130 else bench.toy.Stop):
        bench.run()
    record = bench.store.latest_run("toy")
    assert (record.status, record.exit_code) == ("interrupted", code)
    assert bench.statuses(record) == ["done", "failed", "pending", "pending"]
    assert bench.drafts() == []
    bench.toy.FAULTS.clear()
    assert bench.statuses(bench.run())[:2] == ["hit", "done"]


def test_a_bug_keeps_its_type_and_names_the_step(bench):
    bench.toy.FAULTS["student"] = "bug"
    with pytest.raises(ZeroDivisionError) as caught:
        bench.run()
    assert caught.value.__notes__ == ["in step student (stage distill)"]
    record = bench.store.latest_run("toy")
    assert (record.exit_code, record.step("student").error) == (1, "ZeroDivisionError: division by zero")


def test_every_event_names_its_run(bench):
    bench.run()
    events = []
    bench.toy.FAULTS["report"] = "nan"
    with pytest.raises(ModelError):
        bench.run(force=["report"], on_event=events.append)
    assert [event.kind for event in events] == ["hit", "hit", "hit", "start", "failed"]
    assert {event.run for event in events} == {"toy-0002"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nothing", "wrote no file"),
        ("link", "not a regular file: link"),
        ("manifest", r"manifest\.json, which is the store's own"),
        ("nan_metric", "top1 is nan"),
    ],
)
def test_a_stage_that_breaks_its_contract_publishes_nothing(bench, fault, said):
    bench.toy.FAULTS["teacher"] = fault
    with pytest.raises(CompressError, match=said):
        bench.run()
    assert bench.artifacts() == []
    assert bench.drafts() == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_input_is_quarantined_and_made_again(bench, damage):
    record = bench.run()
    weights = bench.payload(record, "teacher")
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[0] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "delete":
        weights.unlink()
    else:
        manifest = weights.parent.parent / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:100])
    events = []
    again = bench.run(force=["student"], on_event=events.append)
    assert bench.toy.CALLS == ["teacher", "student"]
    assert [step.digest for step in again.steps] == [step.digest for step in record.steps]
    quarantine = bench.store.root / "quarantine"
    assert len([path for path in quarantine.iterdir() if path.is_dir()]) == 1
    assert len(list(quarantine.glob("*.reason.txt"))) == 1
    assert ("repair" in [event.kind for event in events]) == (damage == "flip")  # sizes catch the others earlier


def test_whatever_was_made_from_a_damaged_artifact_follows_its_successor(bench):
    record = bench.run()
    weights = bench.payload(record, "teacher")
    weights.write_bytes(weights.read_bytes()[::-1])
    bench.toy.SUFFIX["teacher"] = "another result"
    again = bench.run(force=["report"])  # reads the teacher, long after the student was a hit
    assert bench.toy.CALLS == ["teacher", "student", "onnx", "report"]
    assert all(old.digest != new.digest for old, new in zip(record.steps, again.steps, strict=True))


def test_a_damaged_input_that_may_not_be_made_again_ends_with_6(bench):
    record = bench.run()
    weights = bench.payload(record, "teacher")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(ArtifactError, match=r"'teacher' is damaged: sub/weights\.txt has .*alone") as caught:
        bench.run(only="student", force=["student"])
    assert caught.value.exit_code == 6
    assert caught.value.hint.endswith("--until teacher")


def test_a_disk_that_keeps_damaging_ends_with_6(bench, toy):
    record = bench.run()

    def spoil(event) -> None:
        if event.kind in ("hit", "done") and event.step == "teacher":
            path = bench.payload(record, "teacher")
            path.write_bytes(bytes(len(path.read_bytes())))

    with pytest.raises(ArtifactError, match="damaged again after 2 repairs") as caught:
        bench.run(force=["student"], on_event=spoil)
    assert caught.value.exit_code == 6


def test_a_damaged_report_is_measured_again_before_it_is_judged(bench):
    record = bench.run("gates={verdicts: {top1: pass}}")
    report = bench.payload(record, "report")
    report.write_bytes(report.read_bytes().replace(b"teacher", b"teaches"))
    again = bench.run("gates={verdicts: {top1: pass}}")
    assert bench.toy.CALLS == ["report"]
    assert again.gates[0]["variant"] == "teacher"
    assert again.step("report").status == "done"


def test_gates_are_judged_at_every_run_and_are_in_no_key(bench):
    assert bench.run().exit_code == 0
    for _ in range(2):
        record = bench.run("gates={verdicts: {top1: fail}}")
        assert (bench.statuses(record), record.exit_code, record.status) == (["hit"] * 4, 3, "done")
        assert record.gates[0]["verdict"] == "fail"
    assert bench.run("gates={verdicts: {top1: fail}}", until="onnx").exit_code == 0


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ({}, 0),
        ({"a": "pass"}, 0),
        ({"a": "not run"}, 0),
        ({"a": "inconclusive"}, 4),
        ({"a": "inconclusive", "require": "not run"}, 7),
        ({"require": "not run", "a": "fail", "b": "inconclusive"}, 3),
    ],
)
def test_exit_codes_have_a_precedence(toy, verdicts, code):
    unit = {"variant": "v", "limit": None, "value": None, "unit": "", "detail": ""}
    assert exit_code([toy.GateVerdict(gate=gate, verdict=what, **unit) for gate, what in verdicts.items()]) == code


def test_forced_measurements_add_a_revision_and_overwrite_nothing(bench):
    first = bench.run()
    second = bench.run(force=["report"])
    assert bench.toy.CALLS == ["report"]
    assert [record.step("report").revision for record in (first, second)] == [1, 2]
    assert bench.payload(first, "report").is_file()
    third = bench.run()
    assert third.step("report").path == second.step("report").path
    assert third.step("report").status == "hit"


def test_a_forced_step_that_gives_equal_bytes_keeps_the_artifact(bench):
    first = bench.run()
    second = bench.run(force=["teacher"])
    assert bench.toy.CALLS == ["teacher"]
    assert second.step("teacher").path == first.step("teacher").path
    assert len(bench.artifacts()) == 4


def test_a_forced_step_that_gives_other_bytes_adds_a_revision(bench):
    first = bench.run()
    bench.toy.SUFFIX["teacher"] = "!"
    second = bench.run(force=["teacher"])
    assert bench.toy.CALLS == ["teacher", "student", "onnx", "report"]
    assert second.step("teacher").path == first.step("teacher").path + ".1"
    assert bench.payload(first, "teacher").is_file()
    assert bench.statuses(bench.run()) == ["hit"] * 4


def test_until_runs_what_the_step_needs(bench):
    record = bench.run(until="student")
    assert [step.name for step in record.steps] == ["teacher", "student"]


def test_only_needs_its_inputs(bench):
    with pytest.raises(ArtifactError, match="'teacher' is missing"):
        bench.run(only="student")
    bench.run(until="teacher")
    assert bench.statuses(bench.run(only="student")) == ["hit", "done"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until": "studnt"}, "--until studnt: .* nearest: 'student'"),
        ({"only": "x"}, "--only x"),
        ({"force": ["x"]}, "--force x"),
        ({"until": "onnx", "only": "onnx"}, "contradict"),
        ({"until": "teacher", "force": ["onnx"]}, "--until teacher does not run this step"),
        ({"only": "onnx", "force": ["teacher"]}, "--only onnx does not run this step"),
    ],
)
def test_options_are_checked_before_anything_is_written(bench, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        bench.run(**options)
    assert caught.value.exit_code == 2
    assert not bench.store.root.exists()


def test_missing_data_end_the_step_that_reads_them(bench):
    shutil.rmtree(bench.path.parent / "data")
    with pytest.raises(CompressError, match="no data") as caught:
        bench.run()
    assert caught.value.exit_code == 5
    assert caught.value.where.startswith("step teacher, ")


def test_a_store_that_cannot_be_written_ends_with_75(bench, tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no-such-folder")):
        with pytest.raises(TryAgainError, match="the store") as caught:
            bench.run(store=Store(root))
        assert caught.value.exit_code == 75
        assert "--store" in caught.value.hint


def test_hashes_that_cannot_be_remembered_end_with_75(bench):
    for path in (bench.path.parent / "data").iterdir():
        os.utime(path, (1, 1))  # old enough to be remembered
    (bench.store.root / ".hashes.json").mkdir(parents=True)
    with pytest.raises(TryAgainError, match="the store failed: Is a directory") as caught:
        bench.run()
    assert caught.value.exit_code == 75
    assert (bench.store.latest_run("toy").status, bench.store.latest_run("toy").exit_code) == ("failed", 75)
    assert not list(bench.store.root.glob(".hashes.json.*")), "a draft was left"


def test_a_changed_source_file_reruns_its_step(bench):
    source = bench.path.parent / "net.py"
    source.write_text("x = 1")
    bench.run("teacher.source=net.py")
    source.write_text("x = 2")
    record = bench.run("teacher.source=net.py")
    assert bench.statuses(record) == ["done", "hit", "hit", "hit"]
    source.unlink()
    with pytest.raises(CompressError, match="source file cannot be read"):
        bench.run("teacher.source=net.py")


def test_a_damaged_run_record_stops_nothing(bench):
    first = bench.run()
    (bench.store.root / "runs" / f"{first.id}.json").write_text("{")
    record = bench.run("teacher.text=new")
    assert record.status == "done"
    assert [run.id for run in bench.store.list_runs()] == ["toy-0002"]
    with pytest.raises(ArtifactError, match="record is damaged"):
        bench.store.read_run(first.id)
