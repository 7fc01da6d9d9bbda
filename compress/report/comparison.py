"""Two stored reports side by side: what changed, and whether the change is real."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress.report.document import Verdict

COMPARISON_SCHEMA_VERSION = 1

Metric = Literal["latency", "top1", "agreement", "size", "memory"]
ClaimVerdict = Literal["faster", "slower", "better", "worse", "no difference", "inconclusive"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Side(_Part):
    """One of the two reports."""

    name: str = Field(description="as it was called on the command line: a file, a run, RUN:STEP or a tag")
    run: str | None = Field(default=None, description="run id, where the report says so")
    reference: str
    split: str
    n: int = Field(ge=1, description="samples")
    environment: dict[str, Any] = {}

    @property
    def title(self) -> str:
        """The run where it is known, else the file without its folders."""
        return self.run or PurePath(self.name).name or self.name


class Mismatch(_Part):
    """An entry of the fingerprints that is not the same on both sides, so that figures are not comparable."""

    entry: str = Field(description="dotted, e.g. `libraries.onnxruntime`")
    base: Any = Field(description="null where it is missing")
    new: Any = None


class Claim(_Part):
    """One metric of one variant in both reports, and what may be said of its change.

    `change`, `low`, `high` and `tolerance` are in `change_unit`: `ratio` is new / base (below 1 is faster or smaller),
    `pp` is new - base in percentage points (below 0 is less accurate).
    """

    variant: str
    metric: Metric
    batch: int | None = Field(default=None, description="samples per call, of a latency; else null")
    base: float | None = Field(description="null where it was not measured")
    new: float | None = None
    unit: Literal["ms", "fraction", "bytes"] = Field(description="of base and new")
    change: float | None = None
    change_unit: Literal["ratio", "pp"]
    low: float | None = Field(default=None, description="lower end of the 95 % interval; null where there is none")
    high: float | None = None
    tolerance: float = Field(gt=0, description="change that is accepted: .05 of a ratio is 5 %, 1.0 of pp is 1 pp")
    p: float | None = Field(
        default=None, ge=0, le=1, description="one-sided, of a change for the worse beyond the tolerance; by itself"
    )
    p_holm: float | None = Field(
        default=None, ge=0, le=1, description="the same among the deciding claims of this metric (Holm, 1979)"
    )
    verdict: ClaimVerdict | None = Field(default=None, description="null in an informational comparison")
    harmless: bool = Field(
        default=False,
        description="decides nothing, whatever the verdict: inconclusive with a change for the worse excluded, or "
        "information (a checkpoint, or agreement)",
    )
    detail: str = Field(default="", description="counts, the test, and what would decide")


class Comparison(_Part):
    """The whole comparison of two reports."""

    schema_version: Literal[1] = COMPARISON_SCHEMA_VERSION
    base: Side
    new: Side
    informational: bool = Field(default=False, description="figures only: no verdict was asked for")
    mismatches: list[Mismatch] = Field(default=[], description="only an informational comparison may have any")
    claims: list[Claim]
    notes: list[str] = Field(default=[], description="variants of one side only, or not run, each a sentence")
    gates: list[Verdict] = Field(default=[], description="asked for by --gate; where there are any they decide")
    exit_code: int = Field(description="0, 3 something is worse, 4 inconclusive; with gates also 7")
