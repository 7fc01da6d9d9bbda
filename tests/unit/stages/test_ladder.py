from __future__ import annotations

import pytest

from compress.artifacts.manifest import Kind
from compress.stages.ladder import edges_to, find, line_of, parent_of


@pytest.fixture
def chain(make):
    """Teacher to engine, as `pipelines/digits.yaml` makes it."""
    teacher = make("teacher", Kind.CHECKPOINT)
    student = make("student", Kind.CHECKPOINT, teacher=teacher)
    float_twin = make("float", Kind.ONNX_MODEL, model=student)
    qat = make("qat", Kind.CHECKPOINT, quantized=True, teacher=teacher, student=student)
    onnx = make("onnx", Kind.ONNX_MODEL, quantized=True, model=qat)
    int8 = make("int8", Kind.QUANTIZED_ONNX, quantized=True, model=onnx)
    engine = make("engine", Kind.ENGINE, quantized=True, model=int8)
    return {a.step: a for a in (teacher, student, float_twin, qat, onnx, int8, engine)}


def names(edges):
    return [edge.name for edge in edges]


def test_every_hop_once_and_parents_first(chain):
    edges = edges_to([chain["teacher"], chain["float"], chain["engine"]], chain)

    assert names(edges) == [
        "teacher",
        "teacher -> student",
        "student -> float",
        "student -> qat",
        "qat -> onnx",
        "onnx -> int8",
        "int8 -> engine",
    ]
    assert [edge.is_training for edge in edges] == [True, True, False, True, False, False, False]


def test_qat_descends_from_its_student_not_from_its_teacher(chain):
    assert parent_of(chain["qat"], chain) is chain["student"]
    assert [one.step for one in line_of(chain["onnx"], chain)] == ["onnx", "qat", "student", "teacher"]


def test_an_input_made_again_with_the_same_bytes_is_still_the_parent(chain, make):
    again = make("int8", Kind.QUANTIZED_ONNX, key="another-key", digest="digest-int8", model=chain["onnx"])

    assert parent_of(chain["engine"], {**chain, "int8": again}) is again


def test_a_renamed_step_is_found_by_its_content(chain, make):
    renamed = make("quantized", Kind.QUANTIZED_ONNX, digest="digest-int8", model=chain["onnx"])
    without = {name: one for name, one in chain.items() if name != "int8"}

    assert parent_of(chain["engine"], {**without, "quantized": renamed}) is renamed


def test_of_two_steps_with_the_same_content_the_named_one_is_taken(chain, make):
    twin = make("alias", Kind.QUANTIZED_ONNX, digest="digest-int8", model=chain["onnx"])
    (ref,) = chain["engine"].manifest.inputs["model"]

    assert find(ref, {"alias": twin, **chain}) is chain["int8"]


def test_other_content_is_no_parent(chain, make):
    other = make("int8", Kind.QUANTIZED_ONNX, digest="something else", model=chain["onnx"])

    assert parent_of(chain["engine"], {**chain, "int8": other}) is None
