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
    from compress.report.document import VariantKind


@dataclass(frozen=True)
class Evidence:
    """All that was measured, by variant name; logits are (n, classes), labels (n,)."""

    reference: str
    float_twin: str | None
    labels: "NDArray[np.int64]"
    classes: tuple[str, ...]
    logits: "Mapping[str, NDArray[np.float32]]"
    timings: "Mapping[int, Measurement]"  # by batch size
    sessions: Mapping[str, str]  # what runs each variant, and where
    parameters: Mapping[str, int | None]


def variant_from(runnable: Runnable, evidence: Evidence) -> Variant:
    """Everything that is known of one variant."""
    from compress.measure.fidelity import compare_logits, parity, worst_class
    from compress.report.build import latency_rows, measured_variant, ratio_rows, variant_not_run

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
    worst = worst_class(mine, reference, labels)
    other = evidence.logits[twin] if twin is not None and twin != name else None
    # A ratio between two kinds of session would compare runtimes, not models.
    comparable = twin is not None and evidence.sessions[twin] == runnable.label
    return measured_variant(
        name,
        kind,
        session=runnable.label,
        against_reference=compare_logits(mine, reference, labels),
        against_float=None if other is None else compare_logits(mine, other, labels),
        parity_to_float=None if other is None else parity(mine, other),
        worst_class=(evidence.classes[worst.label], worst),
        parameters=parameters,
        size_bytes=size_bytes,
        latency=latency_rows(evidence.timings, name),
        ratio_to_float=ratio_rows(evidence.timings, name, twin) if twin is not None and comparable else [],
        facts=facts,
    )


def hop_from(edge: Edge, evidence: Evidence) -> Hop:
    """One rung of the loss ladder; null figures where the artifact cannot run here."""
    from compress.measure.fidelity import compare_logits, parity

    name = edge.child.step
    if name not in evidence.logits:
        return Hop(hop=edge.name, top1=None, agreement=None, sqnr_db=None)
    fidelity = compare_logits(evidence.logits[name], evidence.logits[evidence.reference], evidence.labels)
    sqnr_db = None
    if edge.parent is not None and edge.parent.step in evidence.logits and not edge.is_training:
        sqnr_db = parity(evidence.logits[name], evidence.logits[edge.parent.step]).sqnr_db
    return Hop(hop=edge.name, top1=fidelity.top1, agreement=fidelity.agreement, sqnr_db=sqnr_db)


def parameters_of(artifact: Artifact, ancestors: Mapping[str, Artifact]) -> int | None:
    """Parameters of the network that an artifact was made from: of the nearest checkpoint above it."""
    for one in line_of(artifact, ancestors):
        if one.manifest.kind is Kind.CHECKPOINT:
            for metric in one.manifest.metrics:
                if metric.name == "parameters":
                    return int(metric.value)
    return None
