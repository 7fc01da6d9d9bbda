"""Which layers stay in float: by hand, until the logits are close enough, or until the files keep their accuracy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.errors import UsageError
from compress.log import progress
from compress.onnx_graph.lint import Target, raise_on_errors
from compress.onnx_graph.loading import check_model
from compress.onnx_graph.placement import placements
from compress.onnx_graph.qdq import scales_of, strip_qdq
from compress.onnx_graph.scales import ScaleTable
from compress.onnx_graph.simplify import simplify
from compress.quantization.quantize import DEFAULTS, Quantized, resolve_float_layers
from compress.quantization.samples import Batch
from compress.quantization.search import Goal, search_float_layers
from compress.quantization.sensitivity import (
    Batches,
    Judge,
    LayerSensitivity,
    MixedGraphs,
    Score,
    Work,
    layer_work,
    sensitivities,
)
from compress.quantization.settings import QuantizeSettings
from compress.quantization.trials import Candidate, Cost, Outcome, Trials

SENSITIVITY_SAMPLES = 512  # enough to rank layers; the files themselves are judged on all samples
REFUTED = "in float, with others, it seemed to cost less; measured with more care it did not"
FLOAT_WORK = "multiply-accumulates in float; of adds and pools their outputs"


@dataclass(frozen=True)
class LayerChoice:
    """One node, what it computes in, and why; `sensitivity` is None where nothing was measured."""

    name: str
    operator: str
    macs: int
    macs_share: float
    decided: Literal["int8", "float"]
    why: str
    sensitivity: LayerSensitivity | None = None


@dataclass(frozen=True)
class PrecisionChoice:
    """The files, which of their layers are in int8, and the evidence for that.

    `int8_macs` is the share of multiply-accumulates whose operands are both int8. `goal`, `all_int8` and `reached` are
    None where the choice needed no measurement; `top1` is of the float graph, None without labels. `least_work` is what
    would be in float if work were the cost. `candidates` are in the order in which they were held against the best.
    `refuted` is what the search had found cheapest, where more care showed the least work to be cheaper; else empty.
    """

    mode: Literal["int8", "by_hand", "mixed", "adaptive"]
    quantized: Quantized
    layers: tuple[LayerChoice, ...]
    int8_macs: float
    goal: Goal | None = None
    samples: int = 0
    top1: float | None = None
    all_int8: Outcome | None = None
    reached: Outcome | None = None
    cost: str = ""
    least_work: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    refuted: tuple[str, ...] = ()

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the nodes in float, in the order of nodes."""
        return tuple(layer.name for layer in self.layers if layer.decided == "float")

    def summary(self) -> str:
        """What a person should know, in one sentence."""
        text = f"{100 * self.int8_macs:.1f} % of the multiply-accumulates are in int8"
        if self.float_layers:
            text += f"; in float: {', '.join(self.float_layers)}"
        if self.goal is None or self.reached is None or self.all_int8 is None:
            return text
        now, before = (self.goal.measured(outcome.score) for outcome in (self.reached, self.all_int8))
        text += f"; {now} on the {self.samples} samples that this was chosen on (all in int8: {before})"
        if self.goal.budget_pp and self.goal.budget_pp < 100 / self.samples:
            text += f"; one sample is {100 / self.samples:.2f} pp, so that the budget allows no loss"
        return text


def fixed_precision(model: onnx.ModelProto, quantized: Quantized, float_layers: Sequence[str] = ()) -> PrecisionChoice:
    """Say which layers of files that are there are in int8; nothing is measured.

    Args:
        model: the graph that was quantized.
        quantized: the files.
        float_layers: names and patterns of the layers that somebody left in float.

    Raises:
        UsageError: a name or pattern that fits no layer.
    """
    source = simplify(model)
    reasons = dict.fromkeys(resolve_float_layers(source, float_layers), "named to stay in float")
    work = layer_work(strip_qdq(source), _placed(quantized.signed))
    layers, share = _layers(quantized.signed, work, reasons)
    return PrecisionChoice("by_hand" if reasons else "int8", quantized, layers, share)


def choose_precision(
    model: onnx.ModelProto,
    full: Quantized,
    goal: Goal,
    batches: Batches,
    labels: NDArray[np.integer] | None = None,
    *,
    settings: QuantizeSettings = DEFAULTS,
    cost: Cost | None = None,
    fixed_batch: int | None = None,
) -> PrecisionChoice:
    """Find a choice of layers to leave in float with which both int8 files meet the goal, at little cost.

    See `search_float_layers`, `cheapest_choice` for costs of another kind than work, and `Trials` for what is run.

    Args:
        model: float graph, or signed Q/DQ graph.
        full: the same, quantized without exception.
        goal: what is to be kept; a loss of top-1 needs labels.
        batches: starts over at every call; samples, (n, channels, height, width) each, float32, or arrays by input.
        labels: (samples,), integers.
        settings: with which `full` was made.
        cost: e.g. measured latency; None counts the multiply-accumulates in float, which are the same on every machine.
        fixed_batch: the only batch size that the graph takes, and of every batch; None if it takes any.

    Raises:
        UsageError: a budget without labels.
        DataError: samples or labels are missing or malformed.
        ModelError: the goal is met only with no layer in int8.
    """
    if goal.budget_pp is not None and labels is None:
        raise UsageError("A budget of top-1 needs labelled samples.", hint="Choose by sqnr_db where there are none.")
    graphs = MixedGraphs(model, full, settings)
    work = layer_work(graphs.float_graph, graphs.names)
    judge = Judge(graphs.float_graph, batches, labels)
    measured = sensitivities(graphs, _ranking_judge(graphs, judge, batches, labels, fixed_batch or 1), work)
    with progress("trials", None, "trials") as bar:
        trials = Trials(graphs, judge, goal, bar)
        found = search_float_layers(measured, work, trials.met)
        cheapest, chosen = (found[0], found[0]) if cost is None else trials.cheapest(found, cost, work)
    signed = graphs.signed(chosen)
    reasons = {**dict.fromkeys(cheapest, REFUTED), **{name: trials.reason(chosen, name) for name in chosen}}
    layers, share = _layers(signed, work, reasons, {one.name: one for one in measured})
    if share == 0:
        raise trials.only_float()
    return PrecisionChoice(
        mode=goal.mode,
        quantized=_requantized(full, signed, graphs.unsigned(signed), chosen, static_batch=fixed_batch is not None),
        layers=layers,
        int8_macs=share,
        goal=goal,
        samples=judge.samples,
        top1=judge.top1,
        all_int8=trials.outcome(frozenset()),
        reached=trials.outcome(chosen),
        cost=FLOAT_WORK if cost is None else cost.what,
        least_work=graphs.ordered(found[0]),
        candidates=trials.candidates,
        refuted=() if chosen == cheapest else graphs.ordered(cheapest),
    )


def _ranking_judge(
    graphs: MixedGraphs, judge: Judge, batches: Batches, labels: NDArray[np.integer] | None, group: int
) -> Judge:
    """A judge on fewer samples, spread evenly over all, since samples may be sorted by class; whole groups of them."""
    if judge.samples <= SENSITIVITY_SAMPLES:
        return judge
    groups = np.zeros(judge.samples // group, bool)
    groups[np.linspace(0, len(groups) - 1, max(SENSITIVITY_SAMPLES // group, 1)).astype(int)] = True
    kept = groups.repeat(group)

    def few() -> Iterator[Batch]:
        start = 0
        for batch in batches():
            arrays = {"": batch} if isinstance(batch, np.ndarray) else batch
            size = len(next(iter(arrays.values())))
            chosen = {name: array[kept[start : start + size]] for name, array in arrays.items()}
            start += size
            if kept[start - size : start].any():
                yield chosen[""] if isinstance(batch, np.ndarray) else chosen

    return Judge(graphs.float_graph, few, None if labels is None else np.asarray(labels)[kept])


def _placed(signed: onnx.ModelProto) -> dict[str, bool]:
    """Every node that the placement rule knows, and whether all its places are quantized."""
    placed: dict[str, bool] = {}
    for spot in placements(signed):
        placed[spot.node.name] = placed.get(spot.node.name, True) and spot.quantized
    return placed


def _layers(
    signed: onnx.ModelProto,
    work: Mapping[str, Work],
    reasons: Mapping[str, str],
    measured: Mapping[str, LayerSensitivity] | None = None,
) -> tuple[tuple[LayerChoice, ...], float]:
    """Every node of `work` with its decision, and the share of multiply-accumulates in int8."""
    placed = _placed(signed)
    total = max(sum(one.macs for one in work.values()), 1)
    layers = []
    for name, one in work.items():
        int8 = placed.get(name, False)
        if int8:
            why = reasons.get(name, "the goal is met with it in int8" if measured else "it can be")
        elif name in placed:
            why = reasons.get(name, "what it stands beside is in float")
        else:
            why = f"no integer kernel computes this {one.operator}"
        decided: Literal["int8", "float"] = "int8" if int8 else "float"
        sensitivity = (measured or {}).get(name)
        layers.append(LayerChoice(name, one.operator, one.macs, one.macs / total, decided, why, sensitivity))
    int8_macs = sum(layer.macs for layer in layers if layer.decided == "int8")
    return tuple(layers), int8_macs / total


def _requantized(
    full: Quantized,
    signed: onnx.ModelProto,
    unsigned: onnx.ModelProto,
    chosen: Collection[str],
    *,
    static_batch: bool,
) -> Quantized:
    """`full` with the chosen layers in float: graphs, the scales that they use, and what the linter says of them."""
    check_model(signed)
    check_model(unsigned)
    notes = list(full.notes)
    files: tuple[tuple[onnx.ModelProto, Target], ...] = ((signed, "tensorrt"), (unsigned, "onnxruntime"))
    for model, target in files:
        for warning in raise_on_errors(model, target, static_batch=static_batch):
            text = f"{warning} ({target})"
            if warning.node not in chosen and text not in notes:  # a chosen layer is in float on purpose
                notes.append(text)
    used = scales_of(signed)
    # a weight that a float layer reads too is stored a second time, as NAME.int8
    table = {name: scale for name, scale in full.scales.items() if name in used or f"{name}.int8" in used}
    activations = {spot.tensor for spot in placements(signed) if spot.axis is None}
    calibrated = sum(scale.source != "qat" for name, scale in table.items() if name in activations)
    kept = sum(scale.source == "qat" for scale in table.values())
    return replace(
        full, signed=signed, unsigned=unsigned, scales=ScaleTable(table), calibrated=calibrated, kept=kept, notes=notes
    )


def precision_document(choice: PrecisionChoice) -> dict[str, Any]:
    """`precision.json`: the goal, what was reached, and every layer with its figures, its decision and the reason.

    Decibels are rounded to hundredths, percentage points and costs to ten-thousandths; what was not measured is null.
    Candidates are there where the cost was measured.
    """
    candidates = [{**asdict(one), "cost": round(one.cost, 4)} for one in choice.candidates]
    return {
        "mode": choice.mode,
        "goal": None if choice.goal is None else str(choice.goal),
        "samples": choice.samples,
        "cost": choice.cost or None,
        **({"candidates": candidates} if candidates else {}),
        "float_top1": None if choice.top1 is None else round(choice.top1, 6),
        "int8_macs": round(choice.int8_macs, 6),
        "reached": score_document(choice.reached),
        "all_int8": score_document(choice.all_int8),
        "layers": [
            {
                "name": layer.name,
                "operator": layer.operator,
                "macs": layer.macs,
                "macs_share": round(layer.macs_share, 6),
                "alone": score_document(layer.sensitivity and layer.sensitivity.alone),
                "without": score_document(layer.sensitivity and layer.sensitivity.without),
                "decided": layer.decided,
                "why": layer.why,
            }
            for layer in choice.layers
        ],
    }


def score_document(score: Score | Outcome | None) -> dict[str, float | None]:
    """`{sqnr_db, loss_pp}`, null where nothing was measured."""
    if isinstance(score, Outcome):
        score = score.score
    if score is None:
        return {"sqnr_db": None, "loss_pp": None}
    return {
        "sqnr_db": round(score.sqnr_db, 2),
        "loss_pp": None if score.loss_pp is None else round(score.loss_pp, 4),
    }
