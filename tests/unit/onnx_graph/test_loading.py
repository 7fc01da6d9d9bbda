from __future__ import annotations

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.onnx_graph.loading import check_model, load_onnx, require_finite, save_onnx


def refused(path, words):
    with pytest.raises(ModelError, match=words) as caught:
        load_onnx(path)
    assert caught.value.exit_code == 5
    assert str(path) in caught.value.where
    return caught.value


def test_what_is_saved_is_loaded(residual, tmp_path):
    save_onnx(residual, tmp_path / "a.onnx")
    save_onnx(load_onnx(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_saving_drops_metadata_but_not_from_the_callers_model(residual, tmp_path):
    residual.doc_string = "/home/someone"
    save_onnx(residual, tmp_path / "a.onnx")
    assert b"someone" not in (tmp_path / "a.onnx").read_bytes()
    assert residual.doc_string == "/home/someone"


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "none.onnx", "There is no ONNX file").exit_code == 5


@pytest.mark.parametrize("content", [b"garbage" * 50, b"\x08\x0a", b"\x00" * 64, b"\xff\xd8\xff\xe0" * 20])
def test_garbage(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    error = refused(tmp_path / "a.onnx", "no ONNX model|graph of 0 nodes")
    assert error.hint


def test_an_empty_file(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    assert refused(tmp_path / "a.onnx", "has 0 bytes; expected 1 to").exit_code == 5


def test_every_truncation_is_refused(residual, tmp_path):
    content = residual.SerializeToString()
    for size in range(1, len(content), len(content) // 40):
        (tmp_path / "a.onnx").write_bytes(content[:size])
        with pytest.raises(ModelError):
            load_onnx(tmp_path / "a.onnx")


def test_a_graph_that_the_checker_refuses(residual, tmp_path):
    residual.graph.node[0].input[1] = "nowhere"
    (tmp_path / "a.onnx").write_bytes(residual.SerializeToString())
    assert refused(tmp_path / "a.onnx", "onnx.checker refuses the graph").exit_code == 5
    with pytest.raises(ModelError, match=r"onnx\.checker refuses"):
        save_onnx(residual, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(residual, tmp_path, value):
    (tensor,) = [t for t in residual.graph.initializer if t.name == "w1"]
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[0, 0, 0, 0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    (tmp_path / "a.onnx").write_bytes(residual.SerializeToString())
    assert refused(tmp_path / "a.onnx", r"NaN or infinite: w1 \(1 of 2304\)").exit_code == 5
    with pytest.raises(ModelError, match="w1"):
        require_finite(residual)


def with_external_data(model, folder, location="weights.bin"):
    onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    loaded = onnx.load(folder / "a.onnx", load_external_data=False)
    for tensor in loaded.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "a.onnx").write_bytes(loaded.SerializeToString())
    return folder / "a.onnx"


def test_external_data_beside_the_model_is_loaded(residual, tmp_path, images, infer):
    expected = infer(residual, images)
    loaded = load_onnx(with_external_data(residual, tmp_path))
    np.testing.assert_array_equal(infer(loaded, images), expected)
    assert not any(tensor.external_data for tensor in loaded.graph.initializer)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_external_data_outside_the_folder(residual, tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"x" * 100_000)
    (tmp_path / "model").mkdir()
    path = with_external_data(residual, tmp_path / "model", location)
    assert refused(path, "is outside the folder; expected a plain file beside the model").exit_code == 5


def test_external_data_behind_a_link(residual, tmp_path):
    (tmp_path / "model").mkdir()
    path = with_external_data(residual, tmp_path / "model", "link.bin")
    (path.parent / "link.bin").symlink_to(path.parent / "weights.bin")
    assert refused(path, "is a symbolic link").exit_code == 5


def test_external_data_behind_a_linked_folder(residual, tmp_path):
    (tmp_path / "model").mkdir()
    path = with_external_data(residual, tmp_path / "model", "sub/weights.bin")
    (path.parent / "sub").symlink_to(path.parent)
    assert refused(path, "is a symbolic link").exit_code == 5


def test_external_data_that_is_missing_or_too_short(residual, tmp_path):
    path = with_external_data(residual, tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert refused(path, "cannot be read|refuses").exit_code == 5
    (tmp_path / "weights.bin").unlink()
    assert refused(path, "is missing").exit_code == 5


def test_check_model_takes_a_sound_graph(residual):
    assert check_model(residual) is None  # nothing is raised
