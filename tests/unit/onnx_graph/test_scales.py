from __future__ import annotations

import json

import pytest

from compress.errors import ModelError
from compress.onnx_graph.scales import Scale, ScaleTable


def test_json_is_sorted_and_reads_back():
    table = ScaleTable({"z": Scale(0.1, "entropy"), "a": Scale((0.5, 0.25), "max", 0), "m": Scale(1.0, "qat")})
    text = table.to_json()
    assert list(json.loads(text)) == ["a", "m", "z"]
    assert json.loads(text)["z"] == {"scale": 0.1, "source": "entropy"}
    assert json.loads(text)["a"] == {"scale": [0.5, 0.25], "source": "max", "axis": 0}
    assert ScaleTable.from_json(text) == table
    assert ScaleTable.from_json(text).to_json() == text


def test_an_empty_table():
    assert ScaleTable.from_json(ScaleTable({}).to_json()) == ScaleTable({})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), (), (1.0, 0.0)])
def test_scales_are_positive_and_finite(value):
    with pytest.raises(ModelError, match="positive and finite") as caught:
        Scale(value, "qat")
    assert caught.value.exit_code == 5


def test_tables_of_older_versions_read():
    text = '{"w": {"scale": [0.5], "source": "weights", "axis": 0}, "v": {"scale": 0.5, "source": "max"}}'
    table = ScaleTable.from_json(text)
    assert table == ScaleTable({"w": Scale((0.5,), "weights", 0), "v": Scale(0.5, "max")})


def test_the_source_is_a_known_one():
    with pytest.raises(ModelError, match="Unknown source of a scale: 'guess'"):
        Scale(1.0, "guess")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": 1}', '{"a": {"scale": 1}}', '{"a": {"scale": "x", "source": "qat"}}']
)
def test_malformed_tables(text):
    with pytest.raises(ModelError, match="The scale table is malformed"):
        ScaleTable.from_json(text)
