"""Gates: limits on a report, judged from its stored statistics, so that a warm run judges exactly as a cold one."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field

from compress.report.document import ReportDocument, Variant, Verdict, VerdictLike
from compress.report.gate_rules import (
    judge_agreement,
    judge_drop,
    judge_int8_operands,
    judge_latency,
    judge_memory,
    judge_p99,
    judge_required,
    judge_size,
    judge_worst_class,
)

QUANTIZED_KINDS = ("quantized_onnx", "engine")
AGAINST_FLOAT_TWIN = ("top1_drop_to_float_pp", "latency_ratio")

DropPp = Annotated[float, Field(gt=0, lt=100)]
RatioLimit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Batch = Annotated[int, Field(ge=1)]
RatioByBatch = Annotated[dict[Batch, RatioLimit], Field(min_length=1)]  # an empty one would judge nothing
MillisecondsByBatch = Annotated[dict[Batch, Milliseconds], Field(min_length=1)]


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
    latency_ratio: RatioLimit | RatioByBatch | None = Field(
        default=None,
        description="Largest latency(variant) / latency(float twin), for every batch size measured or "
        "as a mapping from batch size to limit; decided by the 95 % interval.",
    )
    p99_ms_max: Milliseconds | MillisecondsByBatch | None = Field(
        default=None,
        description="Largest 99th percentile of the latency, milliseconds per call, for every batch size measured or "
        "as a mapping from batch size to limit; decided by its 95 % interval, which takes 5,000 iterations.",
    )
    agreement_min: float | None = Field(
        default=None,
        ge=0,
        lt=1,  # no number of samples proves that all agree
        description="Least share of samples with the reference's prediction, a fraction; decided by Wilson's interval.",
    )
    worst_class_drop_pp: DropPp | None = Field(
        default=None,
        description="Allowed loss of accuracy of any class against the reference, percentage points; Tango's test at "
        "the most unfavourable pairing that the counts allow, 5 %.",
    )
    int8_operands_min: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Least share of an engine's convolutions and matrix products with int8 operands, a fraction.",
    )
    size_bytes_max: int | None = Field(default=None, gt=0, description="Largest file, bytes.")
    memory_bytes_max: int | None = Field(
        default=None, gt=0, description="Largest peak of resident memory of a fresh process, bytes; median."
    )
    require: tuple[str, ...] = Field(default=(), description="Variants that must have been measured, else exit 7.")


def judge(gates: GatesConfig, document: ReportDocument) -> list[Verdict]:
    """Judge a report.

    Args:
        gates: the limits.
        document: a stored report.

    Returns:
        A verdict for each gate that is set and each variant it applies to (latencies: and each batch size), in
        the order of the config's fields and the report's variants. A gate that this report cannot answer gives none:
        another report of the recipe does.
    """
    verdicts: list[Verdict] = []
    for name in _judged({variant.name: variant.kind for variant in document.variants}, document.reference):
        verdicts += _variant_verdicts(gates, document, document.variant(name))
    order = list(GatesConfig.model_fields)
    verdicts.sort(key=lambda verdict: order.index(verdict.gate))
    required = [variant for name in gates.require for variant in document.variants if variant.name == name]
    return verdicts + [judge_required(variant) for variant in required]


@dataclass(frozen=True)
class Measured:
    """What one benchmark step will measure, as the recipe says before anything has run.

    Attributes:
        kinds: every measured step -> its artifact's kind, e.g. `quantized_onnx`.
        reference: what the variants are held against.
        float_twin: the float form of the quantized variants, if one is named.
        batches: at which latencies are timed.
    """

    kinds: Mapping[str, str]
    reference: str
    float_twin: str | None
    batches: tuple[int, ...] = ()


def untimed_batches(gates: GatesConfig, batches: Collection[int]) -> list[tuple[str, str]]:
    """Find limits on batch sizes that nobody times: they would judge nothing, and pass unseen.

    Args:
        gates: the limits.
        batches: that are timed.

    Returns:
        The name of the gate and what is wrong, for each.
    """
    timed = ", ".join(map(str, sorted(batches))) or "none"
    return [
        (gate, f"batch {batch} is not timed, only {timed}")
        for gate in ("latency_ratio", "p99_ms_max")
        if isinstance(limits := getattr(gates, gate), dict)
        for batch in cast("dict[int, float]", limits)
        if batch not in batches
    ]


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
    problems += untimed_batches(gates, {batch for benchmark in benchmarks for batch in benchmark.batches})
    for gate in limits:
        against_twin = gate in AGAINST_FLOAT_TWIN
        able = [benchmark for benchmark in benchmarks if benchmark.float_twin or not against_twin]
        if not able:
            problems.append((gate, "no benchmark names a float_twin to compare with"))
        elif not any(_judged(one.kinds, one.reference, one.float_twin if against_twin else None) for one in able):
            problems.append((gate, "no benchmark has a quantized variant to judge (the output of calibrate or engine)"))
        elif gate == "int8_operands_min" and not any("engine" in one.kinds.values() for one in able):
            problems.append((gate, "no benchmark has an engine to judge"))
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
        yield judge_drop("top1_drop_pp", gates.top1_drop_pp, variant, document.variant(document.reference), pair)
    if document.float_twin is not None and variant.name != document.float_twin:
        twin = document.variant(document.float_twin)
        if gates.top1_drop_to_float_pp is not None:
            pair = variant.paired_to_float
            yield judge_drop("top1_drop_to_float_pp", gates.top1_drop_to_float_pp, variant, twin, pair)
        if gates.latency_ratio is not None:
            yield from judge_latency(gates.latency_ratio, variant, twin)
    if gates.p99_ms_max is not None:
        yield from judge_p99(gates.p99_ms_max, variant)
    if gates.agreement_min is not None:
        yield judge_agreement(gates.agreement_min, variant, document)
    if gates.worst_class_drop_pp is not None:
        yield judge_worst_class(gates.worst_class_drop_pp, variant, document)
    if gates.int8_operands_min is not None and variant.kind == "engine":
        yield judge_int8_operands(gates.int8_operands_min, variant)
    if gates.size_bytes_max is not None:
        yield judge_size(gates.size_bytes_max, variant)
    if gates.memory_bytes_max is not None:
        yield judge_memory(gates.memory_bytes_max, variant)
