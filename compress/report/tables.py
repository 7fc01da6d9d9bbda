"""The report as tables of strings: formatted once, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.report.document import LatencyRow, RatioRow, ReportDocument, Variant, VerdictLike

ABSENT = "-"


@dataclass(frozen=True)
class Table:
    """A table ready to print; `numeric` holds the indices of the columns that are aligned right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


def report_tables(document: ReportDocument, verdicts: Sequence[VerdictLike]) -> tuple[Table, ...]:
    """All tables of a report, in reading order; those without rows are left out.

    Args:
        document: the report.
        verdicts: of its gates.

    Returns:
        Variants, latency, ladder, gates.
    """
    tables = (variant_table(document), latency_table(document), ladder_table(document), gate_table(verdicts))
    return tuple(table for table in tables if table.rows)


def variant_table(document: ReportDocument) -> Table:
    """Accuracy and size of every variant, with its status and the reason where it was not run."""
    header = ("variant", "kind", "status", "top-1 % (95 %)", "agreement %", "KL nats", "parameters", "size")
    rows = tuple(
        (
            _named(document, variant),
            variant.kind,
            variant.status if variant.reason is None else f"{variant.status}: {variant.reason}",
            _accuracy(variant),
            _percent(variant.agreement),
            ABSENT if variant.mean_kl is None else f"{variant.mean_kl:.4f}",
            ABSENT if variant.parameters is None else f"{variant.parameters:,}",
            ABSENT if variant.size_bytes is None else size_text(variant.size_bytes),
        )
        for variant in document.variants
    )
    return Table(f"Variants ({document.split}, n {document.n:,})", header, rows, frozenset(range(3, 8)))


def latency_table(document: ReportDocument) -> Table:
    """Latency of every measured variant and batch size, and the ratio to the float twin with its interval."""
    header = ("variant", "session", "batch", "p50 ms", "p90 ms", "p99 ms", "n", "ratio to float (95 %)")
    rows: list[tuple[str, ...]] = []
    for variant in document.variants:
        ratios = {row.batch: row for row in variant.ratio_to_float}
        rows += [_latency_row(document, variant, row, ratios.get(row.batch)) for row in variant.latency]
    return Table("Latency per call", header, tuple(rows), frozenset(range(2, 8)))


def ladder_table(document: ReportDocument) -> Table:
    """Accuracy, agreement with the reference and SQNR after every hop."""
    header = ("hop", "top-1 %", "agreement %", "SQNR dB")
    rows = tuple(
        (
            hop.hop,
            _percent(hop.top1),
            _percent(hop.agreement),
            ABSENT if hop.sqnr_db is None else f"{hop.sqnr_db:.1f}",
        )
        for hop in document.ladder
    )
    return Table(f"Loss ladder ({document.split}, n {document.n:,})", header, rows, frozenset(range(1, 4)))


def training_table(document: ReportDocument) -> Table:
    """Every training on the way to the report, at the epoch whose weights were kept."""
    header = ("step", "epochs", "kept epoch", "validation top-1 %", "validation loss", "training loss")
    rows: list[tuple[str, ...]] = []
    for curve in document.curves:
        if not curve.epochs:
            continue
        by_epoch: dict[int | None, dict[str, float | None]] = {epoch.epoch: epoch.values for epoch in curve.epochs}
        values = by_epoch.get(curve.kept, {})
        losses = [values.get(name) for name in ("validation_loss", "loss")]
        cells = [ABSENT if loss is None else f"{loss:.4f}" for loss in losses]
        kept = ABSENT if curve.kept is None else str(curve.kept)
        rows.append((curve.step, str(len(curve.epochs)), kept, _percent(values.get("validation_top1")), *cells))
    title = "Training, at the epoch whose weights were kept; losses in nats per sample"
    return Table(title, header, tuple(rows), frozenset(range(1, 6)))


def gate_table(verdicts: Sequence[VerdictLike]) -> Table:
    """Verdict of every gate, with the numbers that decided it."""
    header = ("gate", "variant", "verdict", "value", "limit", "detail")
    rows = tuple(
        (v.gate, v.variant, v.verdict, _quantity(v.value, v.unit), _quantity(v.limit, v.unit), v.detail)
        for v in verdicts
    )
    return Table("Gates", header, rows, frozenset((3, 4)))


def fact_lines(document: ReportDocument) -> tuple[str, ...]:
    """What is known of variants besides their measurements, one sentence a variant that has facts."""
    return tuple(
        f"{variant.name}: " + "; ".join(f"{name} {_plain(value)}" for name, value in variant.facts.items())
        for variant in document.variants
        if variant.facts
    )


def size_text(size_bytes: int) -> str:
    """Size with a decimal unit: `812 B`, `45.2 kB`, `1.3 MB`."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _latency_row(
    document: ReportDocument, variant: Variant, row: LatencyRow, ratio: RatioRow | None
) -> tuple[str, ...]:
    return (
        _named(document, variant),
        variant.session or ABSENT,
        str(row.batch),
        f"{row.p50_ms:.3f}",
        f"{row.p90_ms:.3f}",
        ABSENT if row.p99_ms is None else f"{row.p99_ms:.3f}",
        f"{row.n:,}" + (" (drifted)" if row.unstable else ""),
        ABSENT if ratio is None else f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
    )


def _named(document: ReportDocument, variant: Variant) -> str:
    roles = [
        role
        for role, name in (("reference", document.reference), ("float twin", document.float_twin))
        if name == variant.name
    ]
    return f"{variant.name} ({', '.join(roles)})" if roles else variant.name


def _accuracy(variant: Variant) -> str:
    if variant.top1 is None or variant.top1_interval is None:
        return ABSENT
    low, high = variant.top1_interval
    return f"{100 * variant.top1:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _percent(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.2f}"


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    if unit == "bytes":
        return size_text(int(value))
    number = f"{value:.2f}" if unit == "pp" else f"{value:.3f}"
    return f"{number} {unit}" if unit == "pp" else number


def _plain(value: str | int | float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
