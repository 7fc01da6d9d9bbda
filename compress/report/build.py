"""From measurements to the rows of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.measure.latency import LatencySamples, Measurement, latency_ratio
from compress.measure.statistics import mcnemar_p, wilson
from compress.report.document import (
    ChangedSample,
    ClassRow,
    ColdStart,
    Confusion,
    FreshRow,
    LatencyRow,
    Paired,
    ParityRow,
    RatioRow,
    Variant,
    VariantKind,
    WorstClass,
)

if TYPE_CHECKING:
    from compress.measure.fidelity import Fidelity, Labels, Logits, Parity

Facts = dict[str, str | int | float | bool | None]

CONFUSION_ROWS = 400
CHANGED_ROWS = 12
QUANTILE_STEPS = 40


@dataclass(frozen=True)
class Detail:
    """What a variant does class by class and sample by sample; see `Variant` for the fields."""

    ece: float
    correct: str
    agrees: str
    classes: list[ClassRow]
    worst_class: WorstClass
    confusion: list[Confusion]
    changed: list[ChangedSample]


@dataclass(frozen=True)
class Timing:
    """What one variant's calls took, in one process with the others and in fresh ones; see `Variant`."""

    latency: Sequence[LatencyRow] = ()
    ratio_to_float: Sequence[RatioRow] = ()
    ratio_to_reference: Sequence[RatioRow] = ()
    fresh: Sequence[FreshRow] = ()
    cold_start: ColdStart | None = None


def measured_variant(
    name: str,
    kind: VariantKind,
    *,
    session: str,
    against_reference: Fidelity,
    against_float: Fidelity | None = None,
    parity_to_float: Parity | None = None,
    detail: Detail | None = None,
    timing: Timing | None = None,
    parameters: int | None = None,
    size_bytes: int | None = None,
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
        detail: from `detail_of`.
        timing: what of it was measured.
        parameters: of the network; None where nobody counted.
        size_bytes: of the file that the session loads.
        facts: what is known besides.

    Returns:
        A variant with status `measured`.
    """
    interval = wilson(against_reference.correct, against_reference.n)
    timing = timing or Timing()
    return Variant(
        name=name,
        kind=kind,
        status="measured",
        session=session,
        top1=against_reference.top1,
        top1_interval=(interval.low, interval.high),
        agreement=against_reference.agreement,
        mean_kl=against_reference.mean_kl,
        p99_kl=against_reference.p99_kl,
        parameters=parameters,
        size_bytes=size_bytes,
        paired_to_reference=_paired(against_reference),
        paired_to_float=None if against_float is None else _paired(against_float),
        parity_to_float=None if parity_to_float is None else _parity(parity_to_float),
        facts=facts or {},
        latency=list(timing.latency),
        ratio_to_float=list(timing.ratio_to_float),
        ratio_to_reference=list(timing.ratio_to_reference),
        fresh=list(timing.fresh),
        cold_start=timing.cold_start,
        **({} if detail is None else vars(detail)),
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


def detail_of(
    candidate: Logits, reference: Logits, labels: Labels, *, classes: Sequence[str], ids: Sequence[str]
) -> Detail:
    """Look at a variant class by class and sample by sample.

    Args:
        candidate: its logits, (samples, classes), float.
        reference: the reference's, the same shape.
        labels: (samples,), integers in [0, classes).
        classes: their names, by label.
        ids: of the samples, in order.

    Returns:
        Rows that name classes and samples; confusion and changed samples cut at what a report holds.

    Raises:
        ValueError: shapes differ, no samples, or a label out of range.
        ModelError: a logit is not finite.
    """
    from compress.measure import fidelity

    changes = fidelity.class_changes(candidate, reference, labels)
    worst = fidelity.worst_class(changes)
    return Detail(
        ece=fidelity.expected_calibration_error(candidate, labels),
        correct=fidelity.correct_bits(candidate, labels),
        agrees=fidelity.agreement_bits(candidate, reference),
        classes=[ClassRow(name=classes[one.label], n=one.n, top1=one.top1, change_pp=one.change_pp) for one in changes],
        worst_class=WorstClass(name=classes[worst.label], change_pp=worst.change_pp, n=worst.n),
        confusion=[
            Confusion(label=classes[one.label], predicted=classes[one.predicted], change=one.change)
            for one in fidelity.confusion_changes(candidate, reference, labels, CONFUSION_ROWS)
        ],
        changed=[
            ChangedSample(
                id=ids[one.index],
                label=classes[int(labels[one.index])],
                reference=classes[one.reference],
                predicted=classes[one.predicted],
                kl=one.kl,
            )
            for one in fidelity.most_changed(candidate, reference, CHANGED_ROWS)
        ],
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
            interval = samples.p99_interval_ms
            rows.append(
                LatencyRow(
                    batch=batch,
                    p50_ms=samples.percentile_ms(50),
                    p90_ms=samples.percentile_ms(90),
                    p99_ms=samples.p99_ms,
                    p99_interval_ms=None if interval is None else (interval.low, interval.high),
                    n=len(samples.samples_ms),
                    throughput=batch * samples.calls_per_s,
                    quantiles_ms=[
                        samples.percentile_ms(100 * step / QUANTILE_STEPS) for step in range(QUANTILE_STEPS + 1)
                    ],
                    drift=trend.change,
                    unstable=trend.unstable,
                )
            )
    return rows


def ratio_rows(measurements: Mapping[int, Measurement], name: str, other: str) -> list[RatioRow]:
    """Compare one variant's latencies with another's, in the same blocks.

    Args:
        measurements: batch size -> measurement.
        name: of the variant.
        other: the float twin or the reference, which ran in the same kind of session.

    Returns:
        A row a batch size at which both were measured, ascending; `latency(name) / latency(other)`.
    """
    pairs: dict[int, tuple[LatencySamples, LatencySamples]] = {
        batch: (measured.samples[name], measured.samples[other])
        for batch, measured in sorted(measurements.items())
        if name in measured.samples and other in measured.samples
    }
    rows: list[RatioRow] = []
    for batch, (of_variant, of_other) in pairs.items():
        found = latency_ratio(of_variant, of_other)
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
