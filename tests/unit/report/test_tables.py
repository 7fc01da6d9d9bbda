from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.report.document import ReportDocument
from compress.report.gates import GatesConfig, judge
from compress.report.tables import (
    fact_lines,
    gate_table,
    ladder_table,
    latency_table,
    report_tables,
    size_text,
    training_table,
    variant_table,
)

Report = Callable[..., ReportDocument]


def test_variants(report: Report) -> None:
    table = variant_table(report())
    assert table.title == "Variants (test, n 450)"
    assert table.header[3:] == ("top-1 % (95 %)", "agreement %", "KL nats", "parameters", "size")
    assert [row[0] for row in table.rows] == ["teacher (reference)", "float (float twin)", "int8", "engine"]
    assert table.rows[2] == (
        "int8", "quantized_onnx", "measured", "97.78 (95.96 to 98.79)", "98.00", "0.0123", "12,345", "56.8 kB",
    )  # fmt: skip
    assert table.rows[3] == ("engine", "engine", "not run: no NVIDIA driver", "-", "-", "-", "-", "1.2 MB")


def test_latencies_leave_out_what_was_not_run(report: Report) -> None:
    table = latency_table(report())
    assert [row[0] for row in table.rows] == ["teacher (reference)"] * 2 + ["float (float twin)"] * 2 + ["int8"] * 2
    assert table.rows[4] == (
        "int8", "onnxruntime cpu", "1", "0.100", "0.110", "0.130", "2,000", "0.800 (0.796 to 0.804)",
    )  # fmt: skip
    assert table.rows[2][-1] == "-"


def test_a_drifted_latency_says_so_and_few_iterations_have_no_99th_percentile(report: Report) -> None:
    row = {"batch": 1, "p50_ms": 0.1, "p90_ms": 0.1, "p99_ms": None, "n": 100, "unstable": True}
    assert latency_table(report(int8={"latency": [row]})).rows[-1][5:7] == ("-", "100 (drifted)")


def test_ladder(report: Report) -> None:
    assert ladder_table(report()).rows == (
        ("teacher -> student", "98.22", "98.20", "-"),
        ("float -> int8", "97.78", "98.00", "31.5"),
    )


def test_a_training_is_shown_at_the_epoch_whose_weights_were_kept(report: Report) -> None:
    epochs = [
        {"epoch": 1, "values": {"loss": 3.0, "validation_top1": 0.5, "validation_loss": 2.0}},
        {"epoch": 2, "values": {"loss": 2.0, "validation_top1": 0.9, "validation_loss": 0.4}},
        {"epoch": 3, "values": {"loss": 1.0, "validation_top1": 0.9, "validation_loss": 0.3}},
        {"epoch": 4, "values": {"loss": 0.5, "validation_top1": 0.8, "validation_loss": 0.1}},
    ]
    curves = [
        {"step": "student", "epochs": epochs, "kept": 3},
        {"step": "few_labels", "epochs": epochs, "kept": 4},
        {"step": "brought", "epochs": []},
        {"step": "odd", "epochs": [{"epoch": 1, "values": {"loss": 1.0, "validation_loss": None}}], "kept": 1},
        {"step": "old", "epochs": epochs},
    ]
    table = training_table(report(curves=curves))
    assert table.header[2] == "kept epoch"
    assert table.rows == (
        ("student", "4", "3", "90.00", "0.3000", "1.0000"),
        ("few_labels", "4", "4", "80.00", "0.1000", "0.5000"),  # not the best one
        ("odd", "1", "1", "-", "-", "1.0000"),
        ("old", "4", "-", "-", "-", "-"),  # a report that does not say which was kept
    )
    assert training_table(report()).rows == ()


def test_gates(report: Report) -> None:
    document = report()
    gates = GatesConfig(top1_drop_pp=3.0, latency_ratio={32: 1.0}, size_bytes_max=2_000_000, require=("engine",))
    rows = [row[:5] for row in gate_table(judge(gates, document)).rows]
    assert rows == [
        ("top1_drop_pp", "int8", "pass", "0.89 pp", "3.00 pp"),
        ("top1_drop_pp", "engine", "not run", "-", "3.00 pp"),
        ("latency_ratio", "int8", "pass", "0.500", "1.000"),
        ("latency_ratio", "engine", "not run", "-", "-"),
        ("size_bytes_max", "int8", "pass", "56.8 kB", "2.0 MB"),
        ("size_bytes_max", "engine", "pass", "1.2 MB", "2.0 MB"),
        ("require", "engine", "not run", "-", "-"),
    ]


def test_empty_tables_are_left_out_and_all_are_rectangular(report: Report) -> None:
    tables = report_tables(report(ladder=[]), [])
    assert [table.title for table in tables] == ["Variants (test, n 450)", "Latency per call"]
    for table in tables:
        assert all(len(row) == len(table.header) for row in table.rows)
        assert max(table.numeric) < len(table.header)


def test_facts_name_their_variant(report: Report) -> None:
    assert fact_lines(report()) == ("engine: convolutions 9; int8 operands yes",)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text
