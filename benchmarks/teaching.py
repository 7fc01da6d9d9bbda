"""What do stored answers of a teacher save, do they cost accuracy, and what does our training loop cost at all?

    python benchmarks/teaching.py [--seeds 0,1,2,3,4] [--quick] [--work DIR] [--output FILE]

A teacher with at least 15 times the student's multiply-accumulates teaches on a part of Fashion-MNIST, mirrored and
shifted, in two ways: its answers to 8 views of every image are stored beforehand and looked up, or it runs for every
batch, whose changes are drawn anew in each epoch. Epochs of the two follow each other in one process. Then students of
several seeds learn to the end in both ways. The loop is held against one written by hand, in the same manner, on two
networks; memory against fresh processes that do nothing else.

What is done lies in --work: the same command goes on where it was stopped, and does again only what its code or its
inputs have changed. Takes about 8 minutes on one core; exits 3 if a promise is not met.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from handwritten import LEARNING_RATE, STUDENT, ByHand, network
from promises import RESULTS, ROOT, promise, write_result
from remembering import digest_of, remembered, versions
from safetensors.torch import load_file, save_file
from torch import nn

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset
from compress.data.loader import Augmentation
from compress.data.split import Dataset, file_sha256
from compress.measure.special import student_t_quantile, student_t_sf
from compress.measure.statistics import ratio_interval
from compress.onnx_graph.export import export_onnx
from compress.pipeline.machine import FACTS, machine_state
from compress.quantization.sensitivity import layer_work
from compress.training.answers import AnswersDescription, images_digest, load_answers, write_answers
from compress.training.evaluate import predict_logits, top1
from compress.training.loop import TrainSettings, fit
from compress.training.objectives import distillation_objective, hard_objective
from compress.training.teacher import StoredLogits, TeacherLogits, Teaching

TEACHER = {"name": "resnet", "widths": [32, 64, 128], "stem_stride": 2}
DIGITS_STUDENT = {"name": "resnet", "widths": [8, 16, 32]}
TEMPERATURE, KD_WEIGHT = 4.0, 0.9
ENDLESS = Augmentation(flip=True, shift_px=2)
VIEWS = replace(ENDLESS, views=8)
ARMS = ("stored", "live")
LIBRARIES = ("torch", "lightning-fabric", "numpy")
PARTS = ("data", "models", "training", "distillation")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; images are class-balanced, `test` None stands for all 10,000."""

    train: int = 3000
    test: int | None = None
    teacher_epochs: int = 12
    epochs: int = 12
    pairs: int = 12
    digits_pairs: int = 24
    processes: int = 3


QUICK = Sizes(train=400, test=500, teacher_epochs=1, epochs=1, pairs=3, digits_pairs=3, processes=1)


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seeds: tuple[int, ...]
    sizes: Sizes
    quick: bool
    work: Path
    output: Path

    def once(self, name: str, make: Callable[[], Any], *files: Path, **more: Any) -> Any:
        """What `make` returns, from --work where it was made before from the same code, sizes and `more`.

        It is made again where one of the `files` that it leaves is gone.
        """
        code = digest_of(*(ROOT / "benchmarks" / f"{one}.py" for one in ("teaching", "handwritten")))
        parts = digest_of(*(ROOT / "compress" / part for part in PARTS))
        key = {"code": code, "parts": parts, "libraries": versions(*LIBRARIES), "sizes": asdict(self.sizes), **more}
        memo = self.work / f"{name}.json"
        if not all(file.is_file() for file in files):
            memo.unlink(missing_ok=True)
        return remembered(memo, key, make)


@cache
def data_of(sizes: Sizes) -> Dataset:
    """The images, read once a process."""
    config = DataConfig(dataset="fashion-mnist", train_samples=sizes.train, test_samples=sizes.test)
    return load_dataset(config, Path())


def settings(epochs: int, seed: int, augmentation: Augmentation | None = None, batch_size: int = 64) -> TrainSettings:
    """Of every training here, on one thread."""
    return TrainSettings(
        epochs=epochs, batch_size=batch_size, learning_rate=LEARNING_RATE, seed=seed, augmentation=augmentation
    )


def teacher_of(plan: Plan) -> tuple[nn.Module, dict[str, Any]]:
    """The trained teacher and its top-1, with the SHA-256 of its weights."""
    data, path = data_of(plan.sizes), plan.work / "teacher.safetensors"
    module = network(TEACHER, data)

    def train() -> dict[str, Any]:
        fit(module, hard_objective(), data.train, data.validation, settings(plan.sizes.teacher_epochs, 0, ENDLESS))
        save_file(module.state_dict(), path)
        accuracy = top1(predict_logits(module, data.test), data.test.labels)
        return {"top1": accuracy, "n": len(data.test), "weights": file_sha256(path)}

    facts = plan.once("teacher", train, path)
    module.load_state_dict(load_file(path))
    return module, facts


def answers_of(plan: Plan, teacher: nn.Module, weights: str) -> tuple[StoredLogits, dict[str, Any]]:
    """The teacher's stored answers, and what they cost."""
    data, folder = data_of(plan.sizes), plan.work / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    description = AnswersDescription((weights,), data.classes, images_digest(data.train), len(data.train), VIEWS)

    def write() -> dict[str, Any]:
        started = time.perf_counter()
        per_image = write_answers(folder, [teacher], data.train, description, batch_size=64)
        whole = time.perf_counter() - started
        return {"seconds": whole, "seconds_per_image": per_image, "bytes": (folder / "logits.npy").stat().st_size}

    facts = plan.once("answers", write, folder / "logits.npy", folder / "answers.json", weights=weights)
    return StoredLogits(load_answers(folder).logits, facts["seconds_per_image"]), facts


def macs(module: nn.Module, image_shape: Sequence[int], path: Path) -> int:
    """Multiply-accumulates for one image."""
    graph = export_onnx(module.eval(), torch.zeros(2, *image_shape), path)
    return sum(work.macs for work in layer_work(graph).values())


def alternate(pairs: int, first: Callable[[int], float], second: Callable[[int], float]) -> list[list[float]]:
    """Seconds of two ways in turns, the order swapped each time; each way takes the number of the round.

    One round more than is returned is run, before the others.
    """
    taken: list[list[float]] = []
    for number in range(pairs + 1):
        ways = {"first": first, "second": second}
        names = list(ways) if number % 2 else list(reversed(ways))
        seconds = {name: ways[name](number) for name in names}
        taken.append([seconds["first"], seconds["second"]])
    return taken[1:]


def speed_of_teaching(plan: Plan, teacher: nn.Module, stored: StoredLogits) -> list[list[float]]:
    """Seconds of an epoch, live and with stored answers, validation included."""
    data = data_of(plan.sizes)

    def way(augmentation: Augmentation, teaching_of: Callable[[TrainSettings], Teaching]) -> Callable[[int], float]:
        student = network(STUDENT, data)

        def epoch(number: int) -> float:
            how = settings(1, number, augmentation)
            objective = distillation_objective(teaching_of(how), TEMPERATURE, KD_WEIGHT)
            return fit(student, objective, data.train, data.validation, how).seconds[0]

        return epoch

    live = way(ENDLESS, lambda how: TeacherLogits([teacher], how, data.train))
    return alternate(plan.sizes.pairs, live, way(VIEWS, lambda how: stored))


def speed_of_loop(data: Dataset, model: dict[str, Any], batch_size: int, pairs: int) -> list[list[float]]:
    """Seconds of an epoch, by hand and with our loop, validation included."""
    student, theirs = network(model, data), ByHand(network(model, data), data, batch_size, pairs + 1)

    def ours(number: int) -> float:
        return fit(
            student, hard_objective(), data.train, data.validation, settings(1, number, None, batch_size)
        ).seconds[0]

    def by_hand(number: int) -> float:
        started = time.perf_counter()
        theirs.epoch()
        return time.perf_counter() - started

    torch.set_num_threads(1)
    return alternate(pairs, by_hand, ours)


def peaks(plan: Plan, way: str) -> list[int]:
    """Largest resident memory of fresh processes that train in one way, bytes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "handwritten.py"), way, str(plan.sizes.train)]
    runs = range(plan.sizes.processes)
    done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in runs]
    return [json.loads(one.stdout)["peak_bytes"] for one in done]


def student_of(plan: Plan, arm: str, seed: int, teacher: nn.Module, stored: StoredLogits) -> dict[str, Any]:
    """Train one student to the end and answer the test images."""
    data = data_of(plan.sizes)
    how = settings(plan.sizes.epochs, seed, VIEWS if arm == "stored" else ENDLESS)
    teaching = stored if arm == "stored" else TeacherLogits([teacher], how, data.train)
    student = network(STUDENT, data, seed)
    fitted = fit(student, distillation_objective(teaching, TEMPERATURE, KD_WEIGHT), data.train, data.validation, how)
    accuracy = top1(predict_logits(student, data.test), data.test.labels)
    return {"top1": accuracy, "n": len(data.test), "epoch_s": round(statistics.median(fitted.seconds), 3)}


def ratio_promise(what: str, pairs: Sequence[Sequence[float]], limit: float) -> list[dict[str, Any]]:
    """The speed of the second of two ways over the first: geometric mean, and its interval without a limit."""
    found = ratio_interval([math.log(first / second) for first, second in pairs])
    return [
        promise(f"{what}: geometric mean of {len(pairs)} pairs of epochs", found.ratio, ">=", limit),
        promise(f"{what}: lower end of the 95 % t interval", found.low, "reported", None),
        promise(f"{what}: upper end of the 95 % t interval", found.high, "reported", None),
    ]


def accuracy_promises(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Stored minus live, paired by seed: within the noise of the seeds, and hardly worse even at the far end of it."""
    tops = {(row["arm"], row["seed"]): 100 * row["top1"] for row in rows}
    differences = [tops["stored", seed] - tops["live", seed] for seed in seeds]
    mean, n = statistics.fmean(differences), len(differences)
    what = f"top-1 with stored answers minus live, pp, paired over {n} seeds"
    found = [
        promise("seeds", n, ">=", 5),
        promise(what, mean, "reported", None),
        *(
            promise(f"top-1 {arm}, %", statistics.fmean(tops[arm, seed] for seed in seeds), "reported", None)
            for arm in ARMS
        ),
    ]
    if n > 1:
        error = statistics.stdev(differences) / math.sqrt(n)
        half = student_t_quantile(0.975, n - 1) * error
        p = 2 * student_t_sf(abs(mean) / error, n - 1) if error else float(mean == 0)
        found += [
            promise(f"{what}: p of the paired t test", p, ">=", 0.05),
            promise(f"{what}: lower end of the 95 % t interval", mean - half, ">", -1.0),
            promise(f"{what}: upper end of the 95 % t interval", mean + half, "reported", None),
            promise(
                "deviation of top-1 over the seeds, live, pp",
                statistics.stdev(tops["live", s] for s in seeds),
                "reported",
                None,
            ),
        ]
    return found


def parse(arguments: Sequence[str] | None = None) -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the students, separated by commas")
    parser.add_argument("--quick", action="store_true", help="hardly any training, few test images: does it work?")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "teaching", help="figures, teacher and answers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    work = options.work.resolve() / ("quick" if options.quick else "full")
    seeds = tuple(dict.fromkeys(map(int, options.seeds.split(","))))
    beside = work / "teaching.json" if options.quick else RESULTS / "teaching.json"
    return Plan(seeds, QUICK if options.quick else Sizes(), options.quick, work, options.output or beside)


def measure(plan: Plan) -> dict[str, Any]:
    """Everything that is asked for, each part from --work where it is there."""
    data = data_of(plan.sizes)
    teacher, taught_by = teacher_of(plan)
    stored, cost = answers_of(plan, teacher, taught_by["weights"])
    pair = (TEACHER, teacher), (STUDENT, network(STUDENT, data))
    work = [macs(module, data.image_shape, plan.work / "float.onnx") for _, module in pair]
    weights = {"weights": taught_by["weights"]}
    digits = load_dataset(DataConfig(dataset="digits"), Path())
    return {
        "teacher": {**taught_by, "model": TEACHER, "macs": work[0]},
        "student": {"model": STUDENT, "macs": work[1]},
        "answers": {**cost, "views": VIEWS.views, "samples": len(data.train)},
        "seconds_live_stored": plan.once("speed", lambda: speed_of_teaching(plan, teacher, stored), **weights),
        "seconds_by_hand_ours": {
            "fashion-mnist": plan.once("loop", lambda: speed_of_loop(data, STUDENT, 64, plan.sizes.pairs)),
            "digits": plan.once("digits", lambda: speed_of_loop(digits, DIGITS_STUDENT, 32, plan.sizes.digits_pairs)),
        },
        "peak_bytes": {way: plan.once(way, lambda way=way: peaks(plan, way)) for way in ("ours", "by_hand")},
        "rows": [
            {"arm": arm, "seed": seed}
            | plan.once(
                f"{arm}_{seed}", lambda arm=arm, seed=seed: student_of(plan, arm, seed, teacher, stored), **weights
            )
            for seed in plan.seeds
            for arm in ARMS
        ],
    }


def judged(found: dict[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What is promised, held against what was found."""
    peak = {way: statistics.median(values) for way, values in found["peak_bytes"].items()}
    return [
        promise(
            "multiply-accumulates, teacher / student", found["teacher"]["macs"] / found["student"]["macs"], ">=", 15
        ),
        *ratio_promise("speed of an epoch, stored answers / live teaching", found["seconds_live_stored"], 1.8),
        *accuracy_promises(found["rows"], seeds),
        *(
            one
            for name, pairs in found["seconds_by_hand_ours"].items()
            for one in ratio_promise(f"speed of our loop / by hand, {name}", pairs, 0.97)
        ),
        promise("peak memory, ours / by hand", peak["ours"] / peak["by_hand"], "<=", 1.05),
    ]


def main() -> int:
    """Measure, judge, write."""
    plan = parse()
    plan.work.mkdir(parents=True, exist_ok=True)
    state = machine_state()
    found = measure(plan)
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **state,
            "libraries": versions(*LIBRARIES),
            "training_threads": 1,
            "quick": plan.quick,
        },
        "sizes": asdict(plan.sizes),
        "promises": judged(found, plan.seeds),
        **found,
    }
    return write_result(plan.output, result)


if __name__ == "__main__":
    sys.exit(main())
