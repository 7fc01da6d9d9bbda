"""The stages of `compress`, and all that the pipeline is told about the domain."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.artifacts.manifest import Artifact, Report
from compress.data.config import DataConfig
from compress.pipeline.stage import Catalogue, GateVerdict, Stage, StepLike
from compress.report.gates import GatesConfig, Measured, unanswerable
from compress.stages.answers import ANSWERS
from compress.stages.benchmark import BENCHMARK, BenchmarkConfig
from compress.stages.bring import BRING
from compress.stages.calibrate import CALIBRATE
from compress.stages.distill import DISTILL
from compress.stages.engine import ENGINE
from compress.stages.export import EXPORT
from compress.stages.qat import QAT
from compress.stages.tagged import TAGGED
from compress.stages.train import TRAIN

STAGES: Mapping[str, Stage[Any, Any]] = {
    "train": TRAIN,
    "bring": BRING,
    "tagged": TAGGED,
    "answers": ANSWERS,
    "distill": DISTILL,
    "qat": QAT,
    "export": EXPORT,
    "calibrate": CALIBRATE,
    "engine": ENGINE,
    "benchmark": BENCHMARK,
}


def check_gates(gates: GatesConfig, steps: Sequence[StepLike]) -> Sequence[tuple[str, str]]:
    """Find the gates that no benchmark of the recipe could ever answer."""
    kinds = {step.name: step.stage.output.kind.value for step in steps}
    benchmarks = [
        Measured(
            kinds={name: kinds[name] for names in step.roles.values() for name in names},
            reference=step.roles["reference"][0],
            float_twin=next(iter(step.roles.get("float_twin", ())), None),
            batches=step.config.latency.batches if isinstance(step.config, BenchmarkConfig) else (),
        )
        for step in steps
        if step.stage.output is Report
    ]
    return unanswerable(gates, benchmarks)


def judge(gates: GatesConfig, report: Artifact) -> Sequence[GateVerdict]:
    """Judge a recipe's gates from the statistics that a report stores."""
    from compress.report import gates as report_gates
    from compress.report.document import report_from_json

    path = report.path / "report.json"
    document = report_from_json(path.read_bytes(), str(path))
    return [GateVerdict.model_validate(verdict.model_dump()) for verdict in report_gates.judge(gates, document)]


def data_digests(data: DataConfig, base: Path, hash_file: Callable[[Path], str]) -> Mapping[str, str]:
    """SHA-256 of each split, `unlabelled` always among them; `hash_file` remembers hashes of unchanged files."""
    from compress.data.datasets import split_digests

    return {"unlabelled": "none", **split_digests(data, base, hash_file)}


CATALOGUE = Catalogue(
    stages=STAGES,
    data=DataConfig,
    data_digests=data_digests,
    gates=GatesConfig,
    check_gates=check_gates,
    judge=judge,
)
