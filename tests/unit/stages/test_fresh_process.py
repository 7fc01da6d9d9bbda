"""Processes that load and time one variant each, on tiny real models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifacts.manifest import Kind
from compress.errors import ModelError, UnavailableError
from compress.stages import STAGES
from compress.stages.fresh_process import CHILD, FreshSlot, FreshVariant, fresh_variant, measure_fresh
from compress.stages.variants import Runnable, runnable_from_artifact

SHORT = FreshSlot(slot_iterations=3, slot_ms=0, warmup_iterations=1, warmup_ms=0)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 256])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 256])],
            [numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def variant(path: Path, name: str = "net", batches: tuple[int, ...] = (1, 4)) -> FreshVariant:
    feeds = {batch: {"image": np.ones((batch, 256), np.float32)} for batch in batches}
    return FreshVariant(name, "onnxruntime", path, feeds, feeds[batches[0]])


def test_every_process_gives_one_median_a_batch(net):
    found = measure_fresh([variant(net, "a"), variant(net, "b", (2,))], processes=2, slot=SHORT)

    assert list(found) == ["a", "b"]
    rows, cold = found["a"]
    assert [(row.batch, len(row.medians_ms)) for row in rows] == [(1, 2), (4, 2)]
    assert [row.batch for row in found["b"][0]] == [2]
    assert cold.processes == 2
    assert cold.load_ms > 0
    assert cold.first_ms > 0
    assert 10e6 < cold.base_bytes <= cold.peak_bytes < 1e9


def test_the_peak_counts_what_the_calls_take(net):
    small = measure_fresh([variant(net, batches=(1,))], processes=1, slot=SHORT)["net"][1]
    large = measure_fresh([variant(net, batches=(1, 50_000))], processes=1, slot=SHORT)["net"][1]

    assert large.peak_bytes - small.peak_bytes > 50e6, "a batch of 50,000 answers takes 51 MB"


@pytest.mark.parametrize(("processes", "names"), [(0, ["a"]), (1, ["a", "a"])])
def test_no_process_and_equal_names_are_refused(net, processes, names):
    with pytest.raises(ValueError, match="expected >= 1 process and different names"):
        measure_fresh([variant(net, name) for name in names], processes=processes)


def test_what_a_process_reports_names_variant_and_file(net):
    net.write_bytes(b"no model")

    with pytest.raises(ModelError, match=r"ONNX Runtime .* refuses the model") as caught:
        measure_fresh([variant(net)], processes=1)

    assert "net in a fresh process" in caught.value.where
    assert "net.onnx" in caught.value.where
    assert caught.value.exit_code == 5


def test_an_absent_file_is_named(net):
    with pytest.raises(ModelError, match=r"There is no ONNX file at .*absent\.onnx"):
        measure_fresh([variant(net.with_name("absent.onnx"))], processes=1)


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", ModelError, r"onnxruntime crashed \(SIGSEGV\); it had said nothing"),
        ("import os; os.kill(os.getpid(), 9)", UnavailableError, "loaded net was killed, as happens when memory runs"),
        ("import sys; sys.exit('what is this?')", RuntimeError, r"net\.onnx ended with 1; .*\n  what is this\?"),
    ],
)
def test_a_process_that_ends_early_names_variant_and_file(net, program, error, said):
    with pytest.raises(error, match=said) as caught:
        measure_fresh([variant(net)], processes=1, command=(sys.executable, "-c", program))

    assert "net in a fresh process" in str(caught.value)
    assert str(net) in str(caught.value)


def test_a_process_that_does_not_end_is_stopped(net):
    with pytest.raises(UnavailableError, match=r"net was not measured within 0\.5 s") as caught:
        measure_fresh(
            [variant(net)], processes=1, timeout_s=0.5, command=(sys.executable, "-c", "import time; time.sleep(60)")
        )

    assert caught.value.exit_code == 7


def test_an_onnx_process_imports_little_and_keeps_its_answers_apart(net, tmp_path):
    np.savez(tmp_path / "feed.npz", np.ones((1, 256), np.float32))
    feed = {"file": str(tmp_path / "feed.npz"), "names": ["image"]}
    slot = {"slot_iterations": 1, "slot_ms": 0, "warmup_iterations": 0, "warmup_ms": 0}
    request = {
        **{
            "runtime": "onnxruntime",
            "path": str(net),
            "base": "",
            "device": "cpu",
            "threads": 1,
            "optimized": True,
            "cuda_graphs": False,
        },
        **{"feeds": {"1": feed}, "first": feed, "slot": slot},
    }
    command = [CHILD[0], "-X", "importtime", *CHILD[1:]]

    done = subprocess.run(
        command, input=json.dumps(request) + "\ngo\n", capture_output=True, text=True, check=True, timeout=60
    )

    ready, measured = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    assert set(measured["measured"]) == {"load_ms", "first_ms", "medians_ms", "base_bytes", "peak_bytes"}
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    packages = {name.partition(".")[0] for name in imported}
    assert "onnxruntime" in packages
    assert not packages & {"torch", "onnx", "scipy", "pydantic", "sklearn"}
    assert "compress.stages" not in imported


def test_a_variant_is_described_by_its_artifact(make):
    images = np.random.default_rng(0).random((3, 1, 2, 2), dtype=np.float32)

    def described(kind: Kind, label: str = "", smallest: int = 1, largest: int | None = None) -> FreshVariant:
        artifact = make("it", kind, config={"backend": "tensorrt_rtx"})
        one = Runnable(artifact, Path("f"), label, None, smallest=smallest, largest=largest)
        object.__setattr__(one, "session", "any")
        return fresh_variant(one, images, (8, 1), base=Path(), device="cuda", threads=2)

    torch, plain = described(Kind.CHECKPOINT), described(Kind.ONNX_MODEL, "onnxruntime cpu")
    signed = described(Kind.ONNX_MODEL, "onnxruntime cpu, unoptimized")
    engine = described(Kind.ENGINE, smallest=4, largest=8)

    assert (torch.runtime, torch.device, torch.path.name) == ("torch", "cuda", "it")
    assert (plain.runtime, plain.device, plain.path, plain.optimized) == ("onnxruntime", "cpu", Path("f"), True)
    assert not signed.optimized
    assert (engine.runtime, engine.device) == ("tensorrt_rtx", "cuda")
    assert (list(plain.feeds), list(engine.feeds)) == ([1, 8], [8])
    assert plain.first["image"].shape == (1, 1, 2, 2)
    assert engine.first["image"].shape == (4, 1, 2, 2)
    np.testing.assert_array_equal(plain.feeds[8]["image"][3:6], images)


@pytest.mark.slow
def test_a_checkpoint_is_measured_in_torch(execute, tmp_path):
    teacher = execute(STAGES["train"], "teacher", model={"name": "mlp", "widths": [8]}, epochs=1)
    runnable = runnable_from_artifact(teacher, tmp_path, device="cpu", threads=1)
    images = np.zeros((4, 1, 8, 8), np.float32)

    one = fresh_variant(runnable, images, (1, 4), base=tmp_path, device="cpu", threads=1)
    rows, cold = measure_fresh([one], processes=2, slot=SHORT)["teacher"]

    assert [(row.batch, len(row.medians_ms)) for row in rows] == [(1, 2), (4, 2)]
    assert cold.peak_bytes > 100e6
