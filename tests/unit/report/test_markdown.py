from __future__ import annotations

from collections.abc import Callable

from compress.report.document import ReportDocument, joined_report
from compress.report.gates import GatesConfig, judge
from compress.report.markdown import markdown

Report = Callable[..., ReportDocument]


def test_a_report_reads_from_top_to_bottom(report: Report) -> None:
    document = report()
    verdicts = judge(GatesConfig(top1_drop_pp=3.0), document)
    text = markdown(joined_report(document, "run-1", verdicts), verdicts)
    lines = text.splitlines()
    assert lines[0] == "# Report of run run-1"
    assert lines[2].startswith("Reference `teacher`, ratios against float twin `float`; split test, n 450.")
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == [
        "## Variants (test, n 450)",
        "## Latency per call",
        "## Loss ladder (test, n 450)",
        "## Gates",
    ]
    assert "| engine | engine | not run: no NVIDIA driver | - | - | - | - | 1.2 MB |" in lines
    assert "| float -&gt; int8" not in text
    assert "| float -> int8 | 97.78 | 98.00 | 31.5 |" in lines
    assert "- engine: convolutions 9; int8 operands yes" in lines
    assert "- not evaluated: top1_drop_pp of engine" in lines
    assert lines[-1] == "Measured on: cpu Example CPU; threads 2."
    assert text.endswith(".\n")


def test_trainings_stand_under_the_gates(full_report: Report) -> None:
    lines = markdown(full_report(), []).splitlines()
    assert "## Training, at the epoch whose weights were kept; losses in nats per sample" in lines
    assert "| student | 20 | 20 | 98.00 | 0.2100 | 0.1050 |" in lines


def test_every_row_of_a_table_has_the_columns_of_its_header(report: Report) -> None:
    document = report(int8={"session": "a|b", "ratio_to_float": []})
    for block in markdown(document, []).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        counts = {line.replace("\\|", "").count("|") for line in rows}
        assert len(counts) <= 1, block
    assert "a\\|b" in markdown(document, [])


def test_text_from_outside_cannot_break_the_page(report: Report) -> None:
    document = report()
    engine = document.variants[3].model_copy(update={"reason": "driver 12.3\n# <img src=x>|", "facts": {}})
    document = document.model_copy(update={"variants": [*document.variants[:3], engine], "environment": {}})
    text = markdown(document, [])
    assert "| not run: driver 12.3 # &lt;img src=x>\\| |" in text
    assert text.splitlines()[0] == "# Report"
    assert "Measured on" not in text
