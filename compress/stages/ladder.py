"""The way from the reference to each variant, one hop an artifact, so that a loss has a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.artifacts.manifest import Artifact, Kind

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


def parent_of(artifact: Artifact, by_key: Mapping[str, Artifact]) -> Artifact | None:
    """The artifact that this one was made from."""
    for role in PARENT_ROLES:
        for ref in artifact.manifest.inputs.get(role, ()):
            if ref.key in by_key:
                return by_key[ref.key]
    return None


def edges_to(variants: Sequence[Artifact], ancestors: Mapping[str, Artifact]) -> list[Edge]:
    """Every hop on the ways to the variants, parents before children, each once."""
    by_key = {artifact.manifest.key: artifact for artifact in ancestors.values()}
    edges: dict[str, Edge] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.step in edges:
            return
        parent = parent_of(artifact, by_key)
        if parent is not None:
            visit(parent)
        edges[artifact.step] = Edge(artifact, parent)

    for variant in variants:
        visit(variant)
    return list(edges.values())
