"""The way from the reference to each variant, one hop an artifact, so that a loss has a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.artifacts.manifest import Artifact, InputRef, Kind

# An artifact descends from the one that its weights come from: a `qat` step from its student, not its teacher.
PARENT_ROLES = ("model", "student", "teacher")


@dataclass(frozen=True)
class Edge:
    """One artifact and the one before it; `parent` is None at the start of the ladder."""

    child: Artifact
    parent: Artifact | None

    @property
    def name(self) -> str:
        """`teacher -> student`."""
        return f"{self.parent.step} -> {self.child.step}" if self.parent else self.child.step

    @property
    def is_training(self) -> bool:
        """Whether the hop made new weights, so that the distance of the logits is no error."""
        return self.child.manifest.kind is Kind.CHECKPOINT


def find(ref: InputRef, ancestors: Mapping[str, Artifact]) -> Artifact | None:
    """The artifact among `ancestors` that another one was made from.

    Contents decide, not keys or step names: a step may have been made again with the same bytes under another key or
    name, and what was made from it stayed as it was.
    """
    same = [one for one in ancestors.values() if (one.manifest.stage, one.manifest.digest) == (ref.stage, ref.digest)]
    return next((one for one in same if one.step == ref.step), same[0] if same else None)


def parent_of(artifact: Artifact, ancestors: Mapping[str, Artifact]) -> Artifact | None:
    """The artifact that this one's weights come from; None where `ancestors` has none."""
    for role in PARENT_ROLES:
        for ref in artifact.manifest.inputs.get(role, ()):
            if (parent := find(ref, ancestors)) is not None:
                return parent
    return None


def line_of(artifact: Artifact, ancestors: Mapping[str, Artifact]) -> list[Artifact]:
    """The artifact, its parent, the parent's parent and so on."""
    line = [artifact]
    while (parent := parent_of(line[-1], ancestors)) is not None:
        line.append(parent)
    return line


def edges_to(variants: Sequence[Artifact], ancestors: Mapping[str, Artifact]) -> list[Edge]:
    """Every hop on the ways to the variants, parents before children, each once."""
    edges: dict[str, Edge] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.step in edges:
            return
        parent = parent_of(artifact, ancestors)
        if parent is not None:
            visit(parent)
        edges[artifact.step] = Edge(artifact, parent)

    for variant in variants:
        visit(variant)
    return list(edges.values())
