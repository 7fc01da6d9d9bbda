"""The parts of the comparison with peers that need no peer: reading images, judging figures, remembering results."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from compress.pipeline.machine import library_version


@pytest.fixture
def judging(load) -> ModuleType:
    return load("peers.judging")


def bits(right: list[int]) -> str:
    return base64.b64encode(np.packbits(np.array(right, np.uint8)).tobytes()).decode()


def line(tool: str, seed: int = 0, **fields) -> dict:
    empty = dict.fromkeys(("top1", "speedup_b1", "speedup_b32", "peak_bytes_512", "peak_bytes_8192"))
    return {"model": "resnet", "seed": seed, "tool": tool, "n": 8, **empty, **fields}


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ({"QLinearConv": 15, "QGemm": 1, "Relu": 3}, 1.0),
        ({"QLinearConv": 3, "Conv": 1}, 0.75),
        ({"MatMul": 2}, 0.0),
        ({"QAttention": 1, "MultiHeadAttention": 2, "NhwcFusedConv": 1}, 0.25),
        ({"Convolution:u8": 1, "FullyConnected:i8": 1, "MatMul:f32": 2, "Reorder:u8": 9}, 0.5),
        ({"Add": 4}, None),
        ({}, None),
    ],
)
def test_share_of_layers_in_int8(judging: ModuleType, kernels: dict, expected: float | None) -> None:
    assert judging.int8_share(kernels) == expected


def test_a_row_is_what_was_measured_and_empty_where_it_was_not(judging: ModuleType) -> None:
    measured = {
        "n": 100,
        "tools": {"float": {"top1": 0.9, "int8_share": 0.0}, "nncf": {"top1": 0.89, "int8_share": 1.0}},
        "latency": {"1": {"float": {"ratio": 1.0}, "nncf": {"ratio": 0.5}}},
    }
    small = {"calib_s": 2.5, "peak_bytes": 7}

    row = judging.row("vit", 2, "nncf", measured, small, None, True)
    failed = judging.row("vit", 2, "modelopt", measured, None, None, None)

    assert row == {
        "model": "vit", "seed": 2, "tool": "nncf", "n": 100, "top1": 0.89, "drop_pp": pytest.approx(1.0),
        "speedup_b1": 2.0, "speedup_b32": None, "calib_s": 2.5, "peak_bytes_512": 7, "peak_bytes_8192": None,
        "rtx_builds": True, "int8_share": 1.0,
    }  # fmt: skip
    assert list(failed) == list(row)
    assert {key for key, value in failed.items() if value is not None} == {"model", "seed", "tool", "n"}


def test_a_peer_counts_only_with_every_seed(judging: ModuleType) -> None:
    rows = [
        line(tool, seed, top1=top1)
        for tool, values in {
            "float": (0.99, 0.99),
            "ours": (0.9, 0.9),
            "a": (0.95, None),
            "b": (0.8, 0.9),
            "c": (0.86, 0.86),
        }.items()
        for seed, top1 in enumerate(values)
    ]

    assert judging.complete_peers(rows, "top1") == ["b", "c"]
    assert judging.best_peer(rows, "top1") == "c"
    assert judging.best_peer([row for row in rows if row["tool"] != "ours"], "top1") is None
    assert judging.geometric_mean(rows, "b", "top1") == pytest.approx((0.8 * 0.9) ** 0.5)


def test_answers_are_pooled_over_seeds(judging: ModuleType) -> None:
    correct = {
        0: {"ours": bits([1, 1, 0, 0, 1, 1, 1, 1]), "a": bits([1, 0, 1, 0, 1, 1, 1, 1])},
        1: {"ours": bits([1, 1, 1, 1, 1, 1, 1, 1]), "a": bits([0, 0, 1, 1, 1, 1, 1, 1])},
    }

    assert judging.pooled(correct, 8, "a") == (3, 1, 16)


def test_the_figures_of_a_model(judging: ModuleType) -> None:
    fields = {"peak_bytes_512": 100, "peak_bytes_8192": 104}
    rows = [
        line("float", top1=1.0, speedup_b1=1.0, speedup_b32=1.0),
        line("ours", top1=1.0, speedup_b1=2.0, speedup_b32=2.0, **fields),
        line("a", top1=0.5, speedup_b1=1.9, speedup_b32=1.0),
        line("b", top1=0.9, speedup_b1=1.0, speedup_b32=2.5),
    ]
    everything = bits([1] * 8)
    found = judging.figures("resnet", rows, {0: {"ours": everything, "b": everything}})
    values = {what: (value, sign, limit) for what, value, sign, limit in found}

    # eight equal answers show nothing: the test must not pass
    assert values["resnet, n 8: p of losing 0.2 pp or more against b (Tango)"][0] > 0.05
    assert values["resnet, batch 1: speed over a's"] == (pytest.approx(2 / 1.9), ">=", 0.98)
    assert values["resnet, batch 32: speed over b's"] == (pytest.approx(0.8), ">=", 0.98)
    assert values["resnet, batch 1: speed-up over float"] == (pytest.approx(2.0), ">=", 1.6)
    assert values["resnet, batch 32: speed-up over float"] == (pytest.approx(2.0), ">=", 2.2)
    memory = "resnet, seed 0: peak memory with 8,192 calibration images over that with 512"
    assert values[memory] == (pytest.approx(1.04), "<=", 1.05)
    assert all(limit is None for what, _, _, limit in judging.figures("vit", rows, {}) if "over float" in what)


def test_what_ours_did_not_do_is_a_promise_not_kept(judging: ModuleType) -> None:
    fields = {"top1": 0.9, "speedup_b1": 2.0, "speedup_b32": 2.0, "calib_s": 1.0, "peak_bytes_512": 1}
    rows = [line(tool, seed, rtx_builds=True, **fields) for tool in ("float", "ours", "a") for seed in (0, 1)]
    lacking = {"rtx_builds": None, "top1": None}
    broken = [{**row, **lacking} if (row["tool"], row["seed"]) == ("ours", 1) else row for row in rows]
    alone = [row for row in rows if row["tool"] != "a"]
    nothing = [line(tool, seed, calib_s=None, rtx_builds=None) for tool in ("float", "ours", "a") for seed in (0, 1)]

    def values(rows: list[dict], failures: int) -> list[tuple]:
        return [tuple(found[1:]) for found in judging.completeness("resnet", rows, (0, 1), failures)]

    assert values(rows, 0) == [(2, ">=", 2), (1.0, ">=", 1), (0, "<=", 0), (1, ">=", 1)]
    assert values(broken, 1) == [(1, ">=", 2), (0.5, ">=", 1), (1, "<=", 0), (1, ">=", 1)]
    assert values(alone, 0)[-1] == (0, ">=", 1), "without a peer nothing was compared"
    assert values(nothing, 2) == [(0, ">=", 2), (0.0, ">=", 1), (2, "<=", 0), (0, ">=", 1)]


@pytest.mark.parametrize(
    ("engines", "share"),
    [
        ([{"int8": 3, "float": 0, "unseen": 0}], 1.0),
        ([{"int8": 3, "float": 0, "unseen": 1}], 0.75),
        ([{"int8": 3, "float": 1, "unseen": 0}, {"int8": 4, "float": 0, "unseen": 0}], 0.875),
        ([{"int8": 3, "float": 0, "unseen": 0}, {"builds": False}], 1.0),
        ([{"builds": False}, {}], 0.0),
    ],
)
def test_a_layer_that_is_not_seen_in_the_engine_is_not_taken_for_int8(
    judging: ModuleType, engines: list[dict], share: float
) -> None:
    what, value, sign, limit = judging.engine_share("vit", engines)

    assert "unseen ones included" in what
    assert (value, sign, limit) == (share, ">=", 1)


@pytest.mark.parametrize(
    ("rewritten", "change"), [([1, 1, 1, 0], 0.0), ([1, 1, 1, 1], 25.0), ([0, 0, 1, 0], 50.0), ([1, 1, 0, 1], 0.0)]
)
def test_the_rewrite_is_held_against_the_file_it_started_from(
    judging: ModuleType, rewritten: list[int], change: float
) -> None:
    same, source = bits([1, 1, 1, 1]), bits([1, 1, 1, 0])
    details = [
        {"n": 4, "tools": {"ours": {"correct": one}}, "sources": {"ours": {"correct": other}}}
        for one, other in ((bits(rewritten), source), (same, same))
    ]
    failed = {"n": 4, "tools": {}, "sources": {}}

    ((what, value, sign, limit),) = judging.rewritten("vit", [*details, failed])

    assert what.startswith("vit: largest change of one seed")
    assert (value, sign, limit) == (change, "<=", 0.05)
    assert judging.rewritten("vit", [failed]) == []


def outcome(int8_peers: ModuleType, tmp_path: Path, *, failing: bool, unseen: int = 0) -> int:
    """The exit code of a run of one network whose figures are known; ours fails on the second seed, or not."""
    plan = int8_peers.Plan(("vit",), (0, 1), 10_000, False, tmp_path)
    known = {"model": "vit", "n": 10_000, "rtx_builds": True}
    fields = {"top1": 1.0, "speedup_b1": 2.0, "speedup_b32": 2.0, "calib_s": 1.0, "peak_bytes_512": 1, **known}
    rows, details = [], []
    for seed in plan.seeds:
        here = [tool for tool in ("float", "ours", "a") if not (failing and seed and tool == "ours")]
        rows += [line(tool, seed, **fields) for tool in here]
        if "ours" not in here:
            rows.append(line("ours", seed, model="vit", calib_s=None, rtx_builds=None))
        engines = {"ours": {"int8": 26, "float": 0, "unseen": unseen}} if "ours" in here else {}
        answers = {tool: {"correct": bits([1] * 10_000)} for tool in here}
        sources = {"ours": answers["ours"]} if "ours" in here else {}
        details.append(
            {"model": "vit", "seed": seed, "n": 10_000, "engines": engines, "tools": answers, "sources": sources}
        )
    failures = [{"model": "vit", "seed": 1, "tool": "ours", "message": "ended with 1"}] if failing else []
    # a peer that fails is a gap in the table, not a fault of ours
    failures.append({"model": "vit", "seed": 0, "tool": "nncf", "message": "ended with 1"})
    found = int8_peers.promises(plan, rows, details, failures)
    return int8_peers.write_result(tmp_path / "result.json", {"promises": found})


def test_a_failure_of_ours_reaches_the_exit_code(load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    int8_peers = load("int8_peers")

    assert outcome(int8_peers, tmp_path, failing=False) == 0
    assert "NOT MET" not in capsys.readouterr().out
    assert outcome(int8_peers, tmp_path, failing=False, unseen=1) == 3
    assert "NOT MET   vit: layers of our engine" in capsys.readouterr().out
    assert outcome(int8_peers, tmp_path, failing=True) == 3
    assert capsys.readouterr().out.count("NOT MET") == 3


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """A copy of the sources that keys are made of, to be changed."""
    for name in ("benchmarks", "compress"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path


@pytest.mark.parametrize(
    ("which", "changed"),
    [
        *(("float", f"compress/{name}") for name in ("data/rules.py", "onnx_graph/export.py", "training/loop.py")),
        ("float", "benchmarks/peers/networks.py"),
        ("data", "compress/data/calibration_set.py"),
        *((tool, name) for tool in ("ours", "nncf") for name in ("images.npz", "model.onnx")),
        ("ours", "compress/quantization/histogram.py"),
        ("nncf", "benchmarks/peers/requirements-nncf.txt"),
        ("engine", "compress/engines/onnx_check.py"),
        ("engine", "model.onnx"),
        *(("measured", f"compress/{name}") for name in ("engines/onnxruntime_session.py", "measure/latency.py")),
        ("measured", "compress/onnx_graph/inspect.py"),
        ("measured", "benchmarks/peers/requirements-measuring.txt"),
        *(("measured", name) for name in ("images.npz", "model.onnx", "model.xml", "model.bin")),
    ],
)
def test_a_changed_input_changes_the_key(load, copied: Path, which: str, changed: str) -> None:
    int8_peers = load("int8_peers", copied / "benchmarks")
    model, data = copied / "model.onnx", copied / "images.npz"
    for name in ("model.onnx", "model.xml", "model.bin", "images.npz"):
        (copied / name).write_text(name)
    recipe = load("peers.networks", copied / "benchmarks").RECIPES["vit"] if which == "float" else None
    keys = {
        "data": int8_peers.data_key,
        "float": lambda: int8_peers.float_key(recipe, 0),
        "engine": lambda: int8_peers.engine_key(model),
        "measured": lambda: int8_peers.measuring_key(
            {"files": {"a": str(copied / "model.xml")}, "sources": {"a": str(model)}, "test": str(data)}
        ),
    }
    key = keys.get(which, lambda: int8_peers.calibration_key(which, model, data))
    before = key()
    assert key() == before

    with (copied / changed).open("a") as file:
        file.write("# changed\n")

    assert key() != before


def test_keys_name_the_libraries(load, tmp_path: Path) -> None:
    int8_peers = load("int8_peers")
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")

    ours = int8_peers.calibration_key("ours", model, model)["libraries"]
    assert ours == {name: library_version(name) for name in ("onnx", "onnxruntime", "numpy")}
    assert int8_peers.calibration_key("nncf", model, model)["libraries"] == {}, "its requirements pin them"
    assert set(int8_peers.engine_key(model)["libraries"]) == {"tensorrt-rtx-cu13", "onnx"}


@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_images_are_read_batch_by_batch(load, tmp_path: Path, batch: int) -> None:
    images = np.random.default_rng(0).random((10, 1, 4, 4), dtype=np.float32)
    np.savez(tmp_path / "images.npz", image=images, label=np.arange(10))
    adapter = load("peers.adapter")
    source = adapter.Images(tmp_path / "images.npz", batch)

    batches = list(source)

    assert len(batches) == len(source) == -(-10 // batch)
    np.testing.assert_array_equal(np.concatenate(batches), images)
    np.testing.assert_array_equal(np.concatenate(list(source)), images)  # a second time
    reader = adapter.Reader(source)
    np.testing.assert_array_equal(reader.get_first()["image"], batches[0])
    for expected in batches:
        np.testing.assert_array_equal(reader.get_next()["image"], expected)
    assert reader.get_next() is None


def test_images_of_another_type_are_refused(load, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", image=np.zeros((2, 1, 4, 4)))

    with pytest.raises(ValueError, match="expected float32 in C order, got float64"):
        load("peers.adapter").Images(tmp_path / "images.npz")


def test_peak_memory_grows_with_what_is_touched(root: Path) -> None:
    program = (
        "import numpy, peers.adapter as adapter; before = adapter.peak_bytes(); numpy.ones(2**25, numpy.float32); "
        "print(before, adapter.peak_bytes())"
    )
    # In a process of its own: this one may have had a higher peak in another test.
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root / "benchmarks", check=True)

    before, after = map(int, done.stdout.split())
    assert after - before > 0.9 * 2**27


def test_a_result_is_remembered_for_its_key_alone(load, tmp_path: Path) -> None:
    remembered = load("int8_peers").remembered
    path = tmp_path / "known.json"

    assert remembered(path, {"code": "a"}, lambda: 1) == 1
    assert remembered(path, {"code": "a"}, lambda: 2) == 1
    assert remembered(path, {"code": "b"}, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        remembered(path, {"code": "c"}, lambda: 1 / 0)
    assert remembered(path, {"code": "b"}, lambda: 4) == 3


def test_a_child_that_fails_says_why(load) -> None:
    environments = load("peers.environments")
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such package')"

    with pytest.raises(environments.ChildFailed, match=r"ended with 1: first \| no such package"):
        environments.run_child([sys.executable, "-c", code])
    with pytest.raises(environments.ChildFailed, match=r"not done within 0.2 s"):
        environments.run_child([sys.executable, "-c", "import time; time.sleep(9)"], 0.2)


def test_every_tool_has_its_adapter_and_pinned_requirements(load) -> None:
    int8_peers = load("int8_peers")
    names = {tool.environment for tool in int8_peers.TOOLS.values()} - {None} | {"measuring"}

    assert all((int8_peers.HERE / tool.adapter).is_file() for tool in int8_peers.TOOLS.values())
    for name in names:
        lines = (int8_peers.HERE / f"requirements-{name}.txt").read_text().splitlines()
        packages = [text for text in lines if text and not text.startswith("#")]
        assert packages
        assert all("==" in text and "+" not in text for text in packages), name
