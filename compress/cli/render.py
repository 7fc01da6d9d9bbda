"""What people read: aligned columns, and the words for durations, metrics and keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from compress.artifacts.manifest import Manifest, Metric
from compress.report.tables import ABSENT, Table, size_text

KEY_DIGITS = 12
# The one metric that says most about an artifact, best first; another artifact shows its first metric.
_HEADLINES = ("top1", "tensors_calibrated", "int8_operands", "parity_sqnr")


def print_document(document: Any) -> None:
    """Print one JSON document; it is whole before the first byte goes out."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables under their titles, an empty line before each but the first."""
    print("\n\n".join("\n".join(table_lines(table)) for table in tables))


def table_lines(table: Table) -> Iterator[str]:
    """Yield the title if there is one, the header and one line a row, without trailing spaces."""
    if table.title:
        yield table.title
    columns = zip(table.header, *table.rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    for row in (table.header, *table.rows):
        cells = (
            cell.rjust(width) if index in table.numeric else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def duration_text(seconds: float | None) -> str:
    """Return seconds as people say them: `0.3 s`, `12 s`, `3 min 05 s`."""
    if seconds is None:
        return ABSENT
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def metric_text(metric: Metric) -> str:
    """Return a metric with its unit, split and sample count; fractions become percent."""
    where = [part for part in (metric.split, f"n {metric.n:,}" if metric.n is not None else None) if part]
    if metric.unit == "fraction":
        value = f"{100 * metric.value:.2f} %"
    elif metric.unit == "bytes":
        value = size_text(int(metric.value))
    else:
        number = f"{metric.value:,.0f}" if metric.value == int(metric.value) else f"{metric.value:.4g}"
        value = number if metric.unit == metric.name else f"{number} {metric.unit}"
    return f"{metric.name} {value}" + (f" ({', '.join(where)})" if where else "")


def headline(manifest: Manifest) -> str:
    """Return the one metric that says most about an artifact; empty if it has none."""
    by_name = {metric.name: metric for metric in manifest.metrics}
    first = next((by_name[name] for name in _HEADLINES if name in by_name), None)
    chosen = first or next(iter(manifest.metrics), None)
    return metric_text(chosen) if chosen else ""


def short_key(key: str | None, revision: int | None = None) -> str:
    """Return the start of a key, with the revision of a measurement."""
    if key is None:
        return ABSENT
    return key[:KEY_DIGITS] + (f".{revision}" if revision is not None else "")
