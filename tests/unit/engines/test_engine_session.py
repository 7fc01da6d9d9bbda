"""The session's own logic, on stand-ins for TensorRT and PyCUDA; what a GPU computes is tested in tests/gpu."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing

import numpy as np
import pytest

from compress.engines.build_child import build
from compress.engines.build_messages import BuildLog
from compress.engines.build_request import BuildRequest
from compress.engines.runtime_cache import write_runtime_cache
from compress.engines.sidecar import (
    find_plan,
    read_runtime_cache,
    read_sidecar,
    runtime_cache_path,
    sidecar_path,
    write_sidecar,
)
from compress.engines.tensorrt_session import TensorRTSession
from compress.errors import ArtifactError, DataError, ModelError, UnavailableError, UsageError


@pytest.fixture
def engine(onnx_file, net, tmp_path):
    """Builds with whatever stand-in is installed; returns the plan's path."""

    def run(*, backend="tensorrt", batches=((1, 4, 8),), **options):
        request = BuildRequest(
            onnx_path=onnx_file(net()),
            plan_path=tmp_path / "model.plan",
            answer_path=tmp_path / "answer.json",
            log_path=tmp_path / "log.jsonl",
            progress_path=tmp_path / "progress",
            cache_path=tmp_path / "timing_cache",
            backend=backend,
            batches=batches,
            input_name="image",
            **options,
        )
        with closing(BuildLog(request.log_path)) as log:
            sidecar = build(request, log)
        # The stand-in runs on this GPU; the test machine itself may have another, or none.
        write_sidecar(sidecar.model_copy(update={"compute_capabilities": ("8.9",)}), sidecar_path(request.plan_path))
        return request.plan_path

    return run


@pytest.fixture
def load(monkeypatch):
    monkeypatch.setattr("compress.engines.tensorrt_session.obstacle", lambda backend: None)
    return TensorRTSession.load


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 3, 8, 8), np.float32)


def answer(batch: np.ndarray) -> np.ndarray:
    return (batch.reshape(len(batch), -1).sum(1)[:, None] * np.arange(1, 11)).astype(np.float32)


def test_one_profile(tensorrt, pycuda, engine, load):
    trt = tensorrt("10.16.2")
    pycuda()
    session = load(engine())
    for batch in (1, 8, 3):
        np.testing.assert_array_equal(session.run({"image": images(batch)})["logits"], answer(images(batch)))
    assert "profile 0" not in trt.calls
    assert session.batch_ranges == ((1, 8),)
    assert session.telemetry() is None or session.telemetry()["temperature_c"] is not None
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"image": images(1)})


@pytest.mark.parametrize("version", ["10.16.2", "11.4.1"])
def test_the_profile_that_holds_the_batch_is_chosen(tensorrt, pycuda, engine, load, version):
    trt = tensorrt(version)
    pycuda()
    session = load(engine(batches=((1, 1, 2), (1, 8, 16), (32, 32, 64))))
    trt.calls.clear()
    for batch in (1, 2, 3, 16, 64, 1):
        np.testing.assert_array_equal(session.run({"image": images(batch)})["logits"], answer(images(batch)))
    assert [call for call in trt.calls if call.startswith("profile")] == [
        "profile 0",  # the largest was the last to be measured when buffers were made
        "profile 1",
        "profile 2",
        "profile 0",
    ]
    with pytest.raises(
        DataError, match="A batch of 20 is outside the engine's profiles: expected 1 to 2, or 1 to 16, or 32"
    ):
        session.run({"image": images(20)})
    session.close()


def test_graphs_are_captured_after_the_first_run_of_each_shape(tensorrt, pycuda, engine, load):
    trt = tensorrt("10.16.2")
    _, driver = pycuda()
    session = load(engine(), graphs=True)
    assert session.describe()["cuda_graphs"] == "yes"
    trt.calls.clear()
    for seed in range(4):
        np.testing.assert_array_equal(session.run({"image": images(2, seed)})["logits"], answer(images(2, seed)))
    assert trt.calls == ["run", "run"]  # the first, and the one that was captured
    assert driver.calls == ["begin", "end", "instantiate", "launch", "launch", "launch"]
    np.testing.assert_array_equal(session.run({"image": images(5)})["logits"], answer(images(5)))
    assert driver.calls[6:] == ["begin", "end", "instantiate"]
    assert session.timed({"image": images(5)})() == 0.5
    session.close()
    assert driver.calls[-4:] == ["destroy executable", "destroy graph"] * 2


def test_another_profile_voids_the_graphs(tensorrt, pycuda, engine, load):
    tensorrt("11.4.1")
    _, driver = pycuda()
    session = load(engine(batches=((1, 1, 1), (2, 4, 8))), graphs=True)
    for batch in (1, 1, 4, 4, 1):
        np.testing.assert_array_equal(session.run({"image": images(batch)})["logits"], answer(images(batch)))
    assert driver.calls.count("begin") == 3
    assert driver.calls.count("destroy graph") == 2
    session.close()


@pytest.mark.parametrize("fails", ["begin", "end", "instantiate"])
def test_a_capture_that_fails_is_said_and_runs_go_on(tensorrt, pycuda, engine, load, fails):
    tensorrt("10.16.2")
    _, driver = pycuda(fails=fails)
    session = load(engine(), graphs=True)
    for seed in range(3):
        np.testing.assert_array_equal(session.run({"image": images(2, seed)})["logits"], answer(images(2, seed)))
    assert driver.calls.count("begin") == 1
    assert session.describe()["cuda_graphs"] == "no: CUDA error 1"
    session.close()


def test_an_engine_that_cannot_be_captured_is_not(tensorrt, pycuda, engine, load):
    tensorrt("1.7.1", name="tensorrt_rtx", late=True, capturable=False)
    _, driver = pycuda()
    session = load(engine(backend="tensorrt_rtx"), graphs=True)
    session.run({"image": images(1)})
    session.run({"image": images(1)})
    assert driver.calls == []
    assert session.describe()["cuda_graphs"] == "no: the engine cannot be captured from a stream"
    session.close()


def test_without_asking_there_are_no_graphs(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    _, driver = pycuda()
    session = load(engine())
    session.run({"image": images(1)})
    assert (driver.calls, session.describe()["cuda_graphs"]) == ([], "no: not asked for")
    session.close()


# --- what is compiled at run time


def test_a_runtime_cache_is_made_kept_and_taken_up(tensorrt, pycuda, engine, load):
    tensorrt("1.7.1", name="tensorrt_rtx", late=True)
    pycuda()
    plan = engine(backend="tensorrt_rtx", batches=((1, 1, 1), (2, 4, 8)))
    path = write_runtime_cache(plan)
    assert path == runtime_cache_path(plan)
    assert json.loads(path.read_bytes()) == {"gpu": "8.9", "compiled": 2}  # the typical batch of both profiles
    assert read_sidecar(sidecar_path(plan)).runtime_cache_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    session = load(plan)
    assert session.describe()["runtime_cache"] == "warm"
    session.close()
    tensorrt("1.7.1", name="tensorrt_rtx", late=True, gpu="12.0")
    session = load(plan)
    assert session.describe()["runtime_cache"].startswith("cold: compiled by another version")
    session.close()


def test_only_the_recorded_runtime_cache_is_let_in(tensorrt, pycuda, engine, load):
    tensorrt("1.7.1", name="tensorrt_rtx", late=True)
    pycuda()
    plan = engine(backend="tensorrt_rtx")
    assert read_runtime_cache(plan, read_sidecar(sidecar_path(plan))) is None
    path = write_runtime_cache(plan)
    path.write_bytes(b"else")
    with pytest.raises(ArtifactError, match="not the one that was made") as caught:
        load(plan)
    assert caught.value.exit_code == 6
    path.unlink()
    with pytest.raises(ArtifactError, match=r"runtime cache is missing: model\.runtime_cache"):
        load(plan)


def test_a_backend_that_compiles_when_it_builds_has_none(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    pycuda()
    with pytest.raises(UsageError, match="tensorrt has no runtime cache") as caught:
        write_runtime_cache(engine())
    assert caught.value.exit_code == 2


# --- refusals


def test_another_gpu_is_refused(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    pycuda(capability=(7, 5), name="Old GPU")
    with pytest.raises(UnavailableError, match=r"cannot run on Old GPU, compute capability 7\.5: .* 8\.9") as caught:
        load(engine())
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(("capability", "runs"), [((9, 0), True), ((7, 5), False)])
def test_a_compatible_engine_runs_on_later_gpus(tensorrt, pycuda, engine, load, capability, runs):
    tensorrt("10.16.2")
    pycuda(capability=capability)
    plan = engine(hardware_compatibility="ampere_plus")
    if runs:
        load(plan).close()
    else:
        with pytest.raises(UnavailableError, match="ampere_plus"):
            load(plan)


@pytest.mark.parametrize(
    ("version", "compatible", "rule"),
    [
        ("10.17.0", False, "an engine runs only in the version that built it"),
        ("10.17.0", True, "it needs the lean runtime of the version that built it, which is not loaded here"),
        ("10.3.0", True, "it needs the lean runtime"),
    ],
)
def test_other_versions(tensorrt, pycuda, engine, load, version, compatible, rule):
    tensorrt("10.16.2")
    pycuda()
    plan = engine(version_compatible=compatible)
    tensorrt(version)
    with pytest.raises(
        UnavailableError, match=rf"built by tensorrt 10\.16\.2, and {version} is installed; .*{rule}"
    ) as got:
        load(plan)
    assert got.value.exit_code == 7


def test_a_version_compatible_engine_runs_in_its_own_version(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    pycuda()
    session = load(engine(version_compatible=True))
    np.testing.assert_array_equal(session.run({"image": images(2)})["logits"], answer(images(2)))
    session.close()


def test_the_backend_says_why_an_engine_is_invalid(tensorrt, pycuda, engine, load):
    trt = tensorrt("1.7.1", name="tensorrt_rtx", late=True)
    pycuda()
    plan = engine(backend="tensorrt_rtx")
    trt.validity = (trt.EngineValidity.INVALID, 2 | 4)
    with pytest.raises(UnavailableError, match=r"compute capability is not among .*; the NVIDIA driver is too old"):
        load(plan)


@pytest.mark.parametrize(
    ("version", "options"),
    [("10.16.2", {}), ("11.4.1", {}), ("1.7.1", {"name": "tensorrt_rtx", "late": True})],
    ids=["10", "11", "rtx"],
)
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(b"fake-plan:", b"else", "magicTag failed"), (b'"version": "1', b'"version": "9', "not compatible with this")],
    ids=["garbage", "another version"],
)
def test_a_plan_that_the_backend_does_not_load(tensorrt, pycuda, engine, load, version, options, old, new, said):
    """Its bytes are those that the sidecar tells of; the backend returns no engine for them."""
    tensorrt(version, **options)
    pycuda()
    path = engine(backend=options.get("name", "tensorrt"))
    plan = path.read_bytes().replace(old, new)
    sidecar = read_sidecar(sidecar_path(path))
    changed = {"plan_sha256": hashlib.sha256(plan).hexdigest(), "plan_bytes": len(plan)}
    path.write_bytes(plan)
    write_sidecar(sidecar.model_copy(update=changed), sidecar_path(path))
    with pytest.raises(UnavailableError, match=rf"The engine does not start: .*{said}") as caught:
        load(path)
    assert caught.value.exit_code == 7
    assert "build the engine again" in caught.value.hint


def test_tensors_that_the_sidecar_does_not_know(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    pycuda()
    plan = engine()
    sidecar = read_sidecar(sidecar_path(plan))
    write_sidecar(sidecar.model_copy(update={"io": sidecar.io[:1]}), sidecar_path(plan))
    with pytest.raises(ArtifactError, match="The engine has tensors"):
        load(plan)


def test_a_shape_that_the_engine_refuses(tensorrt, pycuda, engine, load):
    tensorrt("10.16.2")
    pycuda()
    plan = engine()
    sidecar = read_sidecar(sidecar_path(plan))
    wider = tuple(profile.model_copy(update={"max": (9, *profile.max[1:])}) for profile in sidecar.profiles)
    write_sidecar(sidecar.model_copy(update={"profiles": wider}), sidecar_path(plan))
    with pytest.raises(ModelError, match="TensorRT refuses shape"):
        load(plan)


# --- which plan of several


def test_the_plan_for_this_gpu_is_found(tmp_path):
    for name in ("model-8.6.plan", "model-8.9.plan"):
        (tmp_path / name).touch()
    assert find_plan(tmp_path, "8.9").name == "model-8.9.plan"
    assert find_plan(tmp_path, "9.0").name == "model-8.6.plan"
    assert find_plan(tmp_path).name == "model-8.6.plan"
    (tmp_path / "model.plan").touch()
    assert find_plan(tmp_path, "8.9").name == "model.plan"
    assert find_plan(tmp_path / "empty").name == "model.plan"
