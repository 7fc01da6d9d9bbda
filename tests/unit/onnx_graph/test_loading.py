from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

from compress.errors import ModelError
from compress.onnx_graph.lint import lint_foreign
from compress.onnx_graph.loading import check_model, load_onnx, read_onnx, require_finite, save_onnx


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


def with_external_data(model, folder, location="weights.bin", **first):
    """All weights beside the model; `offset` and `length`, if given, are what it says of the first of them."""
    onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    loaded = onnx.load(folder / "a.onnx", load_external_data=False)
    for tensor in loaded.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    for entry in loaded.graph.initializer[0].external_data:
        entry.value = first.get(entry.key, entry.value)
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


def test_a_limit_on_the_size(residual, tmp_path):
    save_onnx(residual, tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size
    assert load_onnx(tmp_path / "a.onnx", limit_bytes=size).graph.node
    with pytest.raises(ModelError, match=f"has {size} bytes; expected 1 to {size - 1}") as caught:
        load_onnx(tmp_path / "a.onnx", limit_bytes=size - 1)
    assert caught.value.exit_code == 5


def test_the_limit_holds_for_external_data_too(residual, tmp_path):
    path = with_external_data(residual, tmp_path)
    total = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert load_onnx(path, limit_bytes=total).graph.node
    with pytest.raises(ModelError, match="external data exceeds the size limit by"):
        load_onnx(path, limit_bytes=path.stat().st_size + 1000)


def test_tensors_that_share_one_stretch_of_a_file_count_each(residual, tmp_path):
    path = with_external_data(residual, tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        del tensor.external_data[1:]  # each is the whole file now
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="exceeds the size limit"):
        load_onnx(path, limit_bytes=path.stat().st_size + 2 * (tmp_path / "weights.bin").stat().st_size)


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["9" * 5000, "-8", "many", "²", ""], ids=["long", "-8", "word", "square", "none"])
def test_external_data_whose_place_is_no_number(residual, tmp_path, key, value):
    path = with_external_data(residual, tmp_path, **{key: value})
    error = refused(path, f"has {key} '{value[:19]}'; expected a number of bytes")
    assert len(error.message) < 200
    assert "weights inside" in error.hint


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "99999999999"), ("length", "99999999999"), ("location", "a\x00b")]
)
def test_external_data_whose_place_makes_no_sense(residual, tmp_path, key, value):
    path = with_external_data(residual, tmp_path, **{key: value})
    assert refused(path, "External data").exit_code == 5


def test_external_data_of_a_constant_node_stays_in_the_folder(build, tmp_path):
    model = build("c = Constant <value = float {1.0}> () logits = Add (image, c)", "float[batch, 1, 8, 8] logits")
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert refused(tmp_path / "a.onnx", "is outside the folder").exit_code == 5


@pytest.mark.parametrize("dims", [[16, 16, 3, 4], [10**9, 10**9], [-1], [16, -16, 3, 3]])
def test_tensors_that_are_not_what_their_shape_says(residual, tmp_path, dims):
    (tensor,) = [t for t in residual.graph.initializer if t.name == "w1"]
    tensor.dims[:] = dims
    (tmp_path / "a.onnx").write_bytes(residual.SerializeToString())
    assert refused(tmp_path / "a.onnx", "w1 does not hold what its shape").exit_code == 5


def test_names_that_are_no_text(residual, tmp_path):
    residual.graph.node[0].name = "zzzzzzzz"
    content = residual.SerializeToString().replace(b"zzzzzzzz", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe")
    (tmp_path / "a.onnx").write_bytes(content)
    assert refused(tmp_path / "a.onnx", "no ONNX model").exit_code == 5


@pytest.mark.parametrize("name", ["folder.onnx", "fifo.onnx"])
def test_what_is_no_plain_file(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name.startswith("folder") else os.mkfifo(path)
    assert refused(path, "There is no ONNX file").exit_code == 5


def test_infinite_masks_are_no_weights(build):
    body = "m = Where (c, image, w) logits = Relu (m)"
    arrays = {"c": np.ones((8, 8), bool), "w": np.full((8, 8), -np.inf, np.float32)}
    require_finite(build(body, "float[batch, 1, 8, 8] logits", **arrays))
    with pytest.raises(ModelError, match=r"w \(64 of 64\)"):
        require_finite(build(body, "float[batch, 1, 8, 8] logits", **{**arrays, "w": arrays["w"] * np.nan}))


def test_flipped_bytes_are_explained_or_harmless(depthwise, tmp_path):
    """Whatever loads can be linted; whatever does not says why. Nothing else may come out."""
    content = bytearray(depthwise.SerializeToString())
    random = np.random.default_rng(0)
    loaded, reasons = 0, []
    for turn in range(300):
        damaged = bytearray(content)
        for position in random.integers(0, len(content) if turn % 2 else 1500, 3):
            damaged[position] = random.integers(0, 256)
        (tmp_path / "a.onnx").write_bytes(damaged)
        try:
            model = read_onnx(tmp_path / "a.onnx")
        except ModelError as error:
            reasons.append(error.message)
            continue
        loaded += 1
        for target in ("tensorrt", "onnxruntime"):
            assert all(finding.message for finding in lint_foreign(model, target))
    assert loaded > 20
    assert len(reasons) > 20
    assert all(reasons)
