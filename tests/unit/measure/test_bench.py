"""Model files without a recipe: what they take and what they are fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.engines.availability import why_not
from compress.engines.session import TensorSpec
from compress.errors import ArtifactError, CompressError, DataError, ModelError, NotComparableError, UsageError
from compress.measure.bench import (
    BenchFile,
    check_same_task,
    choose_batches,
    fixed_batch,
    make_feed,
    measure_files,
    open_files,
    read_inputs,
)


def bench_file(inputs: tuple[TensorSpec, ...] = (), **fields: Any) -> BenchFile:
    defaults: dict[str, Any] = {"name": "it", "path": Path("it"), "session": "any"}
    return BenchFile(
        **{**defaults, **fields}, kind="onnx_model", runtime="onnxruntime", label="", inputs=inputs, outputs=()
    )


IMAGE = TensorSpec("image", "float32", ("batch", 8))


def test_names_are_as_short_as_they_can_be(tmp_path, matmul_onnx):
    (tmp_path / "sub").mkdir()
    a, b, other = (matmul_onnx(tmp_path / name) for name in ("a.onnx", "b.onnx", "sub/a.onnx"))

    assert [file.name for file in open_files([a, b], threads=1)] == ["a.onnx", "b.onnx"]
    assert [file.name for file in open_files([a, other], threads=1)] == [str(a), str(other)]
    assert [file.name for file in open_files([a, a], threads=1)] == ["a.onnx", "a.onnx (2)"]


def test_an_onnx_file_says_what_it_takes(tmp_path, matmul_onnx):
    dynamic, fixed = open_files(
        [matmul_onnx(tmp_path / "d.onnx"), matmul_onnx(tmp_path / "f.onnx", batch=8)], threads=1
    )

    assert dynamic.inputs == (IMAGE,)
    assert [dynamic.takes(batch) for batch in (1, 8, 1000)] == [True, True, True]
    assert [fixed.takes(batch) for batch in (1, 8, 9)] == [False, True, False]


@pytest.mark.parametrize(
    ("content", "suffix", "error", "code", "said"),
    [
        (b"no model", ".onnx", ModelError, 5, "ONNX Runtime .* refuses the model"),
        (None, ".onnx", ModelError, 5, "There is no ONNX file at"),
        (b"x", ".pt", UsageError, 2, r"cannot tell what .*it\.pt is, expected a name that ends in \.onnx or \.plan"),
        (b"x", ".plan", ArtifactError, 6, r"The engine has no sidecar: it\.json is missing"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, content, suffix, error, code, said):
    path = tmp_path / f"it{suffix}"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(error, match=said) as caught:
        open_files([path], threads=1)

    assert caught.value.exit_code == code


def test_an_engine_of_other_bytes_is_refused(tmp_path, unreadable_engine):
    unreadable_engine(tmp_path / "it.plan").write_bytes(b"else")

    with pytest.raises(ArtifactError, match="The engine is not the one that was built"):
        open_files([tmp_path / "it.plan"], threads=1)


@pytest.mark.skipif(why_not("tensorrt_rtx") is None, reason="an engine can run here")
def test_an_engine_that_cannot_run_keeps_its_reason_and_has_no_say(tmp_path, matmul_onnx, unreadable_engine):
    engine, net = open_files(
        [unreadable_engine(tmp_path / "it.plan", smallest=2), matmul_onnx(tmp_path / "it.onnx")], threads=1
    )

    assert engine.session is None
    assert engine.reason == why_not("tensorrt_rtx")
    assert (engine.smallest, engine.largest, engine.inputs) == (2, 64, (IMAGE,))
    assert choose_batches([engine, net], None) == (1, 32)


@pytest.mark.parametrize("asked", [True, False])
def test_an_engine_is_loaded_with_cuda_graphs_where_they_are_asked_for(
    tmp_path, matmul_onnx, unreadable_engine, monkeypatch, asked
):
    taken = {}
    monkeypatch.setattr("compress.measure.bench.why_not", lambda backend: None)
    monkeypatch.setattr(
        "compress.engines.tensorrt_session.TensorRTSession.load", lambda path, **options: taken.update(options) or "it"
    )

    engine, _ = open_files(
        [unreadable_engine(tmp_path / "it.plan"), matmul_onnx(tmp_path / "it.onnx")], threads=1, cuda_graphs=asked
    )

    assert (engine.session, taken) == ("it", {"graphs": asked})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [([("batch", 3)], None), ([(4, 3)], 4), ([(4, 3), ("n", 2)], None), ([()], 1), ([(), (2,)], 2)],
)
def test_the_batch_of_a_model_is_its_first_axis(shapes, expected):
    assert fixed_batch([TensorSpec(str(i), "float32", shape) for i, shape in enumerate(shapes)]) == expected


@pytest.mark.parametrize(
    ("limits", "wanted", "expected"),
    [
        ([(1, None)], None, (1, 32)),
        ([(1, None), (8, 8)], None, (8,)),
        ([(1, None), (4, 64)], None, (32,)),
        ([(1, None)], [7, 2, 7], (2, 7)),
    ],
)
def test_batches_that_all_files_take(limits, wanted, expected):
    files = [bench_file(smallest=smallest, largest=largest) for smallest, largest in limits]

    assert choose_batches(files, wanted) == expected


@pytest.mark.parametrize(
    ("limits", "wanted", "error", "said"),
    [
        ([(1, None)], [0], UsageError, "a batch holds at least 1 sample, got 0"),
        ([(1, None)], [], UsageError, "a batch holds at least 1 sample, got none"),
        ([(8, 8)], [8, 9], UsageError, "it takes batches of 8 only, got a batch of 9"),
        ([(2, 64)], [1], UsageError, "it takes batches of 2 to 64, got a batch of 1"),
        ([(8, 8), (4, 4)], None, ModelError, "the files take no common batch: it batches of 8 only; it batches of 4"),
    ],
)
def test_batches_that_some_file_does_not_take(limits, wanted, error, said):
    files = [bench_file(smallest=smallest, largest=largest) for smallest, largest in limits]

    with pytest.raises(error, match=said):
        choose_batches(files, wanted)


def test_synthetic_inputs_fit_their_types():
    specs = (
        TensorSpec("image", "float16", ("batch", 100)),
        TensorSpec("pixels", "uint8", ("n", 10, 10)),
        TensorSpec("codes", "int8", (3, 100)),
        TensorSpec("ids", "int64", ("batch", 100)),
        TensorSpec("mask", "bool", ("batch", 100)),
        TensorSpec("scale", "float32", ()),
    )

    feed = make_feed(bench_file(specs), 5, None, seed=1)

    assert {name: (str(array.dtype), array.shape) for name, array in feed.items()} == {
        "image": ("float16", (5, 100)),
        "pixels": ("uint8", (5, 10, 10)),
        "codes": ("int8", (3, 100)),
        "ids": ("int64", (5, 100)),
        "mask": ("bool", (5, 100)),
        "scale": ("float32", ()),
    }
    assert feed["image"].min() >= 0
    assert feed["image"].max() <= 1
    assert len(np.unique(feed["codes"])) > 100
    assert set(np.unique(feed["ids"])) == {0, 1}
    again, other = (make_feed(bench_file(specs), 5, None, seed=seed)["image"] for seed in (1, 2))
    np.testing.assert_array_equal(feed["image"], again)
    assert not np.array_equal(feed["image"], other)


def test_given_inputs_are_repeated_or_cut():
    image = np.arange(24, dtype=np.float32).reshape(3, 8)
    file = bench_file((IMAGE, TensorSpec("table", "float32", (2, 2))))
    given = {"image": image, "table": np.ones((2, 2), np.float32), "labels": np.zeros(3)}

    feed = make_feed(file, 5, given, seed=0)

    assert list(feed) == ["image", "table"]
    np.testing.assert_array_equal(feed["image"], [*image, *image[:2]])
    np.testing.assert_array_equal(make_feed(file, 2, given, seed=0)["image"], image[:2])
    np.testing.assert_array_equal(feed["table"], np.ones((2, 2)))


@pytest.mark.parametrize(
    ("spec", "given", "said"),
    [
        (IMAGE, {"x": np.ones(3)}, "the inputs lack image; the file has x"),
        (IMAGE, {}, "the inputs lack image; the file has no arrays"),
        (IMAGE, {"image": np.ones((0, 8))}, r"input 'image' has no samples: its shape is \(0, 8\)"),
        (TensorSpec("ids", "int64", ("batch", "words")), None, "input 'ids' has the dynamic axes words beside the"),
    ],
)
def test_inputs_that_do_not_fit(spec, given, said):
    with pytest.raises(DataError, match=said) as caught:
        make_feed(bench_file((spec,)), 2, given, seed=0)

    assert caught.value.exit_code == 5
    assert caught.value.where == "it"


def test_a_batch_beyond_memory_is_refused():
    with pytest.raises(DataError, match=r"a batch of 1000000000000000 does not fit into memory"):
        make_feed(bench_file((IMAGE,)), 10**15, None, seed=0)


def test_inputs_come_from_npz_files(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.ones((2, 8)))
    np.save(tmp_path / "b.npy", np.ones(3))
    np.savez(tmp_path / "c.npz", image=np.array([{}], dtype=object))
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 cut off")

    assert read_inputs(tmp_path / "a.npz")["image"].shape == (2, 8)
    for name, said in {
        "b.npy": "the inputs are one array, expected an NPZ file",
        "c.npz": "the inputs cannot be read: Object arrays cannot be loaded",
        "d.npz": "the inputs cannot be read",
        "absent.npz": "the inputs cannot be read: .*No such file",
    }.items():
        with pytest.raises(DataError, match=said):
            read_inputs(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({}, None, ""),
        ({"classes": 5}, NotComparableError, r"b\.onnx gives outputs of shape \(2, 5\), and a\.onnx of shape \(2, 4\)"),
        ({"features": 9}, NotComparableError, r"b\.onnx takes inputs of shape \(2, 9\), and a\.onnx of shape \(2, 8\)"),
    ],
)
def test_files_must_do_the_same_work(tmp_path, change, error, said, matmul_onnx):
    files = open_files([matmul_onnx(tmp_path / "a.onnx"), matmul_onnx(tmp_path / "b.onnx", **change)], threads=1)
    feeds = {file.name: make_feed(file, 2, None, seed=0) for file in files}

    if error is None:
        check_same_task(files, feeds)
        return
    with pytest.raises(error, match=said) as caught:
        check_same_task(files, feeds)
    assert caught.value.exit_code == 4


def test_inputs_of_another_type_name_the_file(tmp_path, matmul_onnx):
    files = open_files([matmul_onnx(tmp_path / "a.onnx")], threads=1)

    with pytest.raises(CompressError, match="input 'image' has type float64, expected float32") as caught:
        check_same_task(files, {"a.onnx": {"image": np.ones((2, 8))}})

    assert (caught.value.where, caught.value.exit_code) == ("a.onnx", 5)


@pytest.mark.slow
def test_the_budget_is_shared_among_the_batch_sizes(tmp_path, matmul_onnx):
    (file,) = open_files([matmul_onnx(tmp_path / "a.onnx")], threads=1)
    feeds = {batch: {file.name: make_feed(file, batch, None, seed=0)} for batch in (1, 4)}
    seen: list[tuple[int, int, int]] = []

    measured = measure_files([file], feeds, budget_s=6, on_block=lambda *counts: seen.append(counts))

    assert list(measured) == [1, 4]
    assert all(len(one.samples["a.onnx"].block_ms) >= 6 for one in measured.values())
    assert {batch for batch, _, _ in seen} == {1, 4}
    assert all(1 <= done <= total for _, done, total in seen)
