"""A catalogue whose training takes no time: studies of it are real, down to artifacts and locks.

As a program it is one worker: `python toy_study.py RECIPE STORE STORAGE SECONDS`, SECONDS being what a trial takes;
it says `ready` and begins at a line from standard input.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.artifacts import tags
from compress.artifacts.manifest import Artifact, Checkpoint, Metric, Report
from compress.artifacts.store import Store
from compress.errors import UsageError
from compress.pipeline.stage import Catalogue, Stage, StageConfig
from compress.tuning.storage import open_place
from compress.tuning.studies import identity, open_study, read_plan
from compress.tuning.trials import Evaluator
from compress.tuning.workers import work

HOOK: list[Callable[[Any, Any], None]] = []  # called with config and workspace in the middle of every training
RAN: list[str] = []  # steps whose stage ran


class Net(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    widths: tuple[int, ...] = (4,)


class TrainConfig(StageConfig):
    temperature: float = Field(default=2.0, gt=0, le=100)
    samples: int = Field(default=8, ge=1)
    epochs: int = Field(default=3, ge=1)
    model: Net = Net()

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        if self.samples * self.epochs > 40:
            raise ValueError("samples times epochs must not exceed 40")
        return self


class TaggedConfig(StageConfig):
    tag: str


@dataclass(frozen=True)
class NoInputs:
    pass


@dataclass(frozen=True)
class DistillInputs:
    teacher: Checkpoint


class NoConfig(StageConfig):
    pass


@dataclass(frozen=True)
class ReportInputs:
    reference: Checkpoint


def train(config: Any, inputs: Any, workspace: Any) -> list[Metric]:
    """The best temperature is 4; wider is better and larger."""
    RAN.append(workspace.step)
    width = sum(config.model.widths)
    top1 = round(1 - abs(math.log2(config.temperature) - 2) / 10 - 0.2 / (1 + width), 6)
    for epoch in range(1, config.epochs + 1):
        workspace.watch.on_epoch({"epoch": epoch, "validation_top1": top1 * epoch / config.epochs})
    for hook in HOOK:
        hook(config, workspace)
    (workspace.path / "weights.safetensors").write_bytes(b"w" * width)
    (workspace.path / "config.json").write_text(config.model_dump_json())  # other values, other bytes
    return [Metric(name="top1", value=top1, unit="fraction", split="validation", n=100)]


def find(config: Any, store: Store) -> Artifact:
    """What the one step of a tagged run made."""
    if config.tag not in tags.names(store.root):
        raise UsageError(f"there is no tag {config.tag!r}")
    return store.artifact_of(store.read_run(config.tag).steps[0])


def copy(config: Any, inputs: Any, workspace: Any) -> list[Metric]:
    for name in workspace.earlier.manifest.files:
        shutil.copyfile(workspace.earlier.path / name, workspace.path / name)
    return list(workspace.earlier.manifest.metrics)


def measure(config: Any, inputs: Any, workspace: Any) -> list[Metric]:
    raise AssertionError("a benchmark reads test data")


STAGES = {
    "train": Stage("train", 1, TrainConfig, NoInputs, Checkpoint, (), train, seeded=True),
    "distill": Stage("distill", 1, TrainConfig, DistillInputs, Checkpoint, (), train, seeded=True),
    "tagged": Stage("tagged", 1, TaggedConfig, NoInputs, Checkpoint, (), copy, earlier=find),
    "benchmark": Stage("benchmark", 1, NoConfig, ReportInputs, Report, (), measure, measured=True),
}
CATALOGUE = Catalogue(
    stages=STAGES,
    data=Net,
    data_digests=lambda data, base, hash_file: {},
    gates=NoConfig,
    check_gates=lambda gates, steps: [],
    judge=lambda gates, report: [],
)

RECIPE = """\
# a study of the toy
name: toy
steps:
  teacher: {stage: train, epochs: 2}  # the same in every trial
  student:
    stage: distill
    teacher: teacher
    temperature: 2.0  # softening
  report: {stage: benchmark, reference: student}
tune:
  objectives: {accuracy: student}
  space:
    steps.student.temperature: {low: 1, high: 16, log: true}
    student.model.widths: {choices: [[2], [4], [8, 8]]}
  trials: 6
"""


def main() -> None:
    recipe, store, storage, seconds = Path(sys.argv[1]), Store(Path(sys.argv[2])), sys.argv[3], float(sys.argv[4])
    HOOK.append(lambda config, workspace: time.sleep(seconds if workspace.step == "student" else 0))
    plan = read_plan(recipe, [], CATALOGUE)
    place = open_place(storage or None, store, "toy")
    study = open_study(plan, place, "toy", identity(plan, store, CATALOGUE))
    print("ready", flush=True)
    sys.stdin.readline()
    work(plan, study, place, Evaluator(plan, study, store, CATALOGUE))


if __name__ == "__main__":
    main()
