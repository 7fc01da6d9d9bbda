"""From measurements to the rows of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compress.measure.latency import LatencySamples, Measurement, latency_ratio
from compress.measure.statistics import mcnemar_p, wilson
from compress.report.document import (
    LatencyRow,
    Paired,
    ParityRow,
    RatioRow,
    Variant,
    VariantKind,
    WorstClass,
)

if TYPE_CHECKING:
    from compress.measure.fidelity import ClassChange, Fidelity, Parity

Facts = dict[str, str | int | float | bool | None]


def measured_variant(
    name: str,
    kind: VariantKind,
    *,
    session: str,
    against_reference: Fidelity,
    against_float: Fidelity | None = None,
    parity_to_float: Parity | None = None,
    worst_class: tuple[str, ClassChange] | None = None,
    parameters: int | None = None,
    size_bytes: int | None = None,
    latency: list[LatencyRow] | None = None,
    ratio_to_float: list[RatioRow] | None = None,
    facts: Facts | None = None,
) -> Variant:
    """Put one variant's measurements together.

    Args:
        name: of the variant.
        kind: of its artifact.
        session: what ran it and where; the same text for variants whose latencies may be compared.
        against_reference: its logits against the reference's (the reference: against its own).
        against_float: its logits against the float twin's; None for the twin itself or where there is none.
        parity_to_float: distance from the float twin's logits.
        worst_class: the class's name and its change against the reference.
        parameters: of the network; None where nobody counted.
        size_bytes: of the file that the session loads.
        latency: from `latency_rows`.
        ratio_to_float: from `ratio_rows`.
        facts: what is known besides.

    Returns:
        A variant with status `measured`.
    """
    interval = wilson(against_reference.correct, against_reference.n)
    return Variant(
        name=name,
        kind=kind,
        status="measured",
        session=session,
        top1=against_reference.top1,
        top1_interval=(interval.low, interval.high),
        agreement=against_reference.agreement,
        mean_kl=against_reference.mean_kl,
        parameters=parameters,
        size_bytes=size_bytes,
        latency=latency or [],
        ratio_to_float=ratio_to_float or [],
        paired_to_reference=_paired(against_reference),
        paired_to_float=None if against_float is None else _paired(against_float),
        parity_to_float=None if parity_to_float is None else _parity(parity_to_float),
        worst_class=None if worst_class is None else _worst_class(*worst_class),
        facts=facts or {},
    )


def variant_not_run(
    name: str,
    kind: VariantKind,
    reason: str,
    *,
    parameters: int | None = None,
    size_bytes: int | None = None,
    facts: Facts | None = None,
) -> Variant:
    """Record a variant that this machine cannot run.

    Args:
        name: of the variant.
        kind: of its artifact.
        reason: e.g. `no NVIDIA driver`; not empty.
        parameters: of the network.
        size_bytes: of the file that a session would load.
        facts: what was proven without running it.

    Returns:
        A variant with status `not run`.
    """
    return Variant(
        name=name,
        kind=kind,
        status="not run",
        reason=reason,
        parameters=parameters,
        size_bytes=size_bytes,
        facts=facts or {},
    )


def latency_rows(measurements: Mapping[int, Measurement], name: str) -> list[LatencyRow]:
    """Summarize one variant's latencies.

    Args:
        measurements: batch size -> measurement.
        name: of the variant.

    Returns:
        A row a batch size, ascending; batch sizes at which it was not measured are left out.
    """
    rows: list[LatencyRow] = []
    for batch, measurement in sorted(measurements.items()):
        if name in measurement.samples:
            samples, trend = measurement.samples[name], measurement.drift[name]
            rows.append(
                LatencyRow(
                    batch=batch,
                    p50_ms=samples.percentile_ms(50),
                    p90_ms=samples.percentile_ms(90),
                    p99_ms=samples.p99_ms,
                    n=len(samples.samples_ms),
                    drift=trend.change,
                    unstable=trend.unstable,
                )
            )
    return rows


def ratio_rows(measurements: Mapping[int, Measurement], name: str, twin: str) -> list[RatioRow]:
    """Compare one variant's latencies with its float twin's, in the same blocks.

    Args:
        measurements: batch size -> measurement.
        name: of the variant.
        twin: of the float twin, which ran in the same kind of session.

    Returns:
        A row a batch size at which both were measured, ascending; `latency(name) / latency(twin)`.
    """
    pairs: dict[int, tuple[LatencySamples, LatencySamples]] = {
        batch: (measured.samples[name], measured.samples[twin])
        for batch, measured in sorted(measurements.items())
        if name in measured.samples and twin in measured.samples
    }
    rows: list[RatioRow] = []
    for batch, (of_variant, of_twin) in pairs.items():
        found = latency_ratio(of_variant, of_twin)
        rows.append(
            RatioRow(
                batch=batch,
                ratio=found.ratio,
                low=found.low,
                high=found.high,
                blocks=found.blocks,
                mean_log=found.mean_log,
                sd_log=found.sd_log,
            )
        )
    return rows


def _paired(found: Fidelity) -> Paired:
    return Paired(gained=found.gained, lost=found.lost, n=found.n, mcnemar_p=mcnemar_p(found.gained, found.lost))


def _parity(found: Parity) -> ParityRow:
    return ParityRow(max_abs=found.max_abs, cosine=found.cosine, sqnr_db=found.sqnr_db)


def _worst_class(name: str, found: ClassChange) -> WorstClass:
    return WorstClass(name=name, change_pp=found.change_pp, n=found.n)
