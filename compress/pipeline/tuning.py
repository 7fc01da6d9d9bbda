"""The `tune:` of a recipe: which figures are sought, and which values of which keys are tried for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)

from compress.artifacts.manifest import Checkpoint, Engine, OnnxModel, QuantizedOnnx
from compress.pipeline.steps import Step
from compress.pipeline.yaml_tree import Path, nearest

MEASURABLE = (Checkpoint, OnnxModel, QuantizedOnnx, Engine)
Number = StrictInt | StrictFloat


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Entry):
    """Numbers from `low` to `high`, both included; whole ones where the key takes no others."""

    low: Number
    high: Number
    log: bool = Field(default=False, description="drawn evenly on a logarithmic scale")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, expected less than high, {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, expected more than 0 on a logarithmic scale")
        return self


class Choices(_Entry):
    """One of some values, whatever the key takes: words, lists, mappings."""

    choices: tuple[JsonValue, ...] = Field(min_length=1, description="each once")

    @model_validator(mode="after")
    def _check_each_once(self) -> Self:
        twice = [value for index, value in enumerate(self.choices) if value in self.choices[:index]]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice")
        return self


def _tag(value: Any) -> str | None:
    if isinstance(value, Range | Choices):
        return "range" if isinstance(value, Range) else "choices"
    if not isinstance(value, Mapping):
        return None
    return "choices" if "choices" in value else "range"


Knob = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(
        _tag,
        custom_error_type="knob",
        custom_error_message="expected {low: 1, high: 16, log: true} or {choices: [a, b]}",
    ),
]


class Objectives(_Entry):
    """Which step gives each figure; at least one."""

    accuracy: str | None = Field(default=None, description="step; its top-1 on the validation split is maximized")
    latency: str | None = Field(
        default=None,
        description="step; how long a call takes, as a ratio to the same step of the recipe as it is written, is"
        " minimized",
    )
    size: str | None = Field(default=None, description="step; the bytes of the file that runs are minimized")

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if not self.steps():
            raise ValueError("expected at least one of accuracy, latency, size")
        return self

    def steps(self) -> dict[str, str]:
        """Figure -> step, of those that are sought, in the order of this class."""
        return {name: step for name, step in self if step is not None}


class TuneConfig(_Entry):
    """What `compress tune` looks for, and where; no part of any step's key."""

    objectives: Objectives
    space: dict[str, Knob] = Field(
        min_length=1, description="keys of steps as `--set` takes them, e.g. steps.student.temperature"
    )
    trials: int = Field(default=20, ge=1, description="in all, over every worker and every start")
    pruner: Literal["none", "median", "hyperband", "halving"] = Field(
        default="none",
        description="ends trials early by their top-1 on the validation split after each epoch; accuracy alone",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of the choice of values")
    batch: int = Field(default=1, ge=1, description="samples per call where latency is measured")
    threads: int = Field(default=1, ge=1, description="CPU threads where latency is measured")

    @model_validator(mode="after")
    def _check_pruner(self) -> Self:
        if self.pruner != "none" and list(self.objectives.steps()) != ["accuracy"]:
            raise ValueError(
                f"the pruner {self.pruner} judges trials by accuracy alone, and there are the objectives"
                f" {', '.join(self.objectives.steps())}: leave the pruner out, or the other objectives"
            )
        return self


def unmeasurable(config: TuneConfig, steps: Sequence[Step]) -> list[tuple[Path, str]]:
    """Find the objectives that no step of the recipe can give.

    Args:
        config: the recipe's `tune:`.
        steps: all of the recipe.

    Returns:
        (path in the recipe, what is wrong) of each.
    """
    known = {step.name: step for step in steps}
    fitting = [step.name for step in steps if issubclass(step.stage.output, MEASURABLE)]
    problems: list[tuple[Path, str]] = []
    for figure, name in config.objectives.steps().items():
        if name not in known:
            problems.append((("tune", "objectives", figure), f"unknown step {name!r}{nearest(name, known)}"))
        elif name not in fitting:
            made = known[name].stage.output.__name__
            wrong = f"step {name!r} makes {made}, which has no {figure}; candidates: {', '.join(fitting) or 'none'}"
            problems.append((("tune", "objectives", figure), wrong))
    return problems
