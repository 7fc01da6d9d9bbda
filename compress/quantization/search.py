"""The search for the layers that stay in float: it knows layers by name, and asks about choices of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compress.errors import UsageError
from compress.quantization.sensitivity import LayerSensitivity, Score, Work

FloatLayers = frozenset[str]


@dataclass(frozen=True)
class Goal:
    """What the files must keep: one of an SQNR of their logits, in dB, and top-1, with at most so many points lost.

    Raises:
        UsageError: both are given, or neither.
    """

    sqnr_db: float | None = None
    budget_pp: float | None = None

    def __post_init__(self) -> None:
        if (self.sqnr_db is None) == (self.budget_pp is None):
            raise UsageError(f"Expected one of sqnr_db and budget_pp, got {self.sqnr_db} and {self.budget_pp}.")

    @property
    def mode(self) -> Literal["mixed", "adaptive"]:
        """What such a choice is called."""
        return "mixed" if self.budget_pp is None else "adaptive"

    def met(self, score: Score) -> bool:
        """Whether answers with this score are good enough."""
        if self.budget_pp is None:
            return self.sqnr_db is None or score.sqnr_db >= self.sqnr_db
        return score.loss_pp is not None and score.loss_pp <= self.budget_pp + 1e-9

    def measured(self, score: Score) -> str:
        """The part of a score that this goal is about, in words."""
        if self.budget_pp is None or score.loss_pp is None:
            return f"the logits have {score.sqnr_db:.1f} dB"
        return f"{score.loss_pp:.2f} pp of top-1 are lost"

    def __str__(self) -> str:
        if self.budget_pp is None:
            return f"logits of at least {self.sqnr_db:g} dB"
        return f"at most {self.budget_pp:g} pp of top-1 lost"


def search_float_layers(
    measured: Sequence[LayerSensitivity], work: Mapping[str, Work], met: Callable[[FloatLayers], bool]
) -> list[FloatLayers]:
    """Choices that meet a goal and from which no single layer can go back to int8; leaving every layer in float is met.

    Layers are ranked by the noise that each adds to the logits when it alone is quantized, by that noise per unit of
    work, and by least work. Along each ranking bisection finds a shortest start that meets the goal; then what the goal
    does not need in float goes back to int8, most work first.

    Args:
        measured: the layers.
        work: by name, at least of those.
        met: whether a choice meets the goal; asked about the same choice more than once.

    Returns:
        One to three choices, the one with the least work in float first.
    """
    if met(frozenset()):
        return [frozenset()]
    noise = {one.name: 10 ** (-one.alone.sqnr_db / 10) for one in measured}
    per_work = {name: value / max(work[name].amount, 1) for name, value in noise.items()}
    cheap = {name: -work[name].amount for name in noise}
    ranks = (per_work, noise, cheap)
    starts = [_shortest(sorted(noise, key=lambda name, rank=rank: (-rank[name], name)), met) for rank in ranks]
    return sorted({_pruned(start, work, met) for start in starts}, key=lambda choice: _least_work(choice, work))


def cheapest_choice(
    found: Sequence[FloatLayers],
    cheaper: Callable[[FloatLayers, FloatLayers], bool],
    work: Mapping[str, Work],
    beside: Mapping[str, Collection[str]],
    met: Callable[[FloatLayers], bool],
) -> FloatLayers:
    """The cheapest of some choices, changed by single layers for as long as that makes it cheaper still.

    What stands beside its layers is tried in float too, and what the goal does not need there any more in int8.

    Int8 next to float is not free: codes are made and read there, and a runtime may fuse nothing at such a border.
    Where no choice is cheaper, the first one stays; some work always stays in int8.

    Args:
        found: choices that meet the goal, at least one; least work in float first.
        cheaper: whether a choice, the first argument, costs clearly less than another.
        work: by name.
        beside: by name of every layer, those that write what it reads or read what it writes.
        met: whether a choice meets the goal.

    Returns:
        A choice that meets the goal. No single layer more beside its own, and no single one less, was found to be
        cheaper; what it came from is not tried again.
    """
    choice = found[0]
    for other in found[1:]:
        if cheaper(other, choice):
            choice = other
    left = set[FloatLayers]()  # noise must not lead in circles
    before = None
    while choice != before:
        before = choice
        for name in beside:
            if name in choice:
                other = choice - {name}
                better = other not in left and met(other) and cheaper(other, choice)
            else:
                other = choice | {name}
                borders = not choice.isdisjoint(beside[name])
                some_int8 = any(work[one].macs for one in beside if one not in other)
                better = other not in left and borders and some_int8 and cheaper(other, choice) and met(other)
            if better:
                left.add(choice)
                choice = other
    return choice


def _least_work(choice: FloatLayers, work: Mapping[str, Work]) -> tuple[int, int, list[str]]:
    return sum(work[name].amount for name in choice), len(choice), sorted(choice)


def _shortest(order: Sequence[str], met: Callable[[FloatLayers], bool]) -> FloatLayers:
    """A start of `order` that meets the goal while the one a layer shorter does not."""
    too_few, enough = 0, len(order)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if met(frozenset(order[:middle])):
            enough = middle
        else:
            too_few = middle
    return frozenset(order[:enough])


def _pruned(choice: FloatLayers, work: Mapping[str, Work], met: Callable[[FloatLayers], bool]) -> FloatLayers:
    """Give layers back to int8 until no single one can go back any more."""
    while True:
        before = choice
        for name in sorted(choice, key=lambda name: (-work[name].amount, name)):
            if met(choice - {name}):
                choice = choice - {name}
        if choice == before:
            return choice
