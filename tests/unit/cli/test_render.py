from __future__ import annotations

import pytest

from compress.artifacts.manifest import Metric
from compress.cli.render import duration_text, metric_text, short_key, table_lines
from compress.report.tables import Table


def test_columns_are_aligned() -> None:
    table = Table("T", ("name", "n"), (("a", "5"), ("long", "10")), frozenset({1}))
    assert list(table_lines(table)) == ["T", "name   n", "a      5", "long  10"]


def test_a_table_without_rows_is_its_header() -> None:
    assert list(table_lines(Table("", ("a", "b"), ()))) == ["a  b"]


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(table_lines(Table("", ("a", "b"), (("1",),))))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric(name="top1", value=0.9871, unit="fraction", split="test", n=1270), "top1 98.71 % (test, n 1,270)"),
        (Metric(name="size", value=45200, unit="bytes"), "size 45.2 kB"),
        (Metric(name="scales_kept", value=41, unit="tensors"), "scales_kept 41 tensors"),
        (Metric(name="parity_sqnr", value=41.23456, unit="dB", n=8), "parity_sqnr 41.23 dB (n 8)"),
    ],
)
def test_metrics_carry_unit_split_and_count(metric: Metric, text: str) -> None:
    assert metric_text(metric) == text


def test_keys_are_short() -> None:
    assert short_key("0123456789abcdef") == "0123456789ab"
    assert short_key("0123456789abcdef", 2) == "0123456789ab.2"
    assert short_key(None) == "-"
