"""What does it take to keep the accuracy of a depthwise network that int8 serves badly, and what does that cost?

    python benchmarks/precision_budget.py [--seeds 0,1,2] [--quick] [--output FILE]

A network of depthwise convolutions learns from a part of Fashion-MNIST. Then the channels in front of its depthwise
convolutions are made uneven: each is multiplied by a power of two, and the depthwise weights are divided by it. Relu
keeps positive factors, so the float network answers the same to the last bit; one scale for each activation serves it
badly. That is cross-layer equalization (Nagel et al., 2019, arXiv:1906.04721) the wrong way round. Calibration alone,
then `precision: {budget_pp: 0.5}`, with the least work in float and with the least latency.

Run it on one core (`taskset -c 1`); about 4 minutes. Exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from peers.networks import Recipe, data_of
from promises import RESULTS, promise, write_result
from remembering import versions
from torch import nn

from compress.data.calibration_set import calibration_set
from compress.data.rules import subset
from compress.data.split import Dataset, Split
from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.onnx_graph.export import INPUT, OUTPUT, export_onnx
from compress.onnx_graph.graph import GraphIndex, attributes, tensor_from
from compress.onnx_graph.loading import load_onnx, save_onnx
from compress.pipeline.machine import FACTS, machine_state, resolve_precision
from compress.quantization.quantize import DEFAULTS, Quantized, quantize_onnx
from compress.quantization.search import Goal
from compress.stages.contract import network_input
from compress.stages.precision import Decision, Minimize, choose
from compress.training.loop import fit
from compress.training.objectives import hard_objective

BUDGET_PP = 0.5
LEAST_LOSS_PP = 1.0
INT8_MACS = 0.7
NO_SLOWER = 1.02
SEEDS = (0, 1, 2)
CALIBRATION_SAMPLES = 512
VALIDATION_SAMPLES = 1000
BATCH = 64
DOUBLINGS = 12  # channels differ by up to 2 ** 12
BLOCKS = (0, 1)  # whose depthwise convolution gets uneven channels, of three
MINIMIZED: tuple[Minimize, ...] = ("work", "latency")
RECIPE = Recipe(
    {"name": "mobilenet", "widths": [48, 96], "depths": [1, 2], "expansion": 2, "stem_stride": 2},
    *("sgd", 0.1, 5e-4, 3, 5_000),
)


def data_for(recipe: Recipe) -> Dataset:
    """What the network learns from, and more validation images than belong to that few."""
    part, whole = data_of(recipe.samples), data_of()
    return replace(part, validation=subset(whole.validation, VALIDATION_SAMPLES, whole.classes, "samples"))


def with_relu(module: nn.Module) -> nn.Module:
    """Replace every ReLU6, which a factor would not pass unchanged, by a ReLU."""
    for name, child in module.named_children():
        setattr(module, name, nn.ReLU() if isinstance(child, nn.ReLU6) else with_relu(child))
    return module


def train_float(recipe: Recipe, seed: int, data: Dataset, path: Path) -> onnx.ModelProto:
    """Train one network, write it to `path` and return the graph."""
    module = with_relu(recipe.network(seed, data))
    fitted = fit(module, hard_objective(), data.train, data.validation, recipe.settings(seed))
    return export_onnx(fitted.module, torch.zeros(2, *data.image_shape), path)


def make_uneven(model: onnx.ModelProto, blocks: Sequence[int], doublings: int, seed: int) -> int:
    """Make the channels in front of some depthwise convolutions uneven, in place; the float answers stay the same.

    Args:
        model: convolutions with Relu behind them.
        blocks: which depthwise convolutions, counted from 0.
        doublings: factors are 1, 2, 4, ... up to 2 to the power of this.
        seed: of the factors.

    Returns:
        How many convolutions that was.
    """
    random, index = np.random.default_rng(seed), GraphIndex(model)
    depthwise = [node for node in model.graph.node if attributes(node).get("group", 1) > 1]
    changed: dict[str, np.ndarray] = {}
    for number in blocks:
        relu = index.producer(depthwise[number].input[0], "Relu")
        conv = index.producer(relu.input[0], "Conv") if relu else None
        if conv is None:
            raise SystemExit(f"{depthwise[number].name} has no Conv and Relu before it")
        factors = np.exp2(random.integers(0, doublings + 1, attributes(depthwise[number])["group"])).astype(np.float32)
        column = factors[:, None, None, None]
        weight, bias = (index.required(name, "weight") for name in conv.input[1:3])
        changed |= {conv.input[1]: weight * column, conv.input[2]: bias * factors}
        changed[depthwise[number].input[1]] = index.required(depthwise[number].input[1], "weight") / column
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(tensor_from(changed[tensor.name], tensor.name))
    return len(blocks)


def logits(file: Path, split: Split, *, optimized: bool = True) -> np.ndarray:
    """What an ONNX file answers, (samples, classes)."""
    session = OnnxRuntimeSession.load(file, optimized=optimized)
    parts = [session.run({INPUT: images})[OUTPUT] for images in batches_of(split)]
    session.close()
    return np.concatenate(parts)


def top1(file: Path, split: Split, *, optimized: bool = True) -> float:
    """Share of right answers of an ONNX file on a split."""
    return float((logits(file, split, optimized=optimized).argmax(axis=1) == split.labels).mean())


def batches_of(split: Split) -> Iterator[np.ndarray]:
    """Its images as a network takes them."""
    for start in range(0, len(split), BATCH):
        yield network_input(split.images[start : start + BATCH])


def drops_pp(
    quantized: Quantized, before: dict[str, float], data: Dataset, folder: Path
) -> dict[str, dict[str, float]]:
    """Percentage points of top-1 that each written file loses against the float file, by split and file."""
    save_onnx(quantized.signed, folder / "model.onnx")
    save_onnx(quantized.unsigned, folder / "model.ort.onnx")
    files = {"model.ort.onnx": True, "model.onnx": False}  # the signed one node by node: see decision 5
    return {
        split.name: {
            name: round(100 * (before[split.name] - top1(folder / name, split, optimized=optimized)), 4)
            for name, optimized in files.items()
        }
        for split in (data.validation, data.test)
    }


def figures_of(decision: Decision, drops: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    """What one way of choosing came to."""
    document = decision.document()
    return {
        "drop_pp": drops["validation"],
        "test_drop_pp": drops["test"],
        "int8_macs": document["int8_macs"],
        "float_layers": {one["name"]: one["why"] for one in document["layers"] if one["decided"] == "float"},
        "latency": document.get("latency"),
        "candidates": document.get("candidates"),
        "seconds": round(seconds, 1),
    }


def measure(recipe: Recipe, seed: int, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train, make uneven, quantize, choose twice, and answer both splits with every file.

    Args:
        recipe: of the network.
        seed: of its weights, the order of images and the factors.
        data: Fashion-MNIST, in part.
        folder: of the files.
    """
    start = time.monotonic()
    model = train_float(recipe, seed, data, folder / "trained.onnx")
    make_uneven(model, BLOCKS, DOUBLINGS, seed)
    save_onnx(model, folder / "float.onnx")
    same, uneven = (logits(folder / name, data.validation) for name in ("trained.onnx", "float.onnx"))
    before = {split.name: top1(folder / "float.onnx", split) for split in (data.validation, data.test)}
    seconds = {"training": round(time.monotonic() - start, 1)}
    chosen, _ = calibration_set(data.train, CALIBRATION_SAMPLES)
    full = quantize_onnx(model, batches_of(chosen))
    row: dict[str, Any] = {
        "seed": seed,
        "n": {split.name: len(split) for split in (data.validation, data.test)},
        "float_top1": before["test"],
        "float_changed": float(np.abs(same - uneven).max()),
        "all_int8_drop_pp": drops_pp(full, before, data, folder),
    }
    search = partial(choose, load_onnx(folder / "float.onnx"), full, Goal(budget_pp=BUDGET_PP))
    for minimize in MINIMIZED:
        begun = time.monotonic()
        feed = {INPUT: network_input(data.validation.images[:1])}
        decision = search(lambda: batches_of(data.validation), data.validation.labels, DEFAULTS, minimize, feed)
        taken = time.monotonic() - begun
        row[minimize] = figures_of(decision, drops_pp(decision.choice.quantized, before, data, folder), taken)
    return {**row, "seconds": {**seconds, "whole": round(time.monotonic() - start, 1)}}


def largest(rows: Sequence[dict[str, Any]], minimize: str, split: str) -> float:
    """Worst loss of any file of any seed, percentage points."""
    return max(lost for row in rows for lost in row[minimize][split].values())


def promises(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What is promised of every seed.

    Args:
        rows: from `measure`.
        seeds: that were asked for.
    """
    found = [promise("seeds", len(rows), ">=", len(seeds))]
    if not rows:
        return found
    changed = max(row["float_changed"] for row in rows)
    least = min(min(row["all_int8_drop_pp"]["validation"].values()) for row in rows)
    found += [
        promise("uneven channels: largest change of a float logit", changed, "<=", 0),
        promise("all in int8: smallest loss of top-1 on validation, pp", least, ">", LEAST_LOSS_PP),
    ]
    for minimize in MINIMIZED:
        what = f"budget {BUDGET_PP} pp, minimize {minimize}"
        share = min(row[minimize]["int8_macs"] for row in rows)
        unexplained = sum(not why for row in rows for why in row[minimize]["float_layers"].values())
        found += [
            promise(f"{what}: largest loss on validation, pp", largest(rows, minimize, "drop_pp"), "<=", BUDGET_PP),
            promise(f"{what}: smallest share of multiply-accumulates in int8", share, ">=", INT8_MACS),
            promise(f"{what}: layers in float without a reason", unexplained, "<=", 0),
            promise(f"{what}: largest loss on test, pp", largest(rows, minimize, "test_drop_pp"), "reported", None),
        ]
    timed = [row["latency"]["latency"] for row in rows]
    gains = [one["chosen"]["ratio"] / one["least_work"]["ratio"] for one in timed]
    found.append(promise("latency of the choice for latency over that for work, largest", max(gains), "<=", NO_SLOWER))
    found.append(promise("the same, smallest", min(gains), "reported", None))
    for name, of in (("chosen", "choice for latency"), ("least_work", "choice for work"), ("float", "float file")):
        ratios = [one[name]["ratio"] for one in timed]
        found.append(
            promise(f"latency of the {of} over all in int8, mean", sum(ratios) / len(ratios), "reported", None)
        )
    return found


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seeds: tuple[int, ...]
    recipe: Recipe
    quick: bool
    output: Path


def parse(arguments: Sequence[str] | None = None) -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="numbers, separated by commas")
    parser.add_argument("--quick", action="store_true", help="hardly any training: does it work?")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision_budget.json")
    options = parser.parse_args(arguments)
    seeds = tuple(dict.fromkeys(map(int, options.seeds.split(","))))
    recipe = replace(RECIPE, epochs=1, samples=1_000) if options.quick else RECIPE
    return Plan(seeds, recipe, options.quick, options.output)


def main() -> int:
    """Train, quantize, choose, measure, judge, write."""
    plan = parse()
    state, rows = machine_state(), list[dict[str, Any]]()
    data = data_for(plan.recipe)
    for seed in plan.seeds:
        with TemporaryDirectory() as folder:
            rows.append(measure(plan.recipe, seed, data, Path(folder)))
        print({name: value for name, value in rows[-1].items() if name not in MINIMIZED}, flush=True)
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **state,
            "libraries": versions("torch", "onnx", "onnxruntime", "numpy"),
            "precision": resolve_precision("auto"),
            "quick": plan.quick,
            "wall_s": round(sum(row["seconds"]["whole"] for row in rows), 1),
        },
        "recipe": {**asdict(plan.recipe), "blocks": list(BLOCKS), "doublings": DOUBLINGS},
        "promises": promises(rows, plan.seeds),
        "rows": rows,
    }
    return write_result(plan.output, result)


if __name__ == "__main__":
    sys.exit(main())
