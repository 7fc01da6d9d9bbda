"""What a parent asks of the process that builds an engine, and what comes back; both travel as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compress.engines.sidecar import Precision, Sidecar
from compress.errors import (
    ArtifactError,
    CompressError,
    DataError,
    ModelError,
    TryAgainError,
    UnavailableError,
    UsageError,
)

# The errors that may cross from the child to its parent.
_ERRORS: dict[str, type[CompressError]] = {
    error.__name__: error
    for error in (ArtifactError, DataError, ModelError, TryAgainError, UnavailableError, UsageError)
}


class BuildRequest(BaseModel):
    """One engine to build; paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    onnx_path: Path
    plan_path: Path
    answer_path: Path
    log_path: Path  # the backend's messages, a line each, written as they come: they outlive a native crash
    progress_path: Path
    cache_path: Path  # where the timings of this build go, if the backend times anything
    backend: str
    batches: tuple[tuple[int, int, int], ...]  # min, opt, max of each optimization profile
    input_name: str
    precision: Precision | None = None  # None: what the graph says, int8 or fp32
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()  # e.g. 8.9; empty: the backend's default
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None  # of an earlier build


class BuildFailure(BaseModel):
    """An error of `compress.errors`, taken apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    message: str
    where: str
    hint: str

    @classmethod
    def from_error(cls, error: CompressError) -> BuildFailure:
        """Take an error apart; its class must be one that may cross."""
        return cls(error=type(error).__name__, message=error.message, where=error.where, hint=error.hint)

    def as_error(self) -> CompressError:
        """Put the error together again."""
        return _ERRORS[self.error](self.message, where=self.where, hint=self.hint)


class BuildAnswer(BaseModel):
    """Exactly one of the two is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sidecar: Sidecar | None = None
    failure: BuildFailure | None = None
