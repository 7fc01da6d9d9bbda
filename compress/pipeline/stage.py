"""What a stage is: a declaration that the runner reads, and one function that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from compress.artifacts.manifest import Artifact, Metric, Quantization, Record, Tensor
from compress.artifacts.store import Store

Metrics = Sequence[Metric]
Kinds = Mapping[str, Sequence[type[Artifact]]]  # filled role -> the kinds of its artifacts


class StageConfig(BaseModel):
    """Base of stage configs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Config = TypeVar("Config", bound=StageConfig)
Inputs = TypeVar("Inputs")


def _unheard(record: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """What a run leaves and tells while a stage trains. None of it may shape the artifact, so none is in a key.

    Attributes:
        traces: folder for what has time stamps and so belongs to no artifact (event files, a profile); made when the
            first file is written. None: nothing is left.
        profile: leave a profile of a few training steps there, too.
        on_epoch: told of every epoch as it ends, with its record of the history; what it raises ends the step.
    """

    traces: Path | None = None
    profile: bool = False
    on_epoch: Callable[[Mapping[str, Any]], None] = _unheard


@dataclass
class Workspace:
    """Where a stage may write, and what it is told about the run.

    The stage writes payload files below `path` and nowhere else, except for what `watch` asks for; what it
    assigns to `tensors`, `quantization` and `notes` goes into the manifest.
    """

    path: Path
    step: str
    seed: int
    data: Any  # the recipe's validated `data:` entry
    base: Path  # the recipe's folder: relative paths and `module:callable` start here
    earlier: Artifact | None = None  # what the stage's `earlier` found, verified
    tensors: Sequence[Tensor] = ()
    quantization: Quantization | None = None
    notes: list[str] = field(default_factory=list[str])
    watch: Watch = Watch()


def _same(config: Any) -> Any:
    return config


def _always(config: Any) -> bool:
    return True


def _nothing_wrong(config: Any, roles: Kinds) -> Sequence[str]:
    return ()


def _no_sources(config: Any, base: Path) -> Sequence[Path]:
    return ()


@dataclass(frozen=True)
class Stage(Generic[Config, Inputs]):
    """One kind of work.

    `inputs` is a frozen dataclass whose annotations say what a role takes: `Checkpoint` (required),
    `Checkpoint | None = None` (optional), `OnnxModel | QuantizedOnnx` (either), `tuple[Checkpoint, ...]`
    (one or several). A field `ancestors: dict[str, Artifact]` is no role: the runner fills it with
    every artifact upstream of the others, by step name.
    """

    name: str
    version: int  # bump when the same inputs would give another result
    config: type[Config]
    inputs: type[Inputs]
    output: type[Artifact]
    libraries: tuple[str, ...]  # distributions whose versions shape the result
    run: Callable[[Config, Inputs, Workspace], Metrics]
    splits: tuple[str, ...] = ()  # of the data that it reads: their digests are in the key
    seeded: bool = False  # the recipe's seed is in the key
    facts: tuple[str, ...] = ()  # of the machine, for engines and measurements; names of pipeline.machine.FACTS
    needs_facts: Callable[[Config], bool] = _always  # whether such an artifact depends on them
    measured: bool = False  # every execution is a new revision of the artifact
    resolve: Callable[[Config], Config] = _same  # replaces `auto` by what it becomes here
    sources: Callable[[Config, Path], Sequence[Path]] = _no_sources  # files outside the data that shape the result
    # sentences about settings and roles that contradict each other, said when the recipe is read
    check: Callable[[Config, Kinds], Sequence[str]] = _nothing_wrong
    # finds an artifact of an earlier run that the step stands for; its content is in the key, its kind is `output`
    earlier: Callable[[Config, Store], Artifact] | None = None


class StepLike(Protocol):
    """What a check of gates is told about a step: its stage, its settings, and which steps fill its roles."""

    @property
    def name(self) -> str: ...  # noqa: D102 - a field
    @property
    def stage(self) -> Stage[Any, Any]: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102
    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]: ...  # noqa: D102


class GateVerdict(Record):
    """One gate of one variant, judged from a stored report."""

    gate: str  # the recipe's name for it, e.g. top1_drop_pp
    variant: str
    verdict: str  # pass | fail | inconclusive | not run
    limit: float | None
    value: float | None
    unit: str
    detail: str  # a sentence with the numbers: interval, n, what would decide


@dataclass(frozen=True)
class Catalogue:
    """What the layers above hand to the pipeline, which knows no stage, dataset or gate itself."""

    stages: Mapping[str, Stage[Any, Any]]
    data: type[BaseModel]  # schema of the recipe's `data:`
    # (data, base, hash of a file) -> split -> SHA-256; imports no tensor library
    data_digests: Callable[[Any, Path, Callable[[Path], str]], Mapping[str, str]]
    gates: type[BaseModel]  # schema of the recipe's `gates:`
    # (gates, steps) -> (key below `gates:`, what is wrong) of each gate that could never be judged
    check_gates: Callable[[Any, Sequence[StepLike]], Sequence[tuple[str, str]]]
    judge: Callable[[Any, Artifact], Sequence[GateVerdict]]  # (gates, report) -> verdicts
