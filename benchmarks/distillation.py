"""Does distillation help? Every way of teaching against training alone, over seeds, with equal epochs.

    python benchmarks/distillation.py [--arms kd,hints] [--seeds 0,1,2,3,4] [--quick] [--work DIR] [--output FILE]

A student of about 44,000 parameters learns from 10,000 images of Fashion-MNIST, alone or taught, and answers all 10,000
test images. Every arm of a seed starts from the same weights, sees the same images in the same order as often, and
keeps its last epoch. Arms with 1 % of the labels see those 100 labels and no other, the control among them trains on
these images alone, as many steps. Plain KD was named beforehand as the arm that has to beat training alone; the others
are compared with Holm's correction.

What is done for an arm and a seed lies in --work: the same command goes on where it was stopped. Exits 3 if a promise
is not met.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from promises import RESULTS, ROOT, promise, write_result
from remembering import digest_of, remembered, versions
from safetensors.torch import load_file, save_file

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset, split_digests
from compress.data.labels import hide_labels, labelled_alone
from compress.data.loader import Augmentation
from compress.data.split import Dataset, Split
from compress.distillation.mixture import Mixture, Term
from compress.measure.comparison import holm, paired_counts
from compress.measure.fidelity import correct_bits
from compress.measure.special import student_t_sf
from compress.measure.statistics import tango_interval
from compress.models.catalogue import build_model, count_parameters
from compress.models.normalized import Normalized
from compress.pipeline.machine import FACTS, machine_state, resolve_precision
from compress.training.evaluate import predict_logits, top1
from compress.training.loop import TrainSettings, fit
from compress.training.objectives import MixtureObjective, Objective, hard_objective
from compress.training.teacher import TeacherLogits

SEEDS = (0, 1, 2, 3, 4)
LIBRARIES = ("torch", "lightning-fabric", "numpy", "safetensors")
PARTS = ("data", "distillation", "models", "training")
BASE, NAMED = "alone", "kd"
FEW_BASE = "alone_1pct"


@dataclass(frozen=True)
class Setting:
    """What all arms share; `samples` are of the training split, class-balanced, `few` those of 1 %."""

    teacher: Mapping[str, Any]
    assistant: Mapping[str, Any]
    student: Mapping[str, Any]
    samples: int = 10_000
    few: int = 100
    teacher_epochs: int = 20
    epochs: int = 10
    test_samples: int | None = None

    def fitting(self, seed: int, epochs: int) -> TrainSettings:
        """Of every training."""
        return TrainSettings(
            epochs=epochs,
            batch_size=64,
            learning_rate=0.1,
            precision=resolve_precision("auto"),
            threads=1,
            seed=seed,
            augmentation=Augmentation(flip=True),
            keep="last",  # the best epoch would be chosen by labels
        )


SETTING = Setting(
    teacher={"name": "resnet", "widths": [48, 96], "stem_stride": 2},
    assistant={"name": "resnet", "widths": [32, 64], "stem_stride": 2},
    student={"name": "resnet", "widths": [24, 48], "stem_stride": 2},
)
QUICK: dict[str, Any] = {"samples": 1000, "few": 20, "teacher_epochs": 1, "epochs": 1, "test_samples": 1000}


class Arms:
    """Every arm of one seed; what an arm needs from another is trained once and kept in the work folder."""

    def __init__(self, setting: Setting, seed: int, work: Path) -> None:
        self.setting, self.seed, self.work = setting, seed, work
        self.data = data_of(setting.samples, setting.test_samples)

    def names(self) -> dict[str, Callable[[], Normalized]]:
        """Arm -> what trains its student."""
        kd, hard = Term("kd", 0.9, {"temperature": 4.0}), Term("hard", 0.1)
        label, soft = Term("hard", 1.0), Term("kd", 1.0, {"temperature": 4.0})
        middle, last = ("features.1", "features.1"), ("features.2", "features.2")
        return {
            BASE: lambda: self.alone(),
            NAMED: lambda: self.taught([kd, hard], self.teacher()),
            "dkd": lambda: self.taught(
                [label, Term("dkd", 1.0, {"temperature": 4.0, "alpha": 1.0, "beta": 2.0})], self.teacher()
            ),
            "hints": lambda: self.taught([label, Term("hints", 1.0, pairs=(middle,))], self.teacher()),
            "attention": lambda: self.taught(
                [label, Term("attention_transfer", 1000.0, pairs=(middle, last))], self.teacher()
            ),
            "relational": lambda: self.taught(
                [
                    label,
                    Term("relational_distance", 25.0, pairs=(last,)),
                    Term("relational_angle", 50.0, pairs=(last,)),
                ],
                self.teacher(),
            ),
            "assistant_chain": lambda: self.taught([kd, hard], self.assistant()),
            "born_again": lambda: self.taught([kd, hard], self.kept(BASE, self.alone)),
            "label_free": lambda: self.taught([soft], self.teacher()),
            FEW_BASE: lambda: self.few_alone(self.setting.student, self.setting.epochs),
            "kd_1pct": lambda: self.taught([soft, hard], self.teacher(), self.partly_labelled()),
            "kd_1pct_few_teacher": lambda: self.taught([soft, hard], self.few_teacher(), self.partly_labelled()),
        }

    def alone(self) -> Normalized:
        """From labels alone."""
        return self.fitted(self.setting.student, hard_objective(), self.data.train, self.setting.epochs, self.seed)

    def teacher(self) -> Normalized:
        """Trained on all labels; one for all seeds."""
        return self.kept("teacher", lambda: self.large(self.data.train), shared=True)

    def few_teacher(self) -> Normalized:
        """Trained on 1 % of the labels; one for all seeds."""
        setting = self.setting
        return self.kept("few_teacher", lambda: self.few_alone(setting.teacher, setting.teacher_epochs, 0), shared=True)

    def large(self, train: Split) -> Normalized:
        """The teacher's network, from labels."""
        return self.fitted(self.setting.teacher, hard_objective(0.1), train, self.setting.teacher_epochs, 0)

    def assistant(self) -> Normalized:
        """A network of a size between teacher and student, taught by the teacher."""
        terms = [Term("kd", 0.9, {"temperature": 4.0}), Term("hard", 0.1)]
        return self.kept(
            "assistant", lambda: self.taught(terms, self.teacher(), network=self.setting.assistant, seed=0), shared=True
        )

    def few_alone(self, network: Mapping[str, Any], epochs: int, seed: int | None = None) -> Normalized:
        """From 1 % of the images and labels, each repeated, so that an epoch has as many steps."""
        train = labelled_alone(self.partly_labelled())
        return self.fitted(network, hard_objective(), train, epochs, self.seed if seed is None else seed)

    def partly_labelled(self) -> Split:
        """All images, of which only 1 %, class-balanced and chosen by content, tell their labels."""
        return hide_labels(self.data, self.setting.few, "few").train

    def taught(
        self,
        terms: Sequence[Term],
        teacher: Normalized,
        train: Split | None = None,
        *,
        network: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Normalized:
        """By a teacher, with a mixture of losses."""
        train = self.data.train if train is None else train
        seed = self.seed if seed is None else seed
        settings = self.setting.fitting(seed, self.setting.epochs)
        mixture = Mixture(terms)
        why = "losses compare what layers put out" if mixture.pairs else ""
        teaching = TeacherLogits([teacher], settings, train, live_because=why)
        student = self.network(self.setting.student if network is None else network, seed)
        if mixture.pairs:
            mixture.tap(student.net, teacher.net, torch.from_numpy(train.images[:4]).float() / 255)
        try:
            return self.fit(student, MixtureObjective(mixture, teaching), train, settings)
        finally:
            mixture.close()

    def fitted(
        self, network: Mapping[str, Any], objective: Objective, train: Split, epochs: int, seed: int
    ) -> Normalized:
        """From random weights."""
        return self.fit(self.network(network, seed), objective, train, self.setting.fitting(seed, epochs))

    def fit(self, module: Normalized, objective: Objective, train: Split, settings: TrainSettings) -> Normalized:
        """By the one loop."""
        return fit(module, objective, train, self.data.validation, settings).module  # type: ignore[return-value]

    def network(self, network: Mapping[str, Any], seed: int) -> Normalized:
        """With random weights."""
        torch.manual_seed(seed)
        shape, classes = self.data.image_shape, len(self.data.classes)
        net = build_model(dict(network), image_shape=shape, classes=classes, base=Path())
        return Normalized(net, *self.data.train.channel_statistics())

    def kept(self, name: str, train: Callable[[], Normalized], *, shared: bool = False) -> Normalized:
        """A network that other arms need, trained once."""
        path = self.work / f"{name}{'' if shared else f'_{self.seed}'}.safetensors"
        key = key_of(self.setting, 0 if shared else self.seed, name)

        def write() -> str:
            save_file(dict(train().state_dict()), path)
            return path.name

        if not path.is_file():
            path.with_suffix(".json").unlink(missing_ok=True)
        remembered(path.with_suffix(".json"), key, write)
        networks = {"teacher": self.setting.teacher, "few_teacher": self.setting.teacher}
        networks["assistant"] = self.setting.assistant
        module = self.network(networks.get(name, self.setting.student), 0)
        module.load_state_dict(load_file(path))
        return module.eval()


@cache
def data_of(samples: int, test_samples: int | None) -> Dataset:
    """The images, read once a process."""
    return load_dataset(data_config(samples, test_samples), Path())


def data_config(samples: int, test_samples: int | None) -> DataConfig:
    """What is read."""
    return DataConfig(dataset="fashion-mnist", train_samples=samples, test_samples=test_samples)


def key_of(setting: Setting, seed: int, arm: str) -> dict[str, Any]:
    """What an arm's answers depend on, but for the machine's rounding."""
    code = digest_of(Path(__file__).resolve(), *(ROOT / "compress" / part for part in PARTS))
    return {
        "setting": asdict(setting),
        "arm": arm,
        "seed": seed,
        "precision": resolve_precision("auto"),
        "data": split_digests(data_config(setting.samples, setting.test_samples), Path()),
        "code": code,
        "libraries": versions(*LIBRARIES),
    }


def measure(arms: Arms, arm: str) -> dict[str, Any]:
    """Train one arm and let its student answer the test images."""
    start = time.monotonic()
    student = arms.names()[arm]()
    test = arms.data.test
    logits = predict_logits(student, test)
    return {
        "top1": top1(logits, test.labels),
        "n": len(test),
        "parameters": count_parameters(student),
        "correct": correct_bits(logits, test.labels),
        "seconds": round(time.monotonic() - start, 1),
    }


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of a mean that differs from zero, Student's t over seeds."""
    deviation = statistics.stdev(differences)
    mean = statistics.fmean(differences)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    t = abs(mean) / (deviation / math.sqrt(len(differences)))
    return min(1.0, 2 * student_t_sf(t, len(differences) - 1))


def comparisons(cells: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every arm that has all seeds against its control arm.

    Returns:
        Rows {arm, control, mean, deviation, gain_pp, low_pp, high_pp, p, p_holm}: gain is of top-1, its interval that
        of the pooled answers (Tango), p of the paired t test over seeds, p_holm corrected over the arms that were not
        named beforehand.
    """
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in cells):
        control = FEW_BASE if "1pct" in arm else BASE
        mine = [cells.get((arm, seed)) for seed in seeds]
        theirs = [cells.get((control, seed)) for seed in seeds]
        if any(cell is None for cell in [*mine, *theirs]) or len(seeds) < 2:
            continue
        tops = [100 * cell["top1"] for cell in mine if cell]
        row: dict[str, Any] = {"arm": arm, "control": control, "mean": statistics.fmean(tops)}
        row["deviation"] = statistics.stdev(tops)
        if arm != control:
            pairs = [(one, two) for one, two in zip(mine, theirs, strict=True) if one and two]
            counts = [paired_counts(two["correct"], one["correct"], one["n"]) for one, two in pairs]
            gained, lost, n = sum(g for g, _ in counts), sum(b for _, b in counts), sum(one["n"] for one, _ in pairs)
            interval = tango_interval(gained, lost, n)
            row |= {
                "gain_pp": 100 * (gained - lost) / n,
                "low_pp": 100 * interval.low,
                "high_pp": 100 * interval.high,
                "p": paired_t([one["top1"] - two["top1"] for one, two in pairs]),
            }
        rows.append(row)
    others = [row for row in rows if "p" in row and row["arm"] != NAMED]
    for row, corrected in zip(others, holm([row["p"] for row in others]), strict=True):
        row["p_holm"] = corrected
    return rows


def promises(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is promised of the arms."""
    known = {row["arm"]: row for row in rows}
    found: list[dict[str, Any]] = []
    if NAMED in known:
        found += [
            promise("kd minus alone, top-1, pp", known[NAMED]["gain_pp"], ">", 0),
            promise("kd against alone: p of the paired t test over seeds", known[NAMED]["p"], "<=", 0.05),
        ]
    if "kd_1pct" in known:
        found.append(promise("1 % labels, teacher of all labels: gain, pp", known["kd_1pct"]["gain_pp"], ">=", 3))
    for arm, row in known.items():
        if "p_holm" in row:
            what = f"{arm} minus {row['control']}, top-1, pp; p {row['p']:.4f}, with Holm {row['p_holm']:.4f}"
            found.append(promise(what, row["gain_pp"], "reported", None))
    return found


def main() -> int:
    """Train every arm of every seed, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", help="names, separated by commas; default: all")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="numbers, separated by commas")
    parser.add_argument("--quick", action="store_true", help="hardly any training: does it work?")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "distillation", help="figures and networks")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    setting = replace(SETTING, **QUICK) if options.quick else SETTING
    work = options.work.resolve() / ("quick" if options.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    seeds = tuple(dict.fromkeys(map(int, options.seeds.split(","))))
    state = machine_state()
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in seeds:
        arms = Arms(setting, seed, work)
        names = options.arms.split(",") if options.arms else list(arms.names())
        if unknown := set(names) - set(arms.names()):
            parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(arms.names())}")
        for arm in names:
            path, key = work / f"{arm}_{seed}.cell.json", key_of(setting, seed, arm)
            cells[arm, seed] = remembered(path, key, lambda arms=arms, arm=arm: measure(arms, arm))
            cell = cells[arm, seed]
            print(f"{arm} seed {seed}: top-1 {100 * cell['top1']:.2f} % in {cell['seconds']} s", flush=True)
    rows = comparisons(cells, seeds)
    result = {
        "environment": {
            **{name: FACTS[name]() for name in ("cpu", "threads")},
            **state,
            "libraries": versions(*LIBRARIES),
            "precision": resolve_precision("auto"),
        },
        "setting": asdict(setting),
        "promises": promises(rows),
        "comparisons": rows,
        "rows": [
            {
                "arm": arm,
                "seed": seed,
                "epochs": setting.epochs,
                "labels": setting.few if "1pct" in arm else 0 if arm == "label_free" else setting.samples,
                **{name: cell[name] for name in ("top1", "n", "parameters", "seconds")},
            }
            for (arm, seed), cell in cells.items()
        ],
    }
    return write_result(
        options.output or (work / "result.json" if options.quick else RESULTS / "distillation.json"), result
    )


if __name__ == "__main__":
    sys.exit(main())
