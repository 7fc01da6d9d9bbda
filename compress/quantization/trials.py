"""What choices of float layers do and cost: each is judged and each pair of them held against each other once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from compress.errors import ModelError
from compress.log import Bar
from compress.quantization.search import FloatLayers, Goal, cheapest_choice
from compress.quantization.sensitivity import SQNR_CAP_DB, Judge, MixedGraphs, Score, Work


@dataclass(frozen=True)
class Cost:
    """What is kept small where it is not the work in float.

    `what` says so in words. `compare` is asked about two unsigned graphs: what the first one costs, and whether that is
    clearly less than what the second one does, the noise of a measurement considered. `confirm` is asked once, with
    more care, about the graph that was found cheapest and the one with the least work in float, in this order: whether
    the first one may stay, since the second one does not cost clearly less.
    """

    what: str
    compare: Callable[[onnx.ModelProto, onnx.ModelProto], tuple[float, bool]]
    confirm: Callable[[onnx.ModelProto, onnx.ModelProto], bool]


@dataclass(frozen=True)
class Candidate:
    """A choice of float layers that was tried, its cost, and whether it was cheaper than the best one before.

    `met` says whether it meets the goal; None where it was not judged, since it was no cheaper.
    """

    float_layers: tuple[str, ...]
    cost: float
    cheaper: bool
    met: bool | None


@dataclass(frozen=True)
class Outcome:
    """What one choice of float layers does: the score of the worse of the two files, and whether the goal is met."""

    score: Score
    met: bool


class Trials:
    """Remembers what each choice of float layers does and costs.

    Each trial runs the graphs that would be written: the unsigned one as ONNX Runtime does, then the signed one node by
    node.

    Args:
        graphs: makes the files of a choice.
        judge: holds them against the float graph.
        goal: what they must keep.
        bar: advances by one for each choice that is judged, and each pair that is compared.
    """

    def __init__(self, graphs: MixedGraphs, judge: Judge, goal: Goal, bar: Bar) -> None:
        self._graphs = graphs
        self._judge = judge
        self._goal = goal
        self._bar = bar
        # a graph without any Q/DQ is the float graph
        self._outcomes = {frozenset(graphs.names): Outcome(Score(SQNR_CAP_DB, 0.0), True)}
        self._compared: dict[tuple[FloatLayers, FloatLayers], tuple[float, bool]] = {}

    def outcome(self, choice: FloatLayers) -> Outcome:
        """Score of the worse of the two files."""
        if choice not in self._outcomes:
            self._outcomes[choice] = self._run(choice)
            self._bar.advance()
        return self._outcomes[choice]

    def met(self, choice: FloatLayers) -> bool:
        """Whether both files meet the goal."""
        return self.outcome(choice).met

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that was compared, in that order."""
        return tuple(
            Candidate(self._graphs.ordered(one), price, less, self.met(one) if one in self._outcomes else None)
            for (one, _), (price, less) in self._compared.items()
        )

    def cheapest(
        self, found: Sequence[FloatLayers], cost: Cost, work: Mapping[str, Work]
    ) -> tuple[FloatLayers, FloatLayers]:
        """What `cheapest_choice` finds, and what is taken: that, or the least work where it turns out to cost less."""

        def cheaper(one: FloatLayers, other: FloatLayers) -> bool:
            if (one, other) not in self._compared:
                self._compared[one, other] = cost.compare(self._unsigned(one), self._unsigned(other))
                self._bar.advance()
            return self._compared[one, other][1]

        choice = cheapest_choice(found, cheaper, work, self._graphs.beside, self.met)
        return choice, choice if cost.confirm(self._unsigned(choice), self._unsigned(found[0])) else found[0]

    def reason(self, choice: FloatLayers, name: str) -> str:
        """Why a layer of the choice is in float."""
        without = choice - {name}
        outcome = self.outcome(without)
        if not outcome.met:
            return f"were it in int8: {self._goal.measured(outcome.score)}"
        if self._compared.get((choice, without), (0, False))[1]:
            return "the goal would be met with it in int8, at a higher cost"
        if (without, choice) in self._compared:
            return "the goal would be met with it in int8, at a cost that is not clearly lower"
        return "the goal would be met with it in int8; whether that costs less was not tried"

    def only_float(self) -> ModelError:
        """No choice is left."""
        return ModelError(
            f"Only with no layer in int8 is the goal met ({self._goal}, on {self._judge.samples} samples); "
            f"with all of them in int8 {self._goal.measured(self.outcome(frozenset()).score)}.",
            hint="Allow more, or train with fake-quant first (a `qat` step).",
        )

    def _unsigned(self, choice: FloatLayers) -> onnx.ModelProto:
        return self._graphs.unsigned(self._graphs.signed(choice))

    def _run(self, choice: FloatLayers) -> Outcome:
        signed = self._graphs.signed(choice)
        score = self._judge.score(self._graphs.unsigned(signed))
        if not self._goal.met(score):
            return Outcome(score, False)  # the other file cannot change that
        other = self._judge.score(signed, optimized=False)
        lost = [one.loss_pp for one in (score, other) if one.loss_pp is not None]
        worse = Score(min(score.sqnr_db, other.sqnr_db), max(lost, default=None))
        return Outcome(worse, self._goal.met(worse))
