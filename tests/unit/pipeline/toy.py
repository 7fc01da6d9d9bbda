"""A catalogue of stages that write small text files: real artifacts without a tensor library.

As a program it runs a recipe: `python toy.py RECIPE STORE [FAULT]`.
"""

import errno
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from compress.artifacts.manifest import Artifact, Checkpoint, Metric, OnnxModel, Report
from compress.artifacts.store import Store
from compress.errors import CompressError, DataError, ModelError
from compress.pipeline.machine import resolve_threads
from compress.pipeline.recipe import load_recipe
from compress.pipeline.runner import run
from compress.pipeline.stage import Catalogue, GateVerdict, Stage, StageConfig, Watch

CALLS: list[str] = []  # steps whose stage ran
FAULTS: dict[str, str] = {}  # step -> what goes wrong; not part of any key
WATCHED: dict[str, Watch] = {}  # step -> what its stage was told to leave and tell
SUFFIX: dict[str, str] = {}  # step -> bytes that no key knows, as a stage without determinism writes them


class Net(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "mlp"
    widths: tuple[int, ...] = (4,)


class TrainConfig(StageConfig):
    text: str
    temperature: float = Field(2.0, gt=0)
    model: Net = Net()
    threads: int | str = "auto"
    source: str | None = None


@dataclass(frozen=True)
class NoInputs:
    pass


class PlainConfig(StageConfig):
    keep: int = 1000


@dataclass(frozen=True)
class ExportInputs:
    model: Checkpoint


@dataclass(frozen=True)
class DistillInputs:
    teacher: tuple[Checkpoint, ...]
    student: Checkpoint | None = None


@dataclass(frozen=True)
class ReportInputs:
    reference: Checkpoint | OnnxModel
    variants: tuple[Checkpoint | OnnxModel, ...]
    ancestors: dict[str, Artifact]


class Stop(BaseException):
    """As a handler of SIGTERM raises it."""


def fault(workspace) -> None:
    CALLS.append(workspace.step)
    (workspace.path / "begun.txt").write_text("half")
    what = FAULTS.get(workspace.step, "")
    match what:
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workspace.path / "a"))
        case "native_enospc":
            try:
                raise RuntimeError("I/O error: No space left on device (os error 28)")
            except RuntimeError as error:
                raise ModelError("cannot save the weights") from error
        case "refused":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(workspace.path / "a"))
        case "interrupt":
            raise KeyboardInterrupt
        case "terminate":
            raise Stop
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bug":
            raise ZeroDivisionError("division by zero")
        case "exit":
            sys.exit(0)
        case "nan":
            raise ModelError("the loss is nan", where="epoch 1", hint="lower the learning rate")
        case "link":
            (workspace.path / "link").symlink_to("/etc/hostname")
        case "manifest":
            (workspace.path / "manifest.json").write_text("{}")
        case "slow":
            time.sleep(2)
    (workspace.path / "begun.txt").unlink()


def write(workspace, name: str, text: str) -> None:
    fault(workspace)
    if FAULTS.get(workspace.step) != "nothing":
        (workspace.path / "sub").mkdir()
        (workspace.path / "sub" / name).write_text(text + SUFFIX.get(workspace.step, ""))


def read(artifact: Artifact) -> str:
    return "".join(path.read_text() for path in sorted((artifact.path / "sub").iterdir()))


def train(config, inputs, workspace):
    data = (workspace.base / workspace.data.path / "train.txt").read_text()
    write(workspace, "weights.txt", f"{config.text} {workspace.seed} {data}")
    value = float("nan") if FAULTS.get(workspace.step) == "nan_metric" else 0.5
    WATCHED[workspace.step] = workspace.watch
    workspace.watch.on_epoch({"epoch": 1, "loss": 0.5})
    workspace.notes.append("trained")
    return [Metric(name="top1", value=value, unit="fraction", split="validation", n=10)]


def export(config, inputs, workspace):
    assert (workspace.seed, workspace.data) == (0, None)
    write(workspace, "model.txt", read(inputs.model)[: config.keep])
    return []


def distill(config, inputs, workspace):
    names = [artifact.step for artifact in (*inputs.teacher, *([inputs.student] if inputs.student else []))]
    write(workspace, "weights.txt", f"from {len(names)} " + "|".join(read(one) for one in inputs.teacher))
    return []


def report(config, inputs, workspace):
    document = {
        "reference": inputs.reference.step,
        "variants": [variant.step for variant in inputs.variants],
        "ancestors": list(inputs.ancestors),
        "moment": time.monotonic_ns(),
    }
    write(workspace, "report.json", json.dumps(document))
    return []


def resolve(config):
    return config.model_copy(update={"threads": resolve_threads(config.threads)})


def sources(config, base):
    return [] if config.source is None else [base / config.source]


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "."


def data_digests(data, base, hash_file):
    files = {split: base / data.path / f"{split}.txt" for split in ("train", "test")}
    for path in files.values():
        if not path.is_file():
            raise DataError("no data", where=str(path))
    return {split: hash_file(path) for split, path in files.items()}


class Gates(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    verdicts: dict[str, str] = {}  # gate -> verdict that the judge gives


def check_gates(gates, steps):
    if gates.verdicts and not any(step.stage.output is Report for step in steps):
        return [("", "nothing is measured")]
    return [("verdicts", f"{gate} can never be judged") for gate in gates.verdicts if gate.startswith("never")]


def judge(gates, artifact):
    document = json.loads((artifact.path / "sub" / "report.json").read_bytes())
    return [
        GateVerdict(
            gate=gate, variant=document["reference"], verdict=verdict, limit=1.0, value=2.0, unit="pp", detail="2 pp"
        )
        for gate, verdict in gates.verdicts.items()
    ]


STAGES = {
    stage.name: stage
    for stage in (
        Stage("train", 1, TrainConfig, NoInputs, Checkpoint, ("pydantic",), train, splits=("train",), seeded=True,
              resolve=resolve, sources=sources),
        Stage("distill", 1, PlainConfig, DistillInputs, Checkpoint, (), distill),
        Stage("export", 1, PlainConfig, ExportInputs, OnnxModel, ("no-such-library",), export),
        Stage("benchmark", 1, PlainConfig, ReportInputs, Report, (), report, splits=("test",), facts=("cpu",),
              measured=True),
    )
}  # fmt: skip
CATALOGUE = Catalogue(
    stages=STAGES, data=Data, data_digests=data_digests, gates=Gates, check_gates=check_gates, judge=judge
)

RECIPE = """\
name: toy
seed: 3
data: {path: data}
steps:
  teacher: {stage: train, text: abc}
  student: {stage: distill, teacher: teacher}
  onnx: {stage: export, model: student}
  report: {stage: benchmark, reference: teacher, variants: [onnx]}
"""


def project(folder: Path, recipe: str = RECIPE) -> Path:
    """Write a recipe and its data; returns the recipe's path."""
    (folder / "data").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    for split in ("train", "test"):
        (folder / "data" / f"{split}.txt").write_text(split)
    path = folder / "toy.yaml"
    path.write_text(recipe)
    return path


def crash_at(function: str, number: int) -> None:
    """Die without clean-up just before the `number`-th call of `os.fsync` or `os.rename`."""
    original, calls = getattr(os, function), [0]

    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, function, counted)


def main() -> int:
    recipe, store, what = Path(sys.argv[1]), Store(Path(sys.argv[2])), sys.argv[3:]
    if what and what[0] in ("fsync", "rename"):
        crash_at(what[0], int(what[1]))
    elif what:
        FAULTS[what[0]] = what[1]
    try:
        record = run(load_recipe(recipe, [], CATALOGUE), store, CATALOGUE, lock_timeout_s=20)
    except CompressError as error:
        print(error)
        return error.exit_code
    print(json.dumps({step.name: step.status for step in record.steps}))
    return record.exit_code or 0


if __name__ == "__main__":
    sys.exit(main())
