"""The parts of the teaching benchmark that measure nothing: judging, taking turns, remembering, the command line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from compress.data.config import DataConfig
from compress.data.datasets import load_dataset


@pytest.fixture
def teaching(load) -> ModuleType:
    return load("teaching")


def rows(stored: list[float], live: list[float]) -> list[dict]:
    return [
        {"arm": arm, "seed": seed, "top1": value, "n": 100}
        for arm, values in (("stored", stored), ("live", live))
        for seed, value in enumerate(values)
    ]


def values(found: list[dict]) -> dict[str, float]:
    return {one["what"]: one["value"] for one in found}


def broken(found: list[dict]) -> list[str]:
    return [one["what"] for one in found if one.get("met") is False]


def test_a_speed_is_the_geometric_mean_over_pairs(teaching: ModuleType) -> None:
    found = teaching.ratio_promise("speed", [[2.0, 1.0], [8.0, 1.0]], 3.9)

    assert found[0]["value"] == pytest.approx(4.0)
    assert found[0]["met"]
    half = 12.7062047 * math.log(2)  # Student's t at 0.975 with one degree of freedom; ln 2 and ln 8 lie ln 2 from ln 4
    assert [math.log(one["value"]) for one in found[1:]] == pytest.approx([math.log(4) - half, math.log(4) + half])
    assert not teaching.ratio_promise("speed", [[2.0, 1.0], [8.0, 1.0]], 4.1)[0]["met"]


def test_arms_are_paired_by_seed(teaching: ModuleType) -> None:
    found = teaching.accuracy_promises(rows([0.80, 0.85, 0.81, 0.84, 0.80], [0.81, 0.84, 0.81, 0.84, 0.80]), range(5))

    named = values(found)
    what = "top-1 with stored answers minus live, pp, paired over 5 seeds"
    assert named[what] == pytest.approx(0.0)
    assert named[f"{what}: p of the paired t test"] == pytest.approx(1.0)
    # differences -1, 1, 0, 0, 0: deviation 0.7071, 2.7764 is Student's t with four degrees of freedom
    assert named[f"{what}: upper end of the 95 % t interval"] == pytest.approx(2.7764451 * math.sqrt(0.5 / 5))
    assert not broken(found)


@pytest.mark.parametrize(
    ("stored", "live", "expected"),
    [
        ([0.80, 0.81, 0.82, 0.81, 0.80], [0.82, 0.83, 0.841, 0.83, 0.82], ["p of the paired", "lower end"]),
        ([0.86, 0.86, 0.87, 0.86, 0.85], [0.82, 0.83, 0.841, 0.83, 0.82], ["p of the paired"]),
        ([0.70, 0.90, 0.80, 0.80, 0.80], [0.80, 0.80, 0.80, 0.80, 0.80], ["lower end"]),  # too few to tell
        ([0.80, 0.80], [0.80, 0.80], ["seeds"]),
    ],
)
def test_what_does_not_hold_is_not_met(teaching: ModuleType, stored: list, live: list, expected: list[str]) -> None:
    failed = broken(teaching.accuracy_promises(rows(stored, live), range(len(stored))))
    assert len(failed) == len(expected)
    assert all(part in what for part, what in zip(expected, failed, strict=True))


def test_two_ways_take_turns_and_the_first_round_does_not_count(teaching: ModuleType) -> None:
    calls: list[str] = []

    def way(name: str):
        def run(number: int) -> float:
            calls.append(f"{name}{number}")
            return float(number + (name == "b") * 10)

        return run

    assert teaching.alternate(2, way("a"), way("b")) == [[1.0, 11.0], [2.0, 12.0]]
    assert calls == ["b0", "a0", "a1", "b1", "b2", "a2"]


def test_what_was_made_is_kept_until_its_inputs_or_its_files_change(teaching: ModuleType, tmp_path: Path) -> None:
    plan = teaching.Plan((0,), teaching.QUICK, True, tmp_path, tmp_path / "out.json")
    file, made = tmp_path / "payload", []

    def make() -> int:
        file.touch()
        made.append(len(made))
        return made[-1]

    assert [plan.once("part", make, file, weights="a") for _ in range(2)] == [0, 0]
    assert plan.once("part", make, file, weights="b") == 1
    file.unlink()
    assert plan.once("part", make, file, weights="b") == 2
    larger = replace(plan, sizes=replace(plan.sizes, epochs=2))
    assert larger.once("part", make, file, weights="b") == 3


def test_the_loop_by_hand_learns_and_validates(teaching: ModuleType, load) -> None:
    data = load_dataset(DataConfig(dataset="digits", train_samples=300, test_samples=20), Path())
    loop = teaching.ByHand(teaching.network({"name": "mlp", "widths": [16]}, data), data, batch_size=30, epochs=8)

    first, *_, last = [loop.epoch() for _ in range(8)]

    assert last[0] < 0.5 * first[0]
    assert last[2] > 0.7
    assert loop.schedule.last_epoch == 8 * 10  # steps, an incomplete last batch left out
    assert not loop.module.training
    assert torch.is_grad_enabled()


def test_the_command_line(teaching: ModuleType, tmp_path: Path) -> None:
    plan = teaching.parse([])
    assert (plan.seeds, plan.sizes.test) == ((0, 1, 2, 3, 4), None)
    assert plan.output == teaching.RESULTS / "teaching.json"

    quick = teaching.parse(["--quick", "--seeds", "4,4", "--work", str(tmp_path)])
    assert (quick.seeds, quick.sizes, quick.work) == ((4,), teaching.QUICK, tmp_path / "quick")
    assert quick.output == tmp_path / "quick" / "teaching.json"
