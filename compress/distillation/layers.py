"""A student that starts from layers of another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compress.errors import UsageError

_SHOWN = 3


def copy_layers(student: nn.Module, source: nn.Module, pairs: Sequence[tuple[str, str]], who: str) -> int:
    """Copy weights and statistics of some modules, e.g. every other block (Sanh et al., 2019, arXiv:1910.01108).

    Args:
        student: gets them; left as it was if an error is raised.
        source: has them.
        pairs: (module of the student, module of the source), see `pairs_named`.
        who: whose network the source is, for messages, e.g. teacher.

    Returns:
        How many parameters of the student were taken over, each counted once.

    Raises:
        UsageError: two modules hold other tensors, or tensors of other shapes; or none of them has a parameter.
    """
    for ours, theirs in pairs:
        mine, given = student.get_submodule(ours).state_dict(), source.get_submodule(theirs).state_dict()
        _check_pair(mine, given, ours, theirs, who)
    taken: dict[str, int] = {}
    for ours, theirs in pairs:
        module = student.get_submodule(ours)
        module.load_state_dict(source.get_submodule(theirs).state_dict())
        taken |= {f"{ours}.{name}": parameter.numel() for name, parameter in module.named_parameters()}
    if not taken:
        raise UsageError(
            f"`layers` names modules without parameters only: {', '.join(ours for ours, _ in pairs)}.",
            hint="Name layers with weights.",
        )
    return sum(taken.values())


def _check_pair(mine: Mapping[str, Tensor], given: Mapping[str, Tensor], ours: str, theirs: str, who: str) -> None:
    where = f"{ours!r} of the student and {theirs!r} of the {who}"
    if mine.keys() != given.keys():
        differing = sorted(mine.keys() ^ given.keys())
        more = ", ..." if len(differing) > _SHOWN else ""
        raise UsageError(
            f"`layers`: {where} hold other tensors: only one of the two has {', '.join(differing[:_SHOWN])}{more}.",
            hint="Name layers of one kind.",
        )
    for name, tensor in mine.items():
        if tensor.shape != given[name].shape:
            raise UsageError(
                f"`layers`: {where} have other shapes: {name} is {tuple(tensor.shape)} and {tuple(given[name].shape)}.",
                hint=f"Name layers of the same shape, or give the student the {who}'s widths there.",
            )
