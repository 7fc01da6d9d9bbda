"""`init` of a `distill` step: layers that the student takes over from its teacher or from another student."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from compress.artifacts.manifest import OnnxModel
from compress.pipeline.stage import Kinds, StageConfig
from compress.stages.fitting import Teacher, network_of

if TYPE_CHECKING:
    from torch import nn

    from compress.training.checkpoint import Loaded


class InitConfig(StageConfig):
    """Whose layers the student starts from; all its others start from random weights."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Literal["teacher", "student"] = Field(alias="from", description="the role whose step has the layers")
    layers: (
        Annotated[str, Field(min_length=1)]
        | Annotated[tuple[str, ...], Field(min_length=1)]
        | Annotated[dict[str, str], Field(min_length=1)]
    ) = Field(
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


def wrong_source(init: InitConfig, roles: Kinds) -> list[str]:
    """Why no single checkpoint is the one whose layers are taken."""
    teachers, student = roles["teacher"], "student" in roles
    if init.source == "student":
        return [] if student else ["init takes layers from the student, but no step is named as `student:`"]
    other = "name the step that has the layers as `student:`, with `from: student`"
    if student:
        return [
            "init takes layers from the teacher, and `student:` gives all weights already: leave one of the two out, or"
            " take layers with `from: student`"
        ]
    if len(teachers) > 1:
        return [f"init takes layers from one teacher, but {len(teachers)} are named: {other}"]
    if issubclass(teachers[0], OnnxModel):
        return [f"init takes layers from the teacher, which is an ONNX file without any: {other}"]
    return []


def source_of_layers(init: InitConfig, teachers: list[Teacher], student: "Loaded | None") -> "Loaded":
    """The checkpoint whose layers are taken; `wrong_source` has nothing against it."""
    source = student if init.source == "student" else teachers[0].loaded
    assert source is not None, "the recipe was checked"
    return source


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
