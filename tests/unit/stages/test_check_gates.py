"""Gates that no benchmark could ever answer are refused when the recipe is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.pipeline.recipe import Recipe, load_recipe
from compress.stages import CATALOGUE

CHAIN = """\
name: r
data: {dataset: digits}
steps:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  float: {stage: export, model: teacher}
  int8: {stage: calibrate, model: float}
  engine: {stage: engine, model: int8}
"""
WHOLE = "  report: {stage: benchmark, reference: teacher, float_twin: float, variants: [int8, engine]}\n"
EVERY = "{top1_drop_pp: 3, top1_drop_to_float_pp: 1, latency_ratio: {1: 1}, require: [engine, float, teacher]}"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def load(benchmark: str, gates: str) -> Recipe:
        Path("r.yaml").write_text(f"{CHAIN}{benchmark}gates: {gates}\n")
        return load_recipe(Path("r.yaml"), [], CATALOGUE)

    return load


def test_gates_that_can_be_judged(load) -> None:
    assert load(WHOLE, EVERY.replace("{1: 1}", "1")).gates.require == ("engine", "float", "teacher")
    assert load("", "{}").gates.require == ()


@pytest.mark.parametrize(
    ("benchmark", "gates", "expected"),
    [
        (
            "",
            "{top1_drop_pp: 3}",
            ["r.yaml:8: gates: no step writes a report that they could be judged from; add a benchmark step"],
        ),
        (
            WHOLE.replace("float_twin: float, ", ""),
            "{top1_drop_pp: 3,\n  top1_drop_to_float_pp: 1,\n  latency_ratio: 1,\n  require: [engin]}",
            [
                "r.yaml:10: gates.top1_drop_to_float_pp: no benchmark names a float_twin to compare with",
                "r.yaml:11: gates.latency_ratio: no benchmark names a float_twin to compare with",
                "r.yaml:12: gates.require: no benchmark measures 'engin', only teacher, int8, engine; "
                "did you mean engine?",
            ],
        ),
        (
            WHOLE.replace("[int8, engine]", "[float]"),
            "{agreement_min: 0.9}",
            [
                "r.yaml:9: gates.agreement_min: no benchmark has a quantized variant to judge "
                "(the output of calibrate or engine)"
            ],
        ),
        (
            WHOLE,
            '{latency_ratio: {"7": 1.1}}',
            ["r.yaml:9: gates.latency_ratio: batch 7 is not timed, only 1, 32"],
        ),
        (
            WHOLE,
            '{latency_ratio: {"1": 1, "7": 1}}',
            ["r.yaml:9: gates.latency_ratio: batch 7 is not timed, only 1, 32"],
        ),
    ],
)
def test_gates_that_can_never_be_judged(load, benchmark: str, gates: str, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load(benchmark, gates)
    assert caught.value.exit_code == 2
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == expected
