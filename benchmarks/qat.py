"""What does int8 cost after quantization-aware training? Its files against the same training in float.

    python benchmarks/qat.py [--models residual,vit] [--seeds 0,1,2,3,4] [--quick] [--work DIR] [--output FILE]

A network is trained in float on a part of Fashion-MNIST. From these weights two trainings go on, alike in data, order,
epochs, learning rate and loss (labels alone, no teacher): one with fake-quant, one in float, the control. Both become
ONNX files, the first an int8 file, and ONNX Runtime answers the same test images with both.

What is done for a network and a seed lies in --work: the same command goes on where it was stopped, and does again only
what its code or its inputs have changed. Takes about 25 minutes on 2 cores; exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.environments import HERE
from peers.networks import Recipe
from promises import RESULTS, ROOT, promise, write_result
from remembering import digest_of, remembered, versions
from torch import nn

from compress.data.calibration_set import calibration_set
from compress.data.config import DataConfig
from compress.data.datasets import load_dataset, split_digests
from compress.data.split import Dataset, Split
from compress.engines.onnxruntime_session import OnnxRuntimeSession
from compress.measure.comparison import paired_counts
from compress.measure.fidelity import correct_bits
from compress.measure.special import student_t_quantile
from compress.measure.statistics import tango_interval
from compress.models.catalogue import count_parameters
from compress.onnx_graph.export import INPUT, OUTPUT, export_onnx
from compress.onnx_graph.loading import save_onnx
from compress.pipeline.machine import FACTS, machine_state, resolve_precision, threads
from compress.quantization.precision import fixed_precision
from compress.quantization.quantize import quantize_onnx
from compress.quantization.quantizer import convert_qat, prepare_qat
from compress.stages.contract import network_input
from compress.training.loop import FitResult, TrainSettings, fit
from compress.training.objectives import hard_objective

MARGIN_PP = 0.5
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_SAMPLES = 512  # for what fake-quant gave no scale
CHUNK = 250  # test images at a time
LIBRARIES = ("torch", "torchao", "lightning-fabric", "onnx", "onnxscript", "onnxruntime", "numpy")
PARTS = ("data", "engines", "measure/fidelity.py", "models", "onnx_graph", "quantization", "training")


@dataclass(frozen=True)
class Tuned(Recipe):
    """How a network is trained, and how both trainings go on.

    `tuning_rate` is the peak learning rate of the `tuning_epochs`; `test_samples` None stands for all 10,000.
    """

    tuning_rate: float
    tuning_epochs: int = 3
    test_samples: int | None = None

    def tuning(self, seed: int) -> TrainSettings:
        """Of either training that goes on."""
        return replace(self.settings(seed), epochs=self.tuning_epochs, learning_rate=self.tuning_rate)


RECIPES = {
    "residual": Tuned({"name": "resnet", "widths": [32, 64], "stem_stride": 2}, "sgd", 0.1, 5e-4, 4, 10_000, 0.01),
    # inverted residuals with depthwise convolutions and ReLU6
    "depthwise": Tuned(
        {"name": "mobilenet", "widths": [16, 32, 64], "depths": [1, 2, 2], "stem_stride": 2},
        *("sgd", 0.1, 5e-4, 5, 10_000, 0.01),
    ),
    "vit": Tuned({"name": "vit"}, "adamw", 1e-3, 0.05, 6, 10_000, 1e-4),
}
QUICK: dict[str, Any] = {"epochs": 1, "tuning_epochs": 1, "samples": 1000, "test_samples": 1000}


@cache
def data_of(samples: int, test_samples: int | None) -> Dataset:
    """The images, read once a process."""
    return load_dataset(data_config(samples, test_samples), Path())


def data_config(samples: int, test_samples: int | None) -> DataConfig:
    """What is read: class-balanced counts of training and test images, None for all."""
    return DataConfig(dataset="fashion-mnist", train_samples=samples, test_samples=test_samples)


def key_of(recipe: Tuned, seed: int) -> dict[str, Any]:
    """What the figures of a network and a seed depend on, but for the machine's rounding."""
    code = digest_of(Path(__file__).resolve(), HERE / "networks.py", *(ROOT / "compress" / part for part in PARTS))
    return {
        "recipe": asdict(recipe),
        "seed": seed,
        "threads": threads(),
        "precision": resolve_precision("auto"),
        "data": split_digests(data_config(recipe.samples, recipe.test_samples), Path()),
        "code": code,
        "libraries": versions(*LIBRARIES),
    }


def answers(path: Path, split: Split) -> dict[str, Any]:
    """ONNX Runtime's answers to a split: `top1`, a fraction, and which samples are `correct`, as bits."""
    session = OnnxRuntimeSession.load(path, threads=threads())
    starts = range(0, len(split), CHUNK)
    parts = [session.run({INPUT: network_input(split.images[at : at + CHUNK])})[OUTPUT] for at in starts]
    session.close()
    logits = np.concatenate(parts)
    top1 = float((logits.argmax(axis=1) == split.labels).mean())
    return {"top1": top1, "correct": correct_bits(logits, split.labels)}


def write_int8(trained: nn.Module, example: torch.Tensor, train: Split, path: Path) -> float:
    """Write the unsigned file of a network that was trained with fake-quant; returns its share of int8 work."""
    model = export_onnx(trained, example, path.with_name("qdq.onnx"))

    def batches() -> Iterator[np.ndarray]:
        chosen, _ = calibration_set(train, CALIBRATION_SAMPLES)
        yield network_input(chosen.images)

    quantized = quantize_onnx(model, batches())
    save_onnx(quantized.unsigned, path)
    return fixed_precision(model, quantized).int8_macs


def measure(recipe: Tuned, seed: int, folder: Path) -> dict[str, Any]:
    """Train one network three times and answer the test images with two of the results.

    Args:
        recipe: what and how.
        seed: of the weights, and of the order of images.
        folder: of the ONNX files.

    Returns:
        `n` test images, `parameters`, `validation_top1` of the float network before the last trainings, the `answers`
        of `control` and `int8`, the share of multiply-accumulates in int8 `int8_macs`, and `seconds`.
    """
    start = time.monotonic()
    data = data_of(recipe.samples, recipe.test_samples)
    example = torch.zeros(2, *data.image_shape)
    module = recipe.network(seed, data)

    def train(what: nn.Module, settings: TrainSettings) -> FitResult:
        return fit(what, hard_objective(), data.train, data.validation, settings)

    trained = train(module, recipe.settings(seed))
    control, prepared = copy.deepcopy(module), prepare_qat(module, example)
    fitted = {
        "float": trained,
        "control": train(control, recipe.tuning(seed)),
        "qat": train(prepared, recipe.tuning(seed)),
    }
    export_onnx(control, example, folder / "control.onnx")
    share = write_int8(convert_qat(prepared), example, data.train, folder / "int8.onnx")
    arms = {arm: answers(folder / f"{arm}.onnx", data.test) for arm in ("control", "int8")}
    return {
        "n": len(data.test),
        "parameters": count_parameters(module),
        "validation_top1": trained.history[trained.best_epoch - 1]["validation_top1"],
        **arms,
        "int8_macs": share,
        "seconds": {
            **{name: round(sum(one.seconds), 1) for name, one in fitted.items()},
            "whole": round(time.monotonic() - start, 1),
        },
    }


def paired(cell: dict[str, Any]) -> dict[str, Any]:
    """One network and seed as a row: the two accuracies, and the images that only one of the files has right."""
    gained, lost = paired_counts(cell["control"]["correct"], cell["int8"]["correct"], cell["n"])
    kept = ("model", "seed", "n", "parameters", "validation_top1", "int8_macs", "seconds")
    tops = {f"{arm}_top1": cell[arm]["top1"] for arm in ("control", "int8")}
    return {**{name: cell[name] for name in kept}, **tops, "gained": gained, "lost": lost}


def lower_bound(values: Sequence[float]) -> float:
    """Lower end of the 95 % t interval of a mean; values are two or more."""
    half = student_t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half


def promises(rows: Iterable[dict[str, Any]], models: Iterable[str], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """What is promised of every network, its seeds pooled.

    Args:
        rows: from `paired`.
        models: that were asked for.
        seeds: the same.
    """
    found: list[dict[str, Any]] = []
    known, wanted = list(rows), set(seeds)
    for model in models:
        mine = [row for row in known if row["model"] == model and row["seed"] in wanted]
        found.append(promise(f"{model}: seeds", len(mine), ">=", len(wanted)))
        if not mine:
            continue
        gained, lost, n = (sum(row[name] for row in mine) for name in ("gained", "lost", "n"))
        what = f"{model}: int8 after QAT minus control in float, pp"
        low = 100 * tango_interval(gained, lost, n).low
        share = min(row["int8_macs"] for row in mine)
        found += [
            promise(f"{what}: lower end of the 95 % interval, n {n} (Tango)", low, ">", -MARGIN_PP),
            promise(f"{model}: multiply-accumulates in int8, smallest share", share, ">=", 1),
            promise(what, 100 * (gained - lost) / n, "reported", None),
        ]
        if len(mine) > 1:
            each = [100 * (row["gained"] - row["lost"]) / row["n"] for row in mine]
            what += f": lower end of the 95 % t interval over {len(mine)} seeds"
            found.append(promise(what, lower_bound(each), "reported", None))
    return found


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    quick: bool
    work: Path
    output: Path


def parse(arguments: Sequence[str] | None = None) -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(RECIPES), help="names, separated by commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="numbers, separated by commas")
    parser.add_argument("--quick", action="store_true", help="hardly any training, few test images: does it work?")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "qat", help="figures and models")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    models = tuple(dict.fromkeys(options.models.split(",")))
    if unknown := set(models) - set(RECIPES):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    work = options.work.resolve()
    beside = work / "quick.json" if options.quick else RESULTS / "qat.json"
    seeds = tuple(dict.fromkeys(map(int, options.seeds.split(","))))
    return Plan(models, seeds, options.quick, work, options.output or beside)


def cell_of(plan: Plan, model: str, seed: int) -> dict[str, Any]:
    """The row of one network and seed, measured unless --work has it."""
    recipe = recipe_of(plan, model)
    folder = plan.work / ("quick" if plan.quick else "full") / f"{model}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    cell = remembered(folder.with_suffix(".json"), key_of(recipe, seed), lambda: measure(recipe, seed, folder))
    return paired({"model": model, "seed": seed, **cell})


def recipe_of(plan: Plan, model: str) -> Tuned:
    """The recipe of a network, hardly any training in it where the plan is quick."""
    return replace(RECIPES[model], **QUICK) if plan.quick else RECIPES[model]


def main() -> int:
    """Train, export, answer, judge, write."""
    plan = parse()
    state = machine_state()
    rows: list[dict[str, Any]] = []
    for model in plan.models:
        for seed in plan.seeds:
            rows.append(cell_of(plan, model, seed))
            print(" ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **state,
            "libraries": versions(*LIBRARIES),
            "precision": resolve_precision("auto"),
            "quick": plan.quick,
            "wall_s": round(sum(row["seconds"]["whole"] for row in rows), 1),
        },
        "recipes": {model: asdict(recipe_of(plan, model)) for model in plan.models},
        "promises": promises(rows, plan.models, plan.seeds),
        "rows": rows,
    }
    return write_result(plan.output, result)


if __name__ == "__main__":
    sys.exit(main())
