"""What data files `compress quantize` takes, and what it says of int8 on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.cli.sampling import Tally, parse_range, read_samples
from compress.engines.session import TensorSpec
from compress.errors import DataError, ModelError, UsageError

IMAGE = TensorSpec("image", "float32", ("n", 3, 8, 8))
TOKENS = TensorSpec("tokens", "int64", ("n", "length"))
GOOD = np.random.default_rng(0).random((10, 3, 8, 8), np.float32)


def with_value(value: float) -> np.ndarray:
    array = GOOD.copy()
    array[3, 0, 0, 0] = value
    return array


def save(path: Path, **arrays: object) -> Path:
    np.savez(path / "calib.npz", **arrays)  # type: ignore[arg-type]
    return path / "calib.npz"


def test_an_array_of_the_inputs_name_or_the_only_one(tmp_path: Path) -> None:
    for name in ("image", "x"):
        samples = read_samples(save(tmp_path, **{name: GOOD}), [IMAGE])
        assert (samples.count, samples.total, samples.labels) == (10, 10, None)
        np.testing.assert_array_equal(samples.inputs["image"], GOOD)
    samples = read_samples(save(tmp_path, image=GOOD, other=GOOD, labels=np.arange(10)), [IMAGE])
    assert set(samples.inputs) == {"image"}
    assert [len(batch["image"]) for batch in samples.batches(4)] == [4, 4, 2]


def test_fewer_samples_are_evenly_spaced(tmp_path: Path) -> None:
    path = save(tmp_path, image=GOOD, labels=np.arange(10))
    samples = read_samples(path, [IMAGE], wanted=4)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 3, 6, 9]
    np.testing.assert_array_equal(samples.inputs["image"], GOOD[[0, 3, 6, 9]])
    assert read_samples(path, [IMAGE], wanted=99).count == 10


def test_labels_by_name(tmp_path: Path) -> None:
    for name, given in (("label", None), ("labels", None), ("truth", "truth")):
        samples = read_samples(save(tmp_path, image=GOOD, **{name: np.arange(10)}), [IMAGE], labels_name=given)
        assert samples.labels is not None
        assert samples.labels.tolist() == list(range(10))
    assert read_samples(save(tmp_path, image=GOOD, truth=np.arange(10)), [IMAGE]).labels is None
    with pytest.raises(UsageError, match=r"--labels y is not in .*; arrays that are no input: truth") as caught:
        read_samples(tmp_path / "calib.npz", [IMAGE], labels_name="y")
    assert caught.value.exit_code == 2


def test_a_fixed_batch_gets_whole_batches(tmp_path: Path) -> None:
    assert read_samples(save(tmp_path, image=GOOD), [IMAGE], fixed_batch=4).count == 8
    with pytest.raises(DataError, match="10 samples do not fill one batch of 16"):
        read_samples(save(tmp_path, image=GOOD), [IMAGE], fixed_batch=16)


def test_several_inputs(tmp_path: Path) -> None:
    path = save(tmp_path, image=GOOD, tokens=np.ones((10, 7), np.int64))
    assert set(read_samples(path, [IMAGE, TOKENS]).inputs) == {"image", "tokens"}


def test_an_input_that_is_called_labels(tmp_path: Path) -> None:
    spec = TensorSpec("labels", "float32", ("n", 3, 8, 8))
    samples = read_samples(save(tmp_path, labels=GOOD), [spec])
    assert samples.labels is None
    assert samples.count == 10


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": GOOD.astype(np.float64)}, r"Input image is float64; expected float32"),
        ({"image": (GOOD * 255).astype(np.uint8)}, r"Input image is uint8; expected float32"),
        ({"image": GOOD[:, :1]}, r"Input image has shape \(10, 1, 8, 8\); expected \(n, 3, 8, 8\)"),
        ({"image": GOOD[0]}, r"has shape \(3, 8, 8\); expected \(n, 3, 8, 8\)"),
        ({"image": np.float32(1)}, r"has shape \(\); expected \(n, 3, 8, 8\)"),
        ({"image": GOOD[:0]}, r"at least one; got image 0"),
        ({"image": GOOD * 255}, r"has values from .* to 25\d.*; expected \[0, 1\]"),
        ({"image": GOOD - 1}, r"expected \[0, 1\]"),
        ({"image": with_value(np.nan)}, r"Input image has NaN or infinite values"),
        ({"image": with_value(np.inf)}, r"Input image has NaN or infinite values"),
        ({}, r"The file has no array; the model's input image is missing"),
        ({"x": GOOD, "y": GOOD}, r"The file has x, y; the model's input image is missing"),
        ({"labels": np.arange(10)}, r"The file has no array; the model's input image is missing"),
        ({"image": GOOD, "labels": np.arange(9)}, r"got image 10, labels 9"),
        ({"image": GOOD, "labels": np.ones(10)}, r"The labels are float64 of shape \(10,\)"),
        ({"image": GOOD, "labels": np.ones((10, 2), int)}, r"The labels are int64 of shape \(10, 2\)"),
        ({"image": np.array([{"a": 1}], object)}, r"the inputs cannot be read: Object arrays"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=said) as caught:
        read_samples(path, [IMAGE], value_range=(0.0, 1.0))
    assert caught.value.exit_code == 5
    assert str(path) in caught.value.where


@pytest.mark.parametrize(
    ("spec", "empty"),
    [
        (TOKENS, np.zeros((10, 0), np.int64)),
        (TensorSpec("x", "float32", ("n", "t", 4)), np.zeros((8, 0, 4), np.float32)),
    ],
)
def test_samples_without_values(tmp_path: Path, spec: TensorSpec, empty: np.ndarray) -> None:
    path = save(tmp_path, x=empty)
    with pytest.raises(DataError, match=r"has shape \(\d+, 0.*\): its samples hold no values") as caught:
        read_samples(path, [spec])
    assert caught.value.exit_code == 5
    assert str(path) in caught.value.where


def test_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_samples(save(tmp_path, image=GOOD * 4), [IMAGE], value_range=(0.0, 1.0))
    assert "--range any" in caught.value.hint
    assert read_samples(save(tmp_path, image=GOOD * 4), [IMAGE], value_range=None).count == 10
    with pytest.raises(DataError) as caught:
        read_samples(save(tmp_path, x=GOOD, y=GOOD), [IMAGE])
    assert caught.value.hint == "numpy.savez('calib.npz', image=...)"


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"garbage" * 20])
def test_what_is_no_npz(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "calib.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="the inputs cannot be read") as caught:
        read_samples(path, [IMAGE])
    assert caught.value.exit_code == 5


def test_a_damaged_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "calib.npz", image=GOOD)
    content = bytearray((tmp_path / "calib.npz").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    (tmp_path / "calib.npz").write_bytes(content)
    with pytest.raises(DataError, match="the inputs cannot be read"):
        read_samples(tmp_path / "calib.npz", [IMAGE])


def test_an_array_alone_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", GOOD)
    with pytest.raises(DataError, match="one array, expected an NPZ file"):
        read_samples(tmp_path / "calib.npy", [IMAGE])


@pytest.mark.parametrize(("text", "expected"), [("any", None), ("0,1", (0.0, 1.0)), ("-3, 2.5", (-3.0, 2.5))])
def test_ranges(text: str, expected: tuple[float, float] | None) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "1", "1,0", "0,0", "0,1,2", "a,b", "nan,1", "-inf,inf", "all"])
def test_ranges_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected LOW,HIGH, e\.g\. 0,1, or any"):
        parse_range(text)


def test_sums_over_batches() -> None:
    tally = Tally("logits")
    want = np.array([[3.0, 4.0], [0.0, 5.0], [1.0, 0.0]], np.float32)
    got = want + np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]], np.float32)
    labels = np.array([1, 0, 0])
    for part in (slice(0, 2), slice(2, 3)):
        tally.add(want[part], got[part], labels[part], len(labels[part]))
    change = tally.change()
    assert (change.n, change.agreement, change.top1_before, change.top1_after) == (3, 2 / 3, 2 / 3, 1 / 3)
    assert change.sqnr_db == pytest.approx(10 * np.log10(51 / 4))


def test_outputs_that_are_no_classes() -> None:
    tally = Tally("mask")
    tally.add(np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32), None, 2)
    change = tally.change()
    assert (change.sqnr_db, change.agreement, change.top1_before, change.top1_after) == (None, None, None, None)


@pytest.mark.parametrize(
    ("want", "got", "labels", "kind", "said"),
    [
        (np.ones((2, 3)), np.full((2, 3), np.nan), None, ModelError, "logits of the int8 model is NaN or infinite"),
        (np.full((2, 3), np.inf), np.ones((2, 3)), None, ModelError, "logits of the float model is NaN or infinite"),
        (np.ones((2, 3)), np.ones((2, 4)), None, ModelError, r"has shape \(2, 4\) in int8; expected .* \(2, 3\)"),
        (np.ones((2, 3)), np.ones((2, 3)), np.array([0, 3]), DataError, "labels are from 0 to 3"),
        (np.ones((2, 3)), np.ones((2, 3)), np.array([-1, 0]), DataError, "labels are from -1 to 0"),
        (np.ones((2, 3, 2)), np.ones((2, 3, 2)), np.array([0, 1]), DataError, r"an output of shape \(2, 3, 2\)"),
    ],
)
def test_answers_that_cannot_be_compared(want, got, labels, kind, said) -> None:
    with pytest.raises(kind, match=said) as caught:
        Tally("logits").add(want, got, labels, 2)
    assert caught.value.exit_code == 5
    assert kind is DataError or caught.value.where == "calibration samples 0 to 1"


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (1, 3), (4, 3)])
def test_outputs_without_a_row_for_each_sample(shape: tuple[int, ...]) -> None:
    """A loss, a mean over the batch, a list of boxes: they have no classes, and n is still that of the samples."""
    tally = Tally("loss")
    for _ in range(2):
        tally.add(np.full(shape, 2.0, np.float32), np.full(shape, 1.0, np.float32), None, 2)
    change = tally.change()
    assert (change.n, change.agreement) == (4, None)
    assert change.sqnr_db == (None if 0 in shape else pytest.approx(10 * np.log10(4)))
    with pytest.raises(DataError, match="expected classes from 0 and an output of"):
        tally.add(np.ones(shape, np.float32), np.ones(shape, np.float32), np.array([0, 1]), 2)
