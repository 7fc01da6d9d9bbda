"""What `compress quantize` leaves in float to keep a goal: on which samples that is judged, and how it is told."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from compress.cli.sampling import LABELS, Samples
from compress.errors import DataError, UsageError
from compress.stages.precision import Decision, Minimize, choose, latency_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from compress.engines.session import TensorSpec
    from compress.quantization.foreign import Layer
    from compress.quantization.quantize import Quantized
    from compress.quantization.search import Goal
    from compress.quantization.settings import QuantizeSettings

BATCH_SIZE = 64
EXAMPLE_DB = 25


@dataclass(frozen=True)
class ChoiceOptions:
    """What the command line said of layers in float; see `compress quantize --help`. One goal at most is given."""

    budget_pp: float | None = None
    sqnr_db: float | None = None
    minimize: str | None = None
    judge: Path | None = None

    def goal(self, float_layers: Sequence[str]) -> Goal | None:
        """What the files must keep; None where nothing is chosen.

        Raises:
            UsageError: two ways to choose layers, something that belongs to a goal without one, or an unknown word.
        """
        from compress.quantization.search import Goal

        ways = {"--budget-pp": self.budget_pp, "--sqnr-db": self.sqnr_db, "--float-layer": float_layers or None}
        given = [way for way, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are different ways to choose layers; expected one of them")
        if self.minimize is not None and self.minimize not in get_args(Minimize):
            raise UsageError(f"--minimize {self.minimize[:40]}: expected {' or '.join(get_args(Minimize))}")
        if self.budget_pp is not None or self.sqnr_db is not None:
            return Goal(budget_pp=self.budget_pp, sqnr_db=self.sqnr_db)
        alone = [name for name, value in (("--minimize", self.minimize), ("--judge", self.judge)) if value is not None]
        if alone:
            raise UsageError(f"{alone[0]} belongs to --budget-pp or --sqnr-db, got neither")
        return None


NO_CHOICE = ChoiceOptions()


@dataclass(frozen=True)
class Chosen:
    """The layers in float, and the samples that they were chosen and judged on."""

    decision: Decision
    file: Path
    samples: int
    calibrated_on: bool  # the same samples

    def document(self) -> dict[str, Any]:
        """What `quantize.json` says of it."""
        judged = {"file": self.file.name, "samples": self.samples, "calibrated_on_the_same": self.calibrated_on}
        return {**self.decision.document(), "judged_on": judged}

    def lines(self) -> Iterator[str]:
        """For people."""
        choice = self.decision.choice
        assert choice.goal is not None and choice.reached is not None and choice.all_int8 is not None  # noqa: PT018
        yield f"goal: {choice.goal}; kept small: {choice.cost}"
        yield (
            f"reached: {choice.goal.measured(choice.reached.score)} (all in int8: "
            f"{choice.goal.measured(choice.all_int8.score)}); {100 * choice.int8_macs:.1f} % of the "
            "multiply-accumulates are in int8"
        )
        if self.decision.latency:
            yield f"latency: {latency_text(self.decision.latency)}"
        if self.calibrated_on:
            yield (
                f"calibrated, chosen and judged on the same {self.samples} samples of {self.file.name}: others may "
                "lose more; --judge FILE.npz takes others"
            )
        else:
            yield f"chosen and judged on the same {self.samples} samples of {self.file.name}, calibrated on others"

    def why_float(self, layers: Sequence[Layer]) -> list[Layer]:
        """Every layer in float with the reason: `layers` as the graph tells them, and what was chosen."""
        from compress.quantization.foreign import Layer

        reasons = {one.name: one.why for one in self.decision.choice.layers if one.name in self.nodes}
        told = [Layer(one.node, one.operator, reasons.get(one.node, one.why)) for one in layers if one.why]
        known = {one.node for one in told}
        others = [one for one in self.decision.choice.layers if one.name in self.nodes and one.name not in known]
        return [*told, *(Layer(one.name, one.operator, one.why) for one in others)]

    @property
    def nodes(self) -> frozenset[str]:
        """Nodes that are in float because that was chosen."""
        found = self.decision.choice
        return frozenset(one.name for one in found.layers if one.decided == "float" and one.sensitivity is not None)


def require_labels(
    samples: Samples, goal: Goal, outputs: Sequence[TensorSpec], model: Path, data: Path, judged: Path
) -> None:
    """Refuse a budget of top-1 where no sample says what is right, or the answers are no classes.

    Raises:
        UsageError: there are no labels.
        DataError: the first output is not (n, classes).
    """
    if goal.budget_pp is None:
        return
    if samples.labels is None:
        held = ", ".join(f"{name}=..." for name in samples.inputs)
        command = ["compress", "quantize", str(model), "--data", str(data), "--sqnr-db", str(EXAMPLE_DB)]
        raise UsageError(
            f"--budget-pp wants the class of each sample, and {judged} has none: an array of whole numbers named "
            f"{' or '.join(LABELS)} (or --labels NAME)",
            hint=f"numpy.savez({judged.name!r}, {held}, {LABELS[0]}=...); without labels: {shlex.join(command)}",
        )
    if len(outputs[0].shape) not in (0, 2):  # 0: the file does not say
        raise DataError(
            f"output {outputs[0].name} has shape {outputs[0].shape}, expected (n, classes) for a budget of top-1",
            hint="choose by --sqnr-db",
        )


def choose_layers(
    model: ModelProto,
    quantized: Quantized,
    settings: QuantizeSettings,
    goal: Goal,
    options: ChoiceOptions,
    samples: Samples,
    data: Path,
    fixed_batch: int | None,
) -> Chosen:
    """Find the layers that stay in float.

    Args:
        model: prepared float graph.
        quantized: the same, quantized with `settings`.
        settings: see there.
        goal: what is to be kept.
        options: of the command line.
        samples: to choose and judge on, labelled where the goal is a budget.
        data: the file that was calibrated on.
        fixed_batch: the only batch size that the model takes; None if it takes any.

    Raises:
        DataError: labels beyond the classes.
        ModelError: the goal is met only with no layer in int8.
    """
    feed = next(samples.batches(fixed_batch or 1))
    minimize: Minimize = "latency" if options.minimize == "latency" else "work"
    labels = samples.labels if goal.budget_pp is not None else None
    decision = choose(
        model,
        quantized,
        goal,
        lambda: samples.batches(fixed_batch or BATCH_SIZE),
        labels,
        settings,
        minimize,
        feed,
        fixed_batch=fixed_batch,
    )
    judged = options.judge or data
    return Chosen(decision, judged, samples.count, calibrated_on=judged.resolve() == data.resolve())
