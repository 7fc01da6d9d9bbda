"""The parts of the distillation benchmark that train nothing: pairing, correcting, judging, going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEEDS = (0, 1, 2)


@pytest.fixture
def distillation(load) -> ModuleType:
    return load("distillation")


@pytest.fixture
def packed():
    """So many right answers of 100, as the benchmark stores them."""
    import numpy as np

    from compress.measure.fidelity import correct_bits

    def bits(right: int):
        logits = np.zeros((100, 2), np.float32)
        logits[:right, 0] = 1
        logits[right:, 1] = 1
        return correct_bits(logits, np.zeros(100, np.int64))

    return bits


def cells(packed, **arms: list[int]) -> dict[tuple[str, int], dict[str, Any]]:
    """By arm and seed, from how many of 100 answers are right: always the first ones."""
    return {
        (arm, seed): {"top1": right / 100, "n": 100, "correct": packed(right)}
        for arm, rights in arms.items()
        for seed, right in enumerate(rights)
    }


def test_arms_are_held_against_their_control_by_seed(distillation: ModuleType, packed) -> None:
    rows = distillation.comparisons(
        cells(packed, alone=[80, 82, 84], kd=[83, 84, 88], alone_1pct=[50, 52, 54], kd_1pct=[60, 62, 65]), SEEDS
    )
    known = {row["arm"]: row for row in rows}
    assert {arm: row["control"] for arm, row in known.items()} == {
        "alone": "alone", "kd": "alone", "alone_1pct": "alone_1pct", "kd_1pct": "alone_1pct",
    }  # fmt: skip
    assert known["alone"]["mean"] == pytest.approx(82)
    assert known["alone"]["deviation"] == pytest.approx(2)
    assert "p" not in known["alone"]
    assert known["kd"]["gain_pp"] == pytest.approx(3)
    assert known["kd"]["low_pp"] < 3 < known["kd"]["high_pp"]
    # differences 3, 2, 4: mean 3, deviation 1, t = 3 * sqrt(3) with two degrees of freedom
    assert known["kd"]["p"] == pytest.approx(0.035098, abs=1e-5)
    assert "p_holm" not in known["kd"], "it was named beforehand"
    assert known["kd_1pct"]["p_holm"] == known["kd_1pct"]["p"], "one other arm: nothing to correct"


def test_other_arms_are_corrected_together(distillation: ModuleType, packed) -> None:
    rows = distillation.comparisons(
        cells(packed, alone=[80, 82, 84], kd=[83, 84, 88], dkd=[81, 82, 86], hints=[85, 87, 90]), SEEDS
    )
    known = {row["arm"]: row for row in rows}
    assert known["hints"]["p"] < known["dkd"]["p"]
    assert known["hints"]["p_holm"] == pytest.approx(2 * known["hints"]["p"])
    assert known["dkd"]["p_holm"] >= known["dkd"]["p"]


def test_an_arm_without_all_seeds_is_left_out(distillation: ModuleType, packed) -> None:
    found = cells(packed, alone=[80, 82, 84], kd=[83, 84])
    assert [row["arm"] for row in distillation.comparisons(found, SEEDS)] == ["alone"]


@pytest.mark.parametrize(
    ("kd", "few", "broken"),
    [
        ([83, 84, 88], [60, 62, 65], []),
        ([79, 83, 84], [60, 62, 65], ["kd minus alone", "kd against alone"]),  # 0 pp: -1, 1, 0
        ([83, 82, 84], [60, 62, 65], ["kd against alone"]),  # 1 pp: 3, 0, 0
        ([83, 84, 88], [52, 54, 57], ["1 % labels"]),  # 2.3 pp
    ],
)
def test_promises(distillation: ModuleType, packed, kd: list[int], few: list[int], broken: list[str]) -> None:
    rows = distillation.comparisons(
        cells(packed, alone=[80, 82, 84], kd=kd, alone_1pct=[50, 52, 54], kd_1pct=few), SEEDS
    )
    found = [one["what"] for one in distillation.promises(rows) if one.get("met") is False]
    assert [any(what.startswith(one) for what in found) for one in broken] == [True] * len(broken)
    assert len(found) == len(broken)


def test_paired_t(distillation: ModuleType) -> None:
    assert distillation.paired_t([0.0, 0.0, 0.0]) == 1.0
    assert distillation.paired_t([1.0, 1.0, 1.0]) == 0.0
    assert distillation.paired_t([1.0, -1.0, 0.5, -0.5]) == pytest.approx(1.0)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    distillation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    tiny = {"samples": 60, "few": 10, "teacher_epochs": 1, "epochs": 1, "test_samples": 50}
    monkeypatch.setattr(distillation, "QUICK", tiny)
    small = {"name": "mlp", "widths": [8]}
    monkeypatch.setattr(
        distillation, "SETTING", replace(distillation.SETTING, teacher=small, assistant=small, student=small)
    )
    command = ["distillation.py", "--quick", "--work", str(tmp_path), "--output", str(tmp_path / "result.json")]
    monkeypatch.setattr("sys.argv", [*command, "--seeds", "0", "--arms", "alone,kd_1pct"])
    distillation.main()
    trained = []
    fit = distillation.fit
    monkeypatch.setattr(distillation, "fit", lambda *given: trained.append(given) or fit(*given))
    monkeypatch.setattr("sys.argv", [*command, "--seeds", "0,1", "--arms", "alone,kd_1pct"])
    distillation.main()
    assert len(trained) == 2, "two arms of the new seed; teacher and first seed were there"
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["arm"], row["seed"], row["epochs"], row["labels"], row["n"]) for row in rows] == [
        ("alone", 0, 1, 60, 50), ("kd_1pct", 0, 1, 10, 50), ("alone", 1, 1, 60, 50), ("kd_1pct", 1, 1, 10, 50),
    ]  # fmt: skip
    assert all(0 <= row["top1"] <= 1 for row in rows)


def test_an_unknown_arm(distillation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["distillation.py", "--quick", "--work", str(tmp_path), "--arms", "alone,tutor"])
    monkeypatch.setattr(distillation, "data_of", lambda *given: None)
    with pytest.raises(SystemExit) as caught:
        distillation.main()
    assert caught.value.code == 2
