"""Settings of a build, tried on TensorRT-RTX: precisions, several profiles, progress, and what it does not have."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from compress.engines import tensorrt_builder
from compress.engines.availability import check_library
from compress.errors import UsageError
from compress.log import Bar

pytestmark = pytest.mark.skipif(
    not check_library("tensorrt_rtx").available, reason="tensorrt_rtx is not installed (Linux x86-64 only)"
)


def test_half_precision_of_a_float_graph(build, net, int8_of):
    document = build(net(), precision="fp16")
    operations = document["operand_types"]["operations"]
    assert document["precision"] == "fp16"
    assert int8_of(document) == (0, 3, 0, 1)
    assert {tuple(entry["inputs"][:2]) for entry in operations} == {("half", "half")}
    assert [tensor["dtype"] for tensor in document["io"]] == ["float32", "float32"]


def test_half_precision_beside_int8_costs_no_integers(build, net, all_activations, int8_of):
    document = build(net(quantized=all_activations), precision="int8+fp16")
    assert int8_of(document) == (3, 3, 1, 1)
    assert document["operand_types"]["unseen_nodes"] == []


def test_what_is_not_quantized_is_in_half(build, net, all_activations, int8_of):
    document = build(net(quantized=tuple(name for name in all_activations if name != "c2_relu")), precision="int8+fp16")
    assert int8_of(document) == (2, 3, 1, 1)
    (left,) = (entry for entry in document["operand_types"]["operations"] if not entry["int8"])
    assert left["nodes"] == ["c3"]
    assert left["inputs"][0] == "half"


@pytest.mark.parametrize(
    ("quantized", "precision", "message"),
    [
        (True, "fp16", r"quantized, so it cannot be built as fp16: expected int8 or int8\+fp16"),
        (True, "fp32", "quantized, so it cannot be built as fp32"),
        (False, "int8", "not quantized, so it cannot be built as int8: expected fp32 or fp16"),
        (False, "int8+fp16", "not quantized"),
    ],
)
def test_a_precision_that_the_graph_does_not_have(build, net, all_activations, quantized, precision, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(net(quantized=all_activations if quantized else ()), precision=precision)
    assert caught.value.exit_code == 2


def test_several_profiles(build, net):
    document = build(net(), batch=[(1, 1, 1), (8, 32, 64)])
    assert [(entry["index"], entry["min"][0], entry["max"][0]) for entry in document["profiles"]] == [
        (0, 1, 1),
        (1, 8, 64),
    ]


def test_progress_is_told_while_it_builds(build, net, monkeypatch):
    shown = []

    class Shown(Bar):
        def show(self, done, total):
            shown.append((done, total))

    monkeypatch.setattr(tensorrt_builder, "progress", lambda *_: nullcontext(Shown(None, None)))
    monkeypatch.setattr(tensorrt_builder, "_POLL_S", 0.01)
    build(net())
    assert shown
    assert all(0 <= done <= total for done, total in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware_compatibility": "ampere_plus"}, "tensorrt_rtx has no hardware compatibility levels"),
        ({"timing_cache": Path(__file__)}, "tensorrt_rtx has no timing cache: it chooses kernels on the GPU"),
        ({"timing_cache": Path("nowhere")}, "There is no timing cache at nowhere"),
        ({"batch": []}, "at least one range of batches"),
        ({"batch": [(1, 8)]}, "A batch is a smallest, a typical and a largest one"),
        ({"batch": [(1, 8, 64), (9, 8, 64)]}, "batch min above opt"),
    ],
)
def test_settings_that_do_not_exist_here(build, net, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(net(), **options)
    assert caught.value.exit_code == 2
