"""The parts of the QAT benchmark that train nothing: pairing answers, judging, remembering, the command line."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from compress.data import fashion_mnist
from compress.measure.statistics import tango_interval


@pytest.fixture
def qat(load) -> ModuleType:
    return load("qat")


def bits(right: list[int]) -> str:
    return base64.b64encode(np.packbits(np.array(right, np.uint8)).tobytes()).decode()


def row(seed: int, gained: int, lost: int, *, int8_macs: float = 1.0, model: str = "vit") -> dict:
    return {"model": model, "seed": seed, "n": 10_000, "gained": gained, "lost": lost, "int8_macs": int8_macs}


def verdicts(found: list[dict]) -> dict[str, bool | None]:
    return {one["what"]: one.get("met") for one in found}


def test_answers_are_paired_image_by_image(qat: ModuleType) -> None:
    cell = {
        "model": "vit", "seed": 3, "n": 10, "parameters": 7, "validation_top1": 0.5, "int8_macs": 1.0, "seconds": {},
        "control": {"top1": 0.6, "correct": bits([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])},
        "int8": {"top1": 0.5, "correct": bits([0, 0, 1, 1, 1, 1, 1, 0, 0, 0])},
    }  # fmt: skip

    found = qat.paired(cell)

    assert (found["gained"], found["lost"], found["n"]) == (1, 2, 10)
    assert (found["control_top1"], found["int8_top1"], found["seed"]) == (0.6, 0.5, 3)
    json.dumps(found)


def test_seeds_are_pooled_into_one_interval(qat: ModuleType) -> None:
    rows = [row(0, 100, 120), row(1, 110, 100), row(0, 0, 9_000, model="residual")]

    found = qat.promises(rows, ["vit"], [0, 1])

    named = {one["what"]: one for one in found}
    what = "vit: int8 after QAT minus control in float, pp"
    bound = named[f"{what}: lower end of the 95 % interval, n 20000 (Tango)"]
    assert bound["value"] == pytest.approx(100 * tango_interval(210, 220, 20_000).low)
    assert (bound["is"], bound["limit"], bound["met"]) == (">", -0.5, True)
    assert named[what]["value"] == pytest.approx(-0.05)
    assert "met" not in named[what]
    # differences of -0.2 and 0.1 pp: 12.706 is Student's t at 0.975 with one degree of freedom
    spread = named[f"{what}: lower end of the 95 % t interval over 2 seeds"]
    assert spread["value"] == pytest.approx(-0.05 - 12.7062047 * 0.15)
    assert "met" not in spread
    assert all(verdicts(found)[name] is not False for name in named)


@pytest.mark.parametrize(
    ("rows", "broken"),
    [
        # half a point lost on average, so that the interval reaches beyond it
        ([row(0, 100, 150), row(1, 100, 150)], "lower end of the 95 % interval, n 20000 (Tango)"),
        # nothing lost, but too few images to show it
        ([{**row(seed, 1, 1), "n": 200} for seed in (0, 1)], "lower end of the 95 % interval, n 400 (Tango)"),
        ([row(0, 100, 100)], "vit: seeds"),
        ([], "vit: seeds"),
        ([row(0, 100, 100), row(1, 100, 100, int8_macs=0.9)], "multiply-accumulates in int8"),
    ],
)
def test_what_does_not_hold_is_not_met(qat: ModuleType, rows: list[dict], broken: str) -> None:
    failed = [what for what, met in verdicts(qat.promises(rows, ["vit"], [0, 1])).items() if met is False]

    assert len(failed) == 1
    assert broken in failed[0]


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_key_names_everything_that_is_asked_for(qat: ModuleType) -> None:
    recipe = qat.RECIPES["vit"]
    key = qat.key_of(recipe, 0)

    assert qat.key_of(recipe, 0) == key
    assert {"torch", "torchao", "onnxruntime"} <= set(key["libraries"])
    others = [
        qat.key_of(recipe, 1),
        qat.key_of(replace(recipe, tuning_rate=1e-5), 0),
        qat.key_of(replace(recipe, test_samples=1000), 0),
    ]
    assert all(other != key for other in others)


def test_both_trainings_that_go_on_are_alike(qat: ModuleType) -> None:
    for recipe in qat.RECIPES.values():
        first, then = recipe.settings(3), recipe.tuning(3)
        assert then == replace(first, epochs=recipe.tuning_epochs, learning_rate=recipe.tuning_rate)
        assert then.learning_rate < first.learning_rate
        assert then.augmentation is None


def test_the_command_line(qat: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = qat.parse([])
    assert plan.models == ("residual", "depthwise", "vit")
    assert plan.seeds == (0, 1, 2, 3, 4)
    assert plan.output == qat.RESULTS / "qat.json"
    assert qat.recipe_of(plan, "vit").test_samples is None

    quick = qat.parse(["--quick", "--models", "vit,vit", "--seeds", "4,4", "--work", str(tmp_path)])
    assert (quick.models, quick.seeds) == (("vit",), (4,))
    assert quick.output == tmp_path / "quick.json"
    assert qat.recipe_of(quick, "vit").epochs == 1

    with pytest.raises(SystemExit):
        qat.parse(["--models", "vit,mlp"])
    assert "no model mlp; there are residual, depthwise, vit" in capsys.readouterr().err
