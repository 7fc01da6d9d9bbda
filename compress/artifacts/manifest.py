"""Artifact kinds, and the manifest that every artifact carries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """What an artifact's payload is."""

    CHECKPOINT = "checkpoint"
    TEACHER_OUTPUTS = "teacher_outputs"
    ONNX_MODEL = "onnx_model"
    QUANTIZED_ONNX = "quantized_onnx"
    ENGINE = "engine"
    REPORT = "report"


class Record(BaseModel):
    """Base of everything stored as JSON: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _without(document: dict[str, Any], absent: str) -> dict[str, Any]:
    """Leave a field out where it has no value: checksums of manifests that are older than it know nothing of it."""
    return {name: value for name, value in document.items() if name != absent or value is not None}


class Metric(Record):
    """One measured number, with all that is needed to read it."""

    name: str
    value: float
    unit: str
    split: str | None = None
    n: int | None = None


class Tensor(Record):
    """One input or output of the artifact's model."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]  # a string names a dynamic axis
    layout: str | None = None  # e.g. NCHW
    preprocessing: str | None = None  # what the caller must do; normalisation is inside the graph


class Precision(Record):
    """How it was decided which layers stay in float; `precision.json` has every layer with its reason."""

    mode: str  # by_hand | mixed | adaptive
    goal: str | None = None  # e.g. at most 0.5 pp of top-1 lost
    int8_macs: float  # fraction of the multiply-accumulates whose operands are both int8
    loss_pp: float | None = None  # of top-1 against the float graph, percentage points
    sqnr_db: float | None = None  # of the logits, against the float graph
    split: str | None = None  # of the samples that these figures, and the choice, rest on
    n: int | None = None
    latency_to_int8: float | None = None  # over that of the file with everything in int8; None: not what was minimized

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "latency_to_int8")


class Quantization(Record):
    """How an artifact's model was quantized."""

    scheme: str
    method: str | None = None
    calibration_samples: int = 0
    calibration_digest: str | None = None  # SHA-256 over the sorted digests of the samples
    float_layers: tuple[str, ...] = ()
    precision: Precision | None = None  # None: everything that can be is int8

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "precision")


class FileEntry(Record):
    """One payload file."""

    sha256: str
    bytes: int


class InputRef(Record):
    """One input artifact: where it came from and what was in it."""

    step: str
    stage: str
    key: str
    digest: str
    revision: int | None = None


class Source(Record):
    """The code that wrote the artifact."""

    commit: str | None
    dirty: bool | None


class Manifest(Record):
    """`manifest.json`: written last, and the only thing that makes a folder an artifact."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    stage: str
    stage_version: int
    key: str  # SHA-256 of key_document
    key_document: dict[str, Any]
    digest: str  # SHA-256 over the payload's file names and hashes
    revision: int | None = None  # of artifacts that were made again and came out different
    inputs: dict[str, tuple[InputRef, ...]]  # role -> artifacts
    config: dict[str, Any]
    files: dict[str, FileEntry]
    tensors: tuple[Tensor, ...] = ()
    quantization: Quantization | None = None
    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for people, e.g. "0 tensors calibrated, 41 scales kept from qat"
    environment: dict[str, Any]
    source: Source
    created_at: str  # ISO 8601, UTC; for the record only
    duration_s: float  # for the record only
    checksum: str = ""  # SHA-256 over all other fields; set when the artifact is committed


@dataclass(frozen=True)
class Artifact:
    """A committed artifact as a stage sees it: a verified folder and its manifest.

    `step` is the name of the recipe step that produced it in the run at hand.
    """

    kind: ClassVar[Kind]
    step: str
    path: Path
    manifest: Manifest


class Checkpoint(Artifact):
    """Weights and the recipe of the network they belong to."""

    kind = Kind.CHECKPOINT


class TeacherOutputs(Artifact):
    """`logits.npy`, float16, (teachers, views, samples, classes), and `answers.json`: of whom, and for which images."""

    kind = Kind.TEACHER_OUTPUTS


class OnnxModel(Artifact):
    """`model.onnx`: float, or Q/DQ where the checkpoint was trained with fake-quant."""

    kind = Kind.ONNX_MODEL


class QuantizedOnnx(Artifact):
    """`model.onnx` (signed, for TensorRT), `model.ort.onnx` (unsigned, for ONNX Runtime CPU).

    Also `scales.json`, `calibration.cache` (the same for TensorRT 10) and `precision.json` (layers in float, and why).
    """

    kind = Kind.QUANTIZED_ONNX


class Engine(Artifact):
    """`model.plan` and its sidecar `model.json`."""

    kind = Kind.ENGINE


class Report(Artifact):
    """`report.json` and `samples.npz`."""

    kind = Kind.REPORT


ARTIFACTS: dict[Kind, type[Artifact]] = {
    cls.kind: cls for cls in (Checkpoint, TeacherOutputs, OnnxModel, QuantizedOnnx, Engine, Report)
}
