"""Gates: limits on a report, judged from its stored statistics, so that a warm run judges exactly as a cold one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from compress.measure.statistics import (
    needed_blocks,
    proportion_decision,
    ratio_decision,
    tango_noninferiority,
    wilson,
)
from compress.report.document import LatencyRow, Paired, RatioRow, ReportDocument, Variant, Verdict, VerdictLike

QUANTIZED_KINDS = ("quantized_onnx", "engine")
AGAINST_FLOAT_TWIN = ("top1_drop_to_float_pp", "latency_ratio")

DropPp = Annotated[float, Field(gt=0, lt=100)]
RatioLimit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Batch = Annotated[int, Field(ge=1)]


class GatesConfig(BaseModel):
    """A recipe's `gates:`.

    `require` holds for the variants that it names. Every other gate applies to the quantized variants of the report
    (kind `quantized_onnx` or `engine`; never to the one it is held against), each judged on its own. One that could
    not be run here gets the verdict `not run`; only `require` makes that end the run with exit 7. A gate that no
    benchmark of the recipe could ever answer is refused when the recipe is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top1_drop_pp: DropPp | None = Field(
        default=None,
        description="Allowed loss of top-1 accuracy against the reference, percentage points; Tango's test, 5 %.",
    )
    top1_drop_to_float_pp: DropPp | None = Field(
        default=None,
        description="Allowed loss of top-1 accuracy against the float twin, percentage points; Tango's test, 5 %.",
    )
    latency_ratio: RatioLimit | dict[Batch, RatioLimit] | None = Field(
        default=None,
        description="Largest latency(variant) / latency(float twin), for every batch size measured or "
        "as a mapping from batch size to limit; decided by the 95 % interval.",
    )
    agreement_min: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least share of samples with the reference's prediction, a fraction; decided by Wilson's interval.",
    )
    size_bytes_max: int | None = Field(default=None, gt=0, description="Largest file, bytes.")
    require: tuple[str, ...] = Field(default=(), description="Variants that must have been measured, else exit 7.")


def judge(gates: GatesConfig, document: ReportDocument) -> list[Verdict]:
    """Judge a report.

    Args:
        gates: the limits.
        document: a stored report.

    Returns:
        A verdict for each gate that is set and each variant it applies to (`latency_ratio`: and each batch size), in
        the order of the config's fields and the report's variants. A gate that this report cannot answer gives none:
        another report of the recipe does.
    """
    verdicts: list[Verdict] = []
    for name in _judged({variant.name: variant.kind for variant in document.variants}, document.reference):
        verdicts += _variant_verdicts(gates, document, document.variant(name))
    order = list(GatesConfig.model_fields)
    verdicts.sort(key=lambda verdict: order.index(verdict.gate))
    required = [variant for name in gates.require for variant in document.variants if variant.name == name]
    return verdicts + [_judge_required(variant) for variant in required]


@dataclass(frozen=True)
class Measured:
    """What one benchmark step will measure, as the recipe says before anything has run.

    Attributes:
        kinds: every measured step -> its artifact's kind, e.g. `quantized_onnx`.
        reference: what the variants are held against.
        float_twin: the float form of the quantized variants, if one is named.
    """

    kinds: Mapping[str, str]
    reference: str
    float_twin: str | None


def unanswerable(gates: GatesConfig, benchmarks: Sequence[Measured]) -> list[tuple[str, str]]:
    """Find gates that no benchmark could ever answer.

    Args:
        gates: the limits.
        benchmarks: one entry for each benchmark step of the recipe.

    Returns:
        The name of the gate and what is wrong, for each; the name is empty where all gates are meant.
    """
    limits = [name for name, limit in gates if name != "require" and limit is not None]
    if not benchmarks:
        wrong = [("", "no step writes a report that they could be judged from; add a benchmark step")]
        return wrong if limits or gates.require else []
    problems: list[tuple[str, str]] = []
    names = list(dict.fromkeys(name for benchmark in benchmarks for name in benchmark.kinds))
    for name in gates.require:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            nearest = f"; did you mean {close[0]}?" if close else ""
            problems.append(("require", f"no benchmark measures {name!r}, only {', '.join(names)}{nearest}"))
    for gate in limits:
        against_twin = gate in AGAINST_FLOAT_TWIN
        able = [benchmark for benchmark in benchmarks if benchmark.float_twin or not against_twin]
        if not able:
            problems.append((gate, "no benchmark names a float_twin to compare with"))
        elif not any(_judged(one.kinds, one.reference, one.float_twin if against_twin else None) for one in able):
            problems.append((gate, "no benchmark has a quantized variant to judge (the output of calibrate or engine)"))
    return problems


def not_evaluated(verdicts: Sequence[VerdictLike]) -> str:
    """Name the gates that nothing was measured for, in one line for the end of a run; empty if there are none."""
    missing = [f"{v.gate} of {v.variant}" for v in verdicts if v.verdict == "not run"]
    return f"not evaluated: {', '.join(dict.fromkeys(missing))}" if missing else ""


def _judged(kinds: Mapping[str, str], *held_against: str | None) -> list[str]:
    return [name for name, kind in kinds.items() if kind in QUANTIZED_KINDS and name not in held_against]


def _variant_verdicts(gates: GatesConfig, document: ReportDocument, variant: Variant) -> Iterator[Verdict]:
    if gates.top1_drop_pp is not None:
        pair = variant.paired_to_reference
        yield _judge_drop("top1_drop_pp", gates.top1_drop_pp, variant, document.variant(document.reference), pair)
    if document.float_twin is not None and variant.name != document.float_twin:
        twin = document.variant(document.float_twin)
        if gates.top1_drop_to_float_pp is not None:
            pair = variant.paired_to_float
            yield _judge_drop("top1_drop_to_float_pp", gates.top1_drop_to_float_pp, variant, twin, pair)
        if gates.latency_ratio is not None:
            yield from _judge_latency(gates.latency_ratio, variant, twin)
    if gates.agreement_min is not None:
        yield _judge_agreement(gates.agreement_min, variant, document)
    if gates.size_bytes_max is not None:
        yield _judge_size(gates.size_bytes_max, variant)


def _judge_drop(gate: str, limit_pp: float, variant: Variant, against: Variant, pair: Paired | None) -> Verdict:
    answer = _verdicts(gate, variant, limit_pp, "pp")
    for side in (variant, against):
        if side.status == "not run":
            return answer("not run", None, f"{side.name} was not run: {side.reason}")
    if pair is None:
        return answer("not run", None, f"the report holds no counts paired with {against.name}")
    test = tango_noninferiority(pair.gained, pair.lost, pair.n, limit_pp / 100)
    detail = (
        f"change against {against.name} {100 * test.difference:+.2f} pp "
        f"(95 % interval {100 * test.low:+.2f} to {100 * test.high:+.2f} pp; n {pair.n:,}: "
        f"{pair.gained:,} gained, {pair.lost:,} lost), p {test.p:.2g} against a loss of {limit_pp:g} pp or more"
    )
    if test.decision == "inconclusive":
        if test.needed_n is None:
            detail += "; the observed loss is the limit itself, so that no number of samples decides"
        else:
            detail += f"; about {test.needed_n:,} samples would decide {test.needed_if}"
    return answer(test.decision, 100 * (pair.lost - pair.gained) / pair.n, detail)


def _judge_latency(limits: float | dict[int, float], variant: Variant, twin: Variant) -> Iterator[Verdict]:
    rows = {row.batch: row for row in variant.ratio_to_float}
    by_batch = limits if isinstance(limits, dict) else dict.fromkeys(rows, limits)
    reasons = [f"{side.name} was not run: {side.reason}" for side in (variant, twin) if side.status == "not run"]
    if not reasons and not by_batch:
        reasons = [f"not timed against {twin.name} in the same kind of session"]
    if reasons:
        answer = _verdicts("latency_ratio", variant, None if isinstance(limits, dict) else limits, "ratio")
        yield answer("not run", None, reasons[0])
        return
    for batch, limit in by_batch.items():
        answer = _verdicts("latency_ratio", variant, limit, "ratio")
        if batch in rows:
            timed = [row for side in (variant, twin) for row in side.latency if row.batch == batch]
            yield _judge_ratio(answer, rows[batch], limit, twin, timed)
        else:
            yield answer("not run", None, f"batch {batch}: not timed against {twin.name} in the same kind of session")


def _judge_ratio(
    answer: Callable[..., Verdict], row: RatioRow, limit: float, twin: Variant, timed: list[LatencyRow]
) -> Verdict:
    detail = (
        f"batch {row.batch}: latency {row.ratio:.3f} x that of {twin.name} "
        f"(95 % interval {row.low:.3f} to {row.high:.3f}; {row.blocks} blocks)"
    )
    if any(latency.unstable for latency in timed):
        return answer(
            "inconclusive",
            row.ratio,
            f"{detail}; latencies drifted in both measurements, so measure on an idle machine",
        )
    decision = ratio_decision(row.low, row.high, limit)
    if decision == "inconclusive":
        blocks = needed_blocks(row.mean_log, row.sd_log, limit)
        detail += "; the observed ratio is the limit itself" if blocks is None else ""
        detail += "" if blocks is None else f"; about {blocks:,} blocks would decide at this ratio"
    return answer(decision, row.ratio, detail)


def _judge_agreement(minimum: float, variant: Variant, document: ReportDocument) -> Verdict:
    answer = _verdicts("agreement_min", variant, minimum, "fraction")
    if variant.agreement is None:
        return answer("not run", None, f"{variant.name} was not run: {variant.reason}")
    same = round(variant.agreement * document.n)
    interval = wilson(same, document.n)
    detail = (
        f"same prediction as {document.reference} for {same:,} of {document.n:,} samples "
        f"(95 % interval {interval.low:.4f} to {interval.high:.4f})"
    )
    return answer(proportion_decision(same, document.n, minimum), variant.agreement, detail)


def _judge_size(limit: int, variant: Variant) -> Verdict:
    answer = _verdicts("size_bytes_max", variant, limit, "bytes")
    if variant.size_bytes is None:
        return answer("not run", None, f"{variant.name} has no file whose size is known")
    verdict = "pass" if variant.size_bytes <= limit else "fail"
    return answer(verdict, variant.size_bytes, f"{variant.size_bytes:,} bytes, allowed {limit:,}")


def _judge_required(variant: Variant) -> Verdict:
    answer = _verdicts("require", variant, None, "")
    if variant.status == "measured":
        return answer("pass", None, f"{variant.name} was measured")
    return answer("not run", None, f"{variant.name} was not run: {variant.reason}")


def _verdicts(gate: str, variant: Variant, limit: float | None, unit: str) -> Callable[..., Verdict]:
    def answer(verdict: str, value: float | None, detail: str) -> Verdict:
        return Verdict.model_validate(
            {
                "gate": gate,
                "variant": variant.name,
                "verdict": verdict,
                "limit": limit,
                "value": value,
                "unit": unit,
                "detail": detail,
            }
        )

    return answer
