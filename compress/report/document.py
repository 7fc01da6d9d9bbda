"""`report.json`: what a benchmark found, with the statistics from which gates are judged later.

Accuracies are fractions, latencies milliseconds per call, sizes bytes. Fields are only ever added within one
`schema_version`; readers refuse another one.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.errors import ArtifactError

SCHEMA_VERSION = 1
SCHEMA_FILE = "report.schema.json"

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
VariantKind = Literal["checkpoint", "onnx_model", "quantized_onnx", "engine"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LatencyRow(_Part):
    """Latency of one variant at one batch size, over all iterations of all blocks."""

    batch: int = Field(ge=1, description="samples per call")
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive | None = Field(description="null below 1,000 iterations, which cannot show a 99th percentile")
    p99_interval_ms: tuple[Positive, Positive] | None = Field(
        default=None, description="95 %; null below 5,000 iterations, and where the slow ones fall into few blocks"
    )
    n: int = Field(ge=1, description="iterations")
    throughput: Positive | None = Field(default=None, description="samples per second, over all iterations")
    quantiles_ms: list[Positive] = Field(
        default=[], description="latency at 0, 2.5, 5 ... 100 % of the iterations, for drawing the distribution"
    )
    drift: float | None = Field(default=None, description="relative change of the block medians over the run")
    unstable: bool = Field(default=False, description="drifted by more than 5 % (Kendall p < .01), measured twice")


class RatioRow(_Part):
    """latency(variant) / latency(float twin) at one batch size: below 1 the variant is faster."""

    batch: int = Field(ge=1, description="samples per call")
    ratio: Positive = Field(description="geometric mean over the blocks")
    low: Positive = Field(description="lower end of the 95 % t interval")
    high: Positive = Field(description="upper end of the 95 % t interval")
    blocks: int = Field(ge=2)
    mean_log: float = Field(description="mean of the log differences, one a block")
    sd_log: float = Field(ge=0, description="their standard deviation")


class FreshRow(_Part):
    """Medians at one batch size, each from a process of its own: what two stored reports are compared by."""

    batch: int = Field(ge=1, description="samples per call")
    medians_ms: list[Positive] = Field(min_length=1)


class ColdStart(_Part):
    """What the first call costs, in fresh processes with the runtime already imported; medians over the processes."""

    processes: int = Field(ge=1)
    load_ms: Positive = Field(description="from the file to a session")
    first_ms: Positive = Field(description="the first call, with the smallest batch that is timed or taken")
    base_bytes: Count = Field(description="resident memory before loading")
    peak_bytes: Count = Field(description="peak resident memory after all calls")


class ClassRow(_Part):
    """Accuracy of one class, and its change against the reference."""

    name: str
    n: int = Field(ge=1, description="samples of the class")
    top1: Fraction
    change_pp: float = Field(description="percentage points")


class Confusion(_Part):
    """How much more often (or less, below 0) a label is taken for a class than by the reference."""

    label: str
    predicted: str
    change: int = Field(description="samples")


class ChangedSample(_Part):
    """A sample on which a variant is far from the reference."""

    id: str
    label: str
    reference: str = Field(description="predicted by the reference")
    predicted: str = Field(description="predicted here")
    kl: float = Field(ge=0, description="KL(reference || this), nats")


class Paired(_Part):
    """Samples on which exactly one of two variants is right."""

    gained: Count = Field(description="right here, wrong there")
    lost: Count = Field(description="wrong here, right there")
    n: int = Field(ge=1, description="all samples")
    mcnemar_p: Fraction | None = Field(default=None, description="exact, two-sided; information only")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.gained + self.lost > self.n:
            raise ValueError(f"gained + lost must not exceed n, got {self.gained} + {self.lost} of {self.n}")
        return self


class ParityRow(_Part):
    """Distance of the logits from the float twin's, over all samples."""

    max_abs: float = Field(ge=0, description="logits")
    cosine: float = Field(ge=-1, le=1)
    sqnr_db: float = Field(description="decibels, clipped to +-200")


class WorstClass(_Part):
    """The class whose accuracy changed most for the worse, against the reference."""

    name: str
    change_pp: float = Field(description="percentage points")
    n: int = Field(ge=1, description="samples of the class")


class Variant(_Part):
    """One runnable form of the model; every measurement is null or empty where it was not run."""

    name: str
    kind: VariantKind
    status: Literal["measured", "not run"]
    reason: str | None = Field(default=None, description="why it was not run")
    session: str | None = Field(default=None, description="what ran it and where, e.g. `onnxruntime cpu`")
    top1: Fraction | None = None
    top1_interval: tuple[Fraction, Fraction] | None = Field(default=None, description="95 %, Wilson")
    agreement: Fraction | None = Field(default=None, description="same prediction as the reference")
    mean_kl: float | None = Field(default=None, ge=0, description="KL(reference || this), nats per sample")
    p99_kl: float | None = Field(default=None, ge=0, description="99th percentile of the same over the samples")
    ece: Fraction | None = Field(
        default=None, description="expected calibration error, 15 bins of equal width (Guo et al., 2017)"
    )
    correct: str | None = Field(
        default=None, description="base64 of one bit a sample in the order of the split, first sample highest: right?"
    )
    agrees: str | None = Field(
        default=None, description="the same of: same prediction as the reference? (`agreement`, sample by sample)"
    )
    parameters: Count | None = None
    size_bytes: Count | None = Field(default=None, description="of the file that the session loads")
    latency: list[LatencyRow] = []
    ratio_to_float: list[RatioRow] = []
    ratio_to_reference: list[RatioRow] = Field(
        default=[], description="latency(variant) / latency(reference), where one kind of session runs both"
    )
    fresh: list[FreshRow] = []
    cold_start: ColdStart | None = None
    classes: list[ClassRow] = []
    confusion: list[Confusion] = Field(default=[], description="largest changes first, at most 400")
    changed: list[ChangedSample] = Field(default=[], description="largest KL first, at most 12")
    paired_to_reference: Paired | None = None
    paired_to_float: Paired | None = None
    parity_to_float: ParityRow | None = None
    worst_class: WorstClass | None = None
    facts: dict[str, str | int | float | bool | None] = Field(
        default={}, description="what is known without running it, e.g. convolutions with int8 operands"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        accuracy = (self.top1, self.top1_interval, self.agreement, self.mean_kl)
        if self.status == "measured":
            if any(value is None for value in accuracy):
                raise ValueError(f"{self.name}: measured, but top1, top1_interval, agreement or mean_kl is null")
        elif not self.reason:
            raise ValueError(f"{self.name}: not run, but no reason given")
        elif any(value is not None for value in accuracy) or self.latency or self.ratio_to_float:
            raise ValueError(f"{self.name}: not run, but carries measurements")
        return self


class Hop(_Part):
    """One step of the loss ladder: what the model was worth after it."""

    hop: str
    top1: Fraction | None
    agreement: Fraction | None = Field(description="with the reference")
    sqnr_db: float | None = Field(description="logits against those before the hop; null on training hops")
    max_abs: float | None = Field(default=None, ge=0, description="of the same, logits; null on training hops")
    cosine: float | None = Field(default=None, ge=-1, le=1, description="of the same; null on training hops")


class Lineage(_Part):
    """One artifact on the way to the report."""

    step: str
    stage: str
    kind: str
    key: str
    digest: str
    inputs: dict[str, list[str]] = Field(default={}, description="role -> steps")


class Epoch(_Part):
    """One epoch of a training step: every figure that it logged, by name."""

    epoch: int = Field(ge=0)
    values: dict[str, float | None]


class Curve(_Part):
    """The training of one artifact on the way to the report."""

    step: str
    epochs: list[Epoch]
    kept: int | None = Field(
        default=None, ge=0, description="epoch whose weights the artifact has; null where that was not recorded"
    )


class Verdict(_Part):
    """One gate of one variant, judged from stored statistics."""

    gate: str = Field(description="the recipe's name for it")
    variant: str
    verdict: Literal["pass", "fail", "inconclusive", "not run"]
    limit: float | None
    value: float | None = Field(description="point estimate that is held against the limit")
    unit: str = Field(description="of limit and value")
    detail: str = Field(description="interval, n, and what would decide")


class ReportDocument(_Part):
    """The whole report of one benchmark."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str | None = Field(default=None, description="run id; null inside the artifact, which runs share")
    reference: str
    float_twin: str | None
    split: str
    n: int = Field(ge=1, description="samples")
    variants: list[Variant]
    ladder: list[Hop]
    environment: dict[str, Any]
    lineage: list[Lineage]
    fingerprint: dict[str, Any] = Field(
        default={}, description="what must be equal in two reports before their figures may be compared"
    )
    curves: list[Curve] = []
    pictures: dict[str, str] = Field(
        default={}, description="sample id -> PNG as a data URI, of the samples in `changed` where the data are images"
    )
    gates: list[Verdict] | None = Field(default=None, description="of `run`; null where they are not joined")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variants must have different names, got {names}")
        for role, name in (("reference", self.reference), ("float_twin", self.float_twin)):
            if name is not None and name not in names:
                raise ValueError(f"{role} must be one of the variants {names}, got {name!r}")
        twin = None if self.float_twin is None else self.variant(self.float_twin)
        for variant in self.variants:
            if not variant.ratio_to_float:
                continue
            if twin is None or twin.status != "measured":
                raise ValueError(f"{variant.name}: has a ratio to a float twin that was not measured")
            if twin.session != variant.session:
                raise ValueError(
                    f"{variant.name}: a ratio needs one kind of session, got {variant.session} and {twin.session}"
                )
        return self

    def variant(self, name: str) -> Variant:
        """Return the variant of that name.

        Raises:
            KeyError: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)


class VerdictLike(Protocol):
    """What is read of a gate's verdict, whether just judged or stored in a run record."""

    @property
    def gate(self) -> str: ...  # noqa: D102 - a field
    @property
    def variant(self) -> str: ...  # noqa: D102
    @property
    def verdict(self) -> str: ...  # noqa: D102
    @property
    def limit(self) -> float | None: ...  # noqa: D102
    @property
    def value(self) -> float | None: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102


def report_json(document: ReportDocument) -> bytes:
    """Serialize a report: UTF-8, indented, fields in the order of the schema, one newline at the end."""
    return _pretty(document.model_dump(mode="json"))


def report_from_json(content: bytes | str, where: str = "report.json") -> ReportDocument:
    """Parse and check a report.

    Args:
        content: the file's content.
        where: its path, for messages.

    Returns:
        The document.

    Raises:
        ArtifactError: no JSON, another schema version, or fields that do not fit the schema.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"the report is not JSON: {error}", where=where, hint=_RERUN) from error
    version = found.get("schema_version") if isinstance(found, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"the report has schema version {version}, expected {SCHEMA_VERSION}", where=where, hint=_RERUN
        )
    try:
        return ReportDocument.model_validate(found)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'report'}: {e['msg']}" for e in error.errors())
        raise ArtifactError(f"the report does not fit its schema: {problems}", where=where, hint=_RERUN) from error


def joined_report(document: ReportDocument, run: str, verdicts: Sequence[VerdictLike]) -> ReportDocument:
    """Join a report with the run that asked for it and that run's gate verdicts.

    Args:
        document: the stored report.
        run: the run's id.
        verdicts: of the run's gates, just judged or read from the run record.

    Returns:
        The document with `run` and `gates` filled in.
    """
    gates = [Verdict.model_validate({name: getattr(v, name) for name in Verdict.model_fields}) for v in verdicts]
    return document.model_copy(update={"run": run, "gates": gates})


def report_schema() -> dict[str, Any]:
    """Build the JSON schema of `report.json` from the model."""
    schema = ReportDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def stored_schema() -> dict[str, Any]:
    """Read the JSON schema that the package ships, for readers that do not run this code."""
    return json.loads(resources.files("compress.report").joinpath(SCHEMA_FILE).read_text(encoding="utf-8"))


def schema_json() -> bytes:
    """Content of the shipped schema file; write it there after a change of the model."""
    return _pretty(report_schema())


_RERUN = "run the benchmark again: compress run RECIPE --force STEP"


def _pretty(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
