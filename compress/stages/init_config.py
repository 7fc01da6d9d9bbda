"""`init` of a `distill` step: layers that the student takes over from its teacher or from another student."""

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from compress.errors import UsageError
from compress.pipeline.stage import StageConfig
from compress.stages.fitting import Teacher, network_of

if TYPE_CHECKING:
    from torch import nn

    from compress.training.checkpoint import Loaded


class InitConfig(StageConfig):
    """Whose layers the student starts from; all its others start from random weights."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Literal["teacher", "student"] = Field(alias="from", description="the role whose step has the layers")
    layers: str | tuple[str, ...] | dict[str, str] = Field(
        description="name, pattern (blocks.*) or list of them, for modules of that name in both networks; or module of"
        " the student: module of the source"
    )

    @property
    def pairs(self) -> dict[str, str]:
        """Name or pattern in the student -> in the source."""
        if isinstance(self.layers, dict):
            return self.layers
        names = (self.layers,) if isinstance(self.layers, str) else self.layers
        return {name: name for name in names}


def source_of_layers(init: InitConfig, teachers: list[Teacher], student: "Loaded | None") -> "Loaded":
    """The checkpoint whose layers are taken.

    Raises:
        UsageError: no single checkpoint has the role, or a `student:` would give all weights already.
    """
    if init.source == "student":
        if student is None:
            raise UsageError("init takes layers from the student, but no step is named as `student:`")
        return student
    if student is not None:
        raise UsageError(
            "init takes layers from the teacher, and `student:` gives all weights already",
            hint="leave one of the two out, or take layers with `from: student`",
        )
    if len(teachers) != 1:
        named = ", ".join(one.step for one in teachers)
        raise UsageError(
            f"init takes layers from one teacher, but {len(teachers)} are named: {named}",
            hint="name the step that has the layers as `student:`, with `from: student`",
        )
    if teachers[0].loaded is None:
        raise UsageError(
            f"init takes layers from the teacher, and that of step {teachers[0].step!r} is an ONNX file without any",
            hint="name a checkpoint as `student:`, with `from: student`",
        )
    return teachers[0].loaded


def take_layers(init: InitConfig, student: "nn.Module", source: "Loaded") -> str:
    """Copy the layers; returns a sentence about it.

    Args:
        init: which ones.
        student: normalisation and network.
        source: whose layers they are.

    Raises:
        UsageError: unknown names, or layers that do not fit; see `pairs_named` and `copy_layers`.
    """
    from compress.distillation.layers import copy_layers
    from compress.distillation.taps import pairs_named

    ours, theirs = network_of(student), network_of(source.module)
    pairs = pairs_named(ours, theirs, init.pairs, who=init.source)
    taken = copy_layers(ours, theirs, pairs, init.source)
    total = sum(parameter.numel() for parameter in ours.parameters())
    names = ", ".join(dict.fromkeys(name for name, _ in pairs))
    return f"{taken} of {total} parameters were taken from the {init.source}: {names}"
