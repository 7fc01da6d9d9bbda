"""From logits and timings to the entries of the report document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from compress.artifacts.manifest import Artifact, Kind
from compress.report.document import Hop, Variant
from compress.stages.ladder import Edge, line_of
from compress.stages.variants import Runnable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.measure.latency import Measurement
    from compress.report.build import Timing
    from compress.report.document import ColdStart, FreshRow, RatioRow, VariantKind


@dataclass(frozen=True)
class Evidence:
    """All that was measured, by variant name; logits are (n, classes), labels (n,)."""

    reference: str
    float_twin: str | None
    labels: "NDArray[np.int64]"
    classes: tuple[str, ...]
    ids: tuple[str, ...]  # of the samples
    logits: "Mapping[str, NDArray[np.float32]]"
    timings: "Mapping[int, Measurement]"  # by batch size
    fresh: "Mapping[str, tuple[list[FreshRow], ColdStart]]"  # of the variants that run here
    sessions: Mapping[str, str]  # what runs each variant, and where
    parameters: Mapping[str, int | None]


def variant_from(runnable: Runnable, evidence: Evidence) -> Variant:
    """Everything that is known of one variant."""
    from compress.measure.fidelity import compare_logits, parity
    from compress.report.build import detail_of, measured_variant, variant_not_run

    artifact, name, twin = runnable.artifact, runnable.artifact.step, evidence.float_twin
    kind, parameters = cast("VariantKind", artifact.manifest.kind.value), evidence.parameters[name]
    size_bytes = runnable.file.stat().st_size
    facts: dict[str, Any] = {}
    if artifact.manifest.kind is Kind.ENGINE:  # counts that its plan proves without running
        facts = {
            metric.name: int(metric.value)
            for metric in artifact.manifest.metrics
            if metric.unit not in ("bytes", "fraction")
        }
    if runnable.session is None:
        assert runnable.reason is not None
        return variant_not_run(name, kind, runnable.reason, parameters=parameters, size_bytes=size_bytes, facts=facts)
    mine, reference, labels = evidence.logits[name], evidence.logits[evidence.reference], evidence.labels
    other = evidence.logits[twin] if twin is not None and twin != name else None
    return measured_variant(
        name,
        kind,
        session=evidence.sessions[name],
        against_reference=compare_logits(mine, reference, labels),
        against_float=None if other is None else compare_logits(mine, other, labels),
        parity_to_float=None if other is None else parity(mine, other),
        detail=detail_of(mine, reference, labels, classes=evidence.classes, ids=evidence.ids),
        timing=_timing(runnable, evidence),
        parameters=parameters,
        size_bytes=size_bytes,
        facts=facts,
    )


def _timing(runnable: Runnable, evidence: Evidence) -> "Timing":
    from compress.report.build import Timing, latency_rows, ratio_rows

    name = runnable.artifact.step

    def ratios(other: str | None) -> "list[RatioRow]":
        # A ratio between two kinds of session would compare runtimes, not models.
        comparable = other is not None and evidence.sessions[other] == evidence.sessions[name]
        return ratio_rows(evidence.timings, name, other) if other is not None and comparable else []

    fresh, cold_start = evidence.fresh.get(name, ([], None))
    return Timing(
        latency=latency_rows(evidence.timings, name),
        ratio_to_float=ratios(evidence.float_twin),
        ratio_to_reference=ratios(evidence.reference),
        fresh=fresh,
        cold_start=cold_start,
    )


def hop_from(edge: Edge, evidence: Evidence) -> Hop:
    """One rung of the loss ladder; null figures where the artifact cannot run here."""
    from compress.measure.fidelity import compare_logits, parity

    name = edge.child.step
    if name not in evidence.logits:
        return Hop(hop=edge.name, top1=None, agreement=None, sqnr_db=None)
    fidelity = compare_logits(evidence.logits[name], evidence.logits[evidence.reference], evidence.labels)
    found = None
    if edge.parent is not None and edge.parent.step in evidence.logits and not edge.is_training:
        found = parity(evidence.logits[name], evidence.logits[edge.parent.step])
    return Hop(
        hop=edge.name,
        top1=fidelity.top1,
        agreement=fidelity.agreement,
        sqnr_db=None if found is None else found.sqnr_db,
        max_abs=None if found is None else found.max_abs,
        cosine=None if found is None else found.cosine,
    )


def parameters_of(artifact: Artifact, ancestors: Mapping[str, Artifact]) -> int | None:
    """Parameters of the network that an artifact was made from: of the nearest checkpoint above it."""
    for one in line_of(artifact, ancestors):
        if one.manifest.kind is Kind.CHECKPOINT:
            for metric in one.manifest.metrics:
                if metric.name == "parameters":
                    return int(metric.value)
    return None
