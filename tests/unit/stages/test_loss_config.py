"""`losses:` of a `distill` step: what it becomes, and what is refused when the recipe is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor, nn

from compress.distillation.mixture import FEATURE_LOSSES, HARD, LOGIT_LOSSES, Mixture, Schedule, Term
from compress.errors import RecipeError
from compress.pipeline.recipe import Recipe, load_recipe
from compress.stages import CATALOGUE
from compress.stages.distill import DistillConfig
from compress.stages.loss_config import LossesConfig, mixture_of

Read = Callable[..., Recipe]
RECIPE = """
name: r
data: {{dataset: digits}}
steps:
  teacher: {{stage: train, model: {{name: mlp}}, epochs: 1}}
  step: {{stage: {stage}, teacher: teacher, {entry}}}
"""
STUDENT = "model: {name: mlp}, epochs: 1, "


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def load(entry: str, stage: str = "distill") -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.format(stage=stage, entry=(STUDENT if stage == "distill" else "") + entry))
        return load_recipe(path, [], CATALOGUE)

    return load


def mixture(losses: list[dict[str, Any]], *, teachers: int = 1, **others: Any) -> Mixture:
    config = DistillConfig.model_validate({"model": {"name": "mlp"}, "epochs": 1, "losses": losses} | others)
    assert DistillConfig.model_validate(config.model_dump(mode="json")) == config
    nets = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(teachers + 1)]
    return mixture_of(config, config.label_smoothing, nets[0], nets[1:])


def names(of: Any) -> list[str]:
    return [name for member in get_args(get_args(of)[0]) for name in get_args(member.model_fields["loss"].annotation)]


def test_recipes_offer_every_loss():
    assert sorted(names(LossesConfig)) == sorted([HARD, *LOGIT_LOSSES, *FEATURE_LOSSES])


@pytest.mark.parametrize("name", [name for name in LOGIT_LOSSES])
def test_what_is_left_out_is_what_the_function_takes_without_it(name: str):
    (term,) = mixture([{"loss": name}]).terms
    defaults = {key: one.default for key, one in inspect.signature(LOGIT_LOSSES[name]).parameters.items()}
    taken = {key for key, one in defaults.items() if inspect.signature(LOGIT_LOSSES[name]).parameters[key].annotation}
    assert set(term.options) == taken - {"student", "teacher", "labels"}
    for key, value in term.options.items():
        assert value == defaults[key] or defaults[key] is inspect.Parameter.empty


def test_a_mixture_becomes_terms():
    half = {"start": 0.5, "end": 0, "shape": "cosine"}
    losses = [
        {"loss": "hard", "weight": 0.1},
        {"loss": "dkd", "weight": half, "temperature": {"start": 8, "end": 2}, "beta": 2},
        {"loss": "relational_distance", "taps": {"0": "1", "1": "0"}},
    ]
    found = mixture(losses, label_smoothing=0.2, combine="confidence")
    assert found.combine == "confidence"
    assert found.terms == (
        Term("hard", 0.1, {"label_smoothing": 0.2}),
        Term("dkd", Schedule(0.5, 0.0, "cosine"), {"temperature": Schedule(8, 2), "alpha": 1.0, "beta": 2.0}),
        Term("relational_distance", 1.0, {}, (("0", "1"), ("1", "0"))),
    )


def test_without_losses_nothing_changes():
    config = DistillConfig.model_validate({"model": {"name": "mlp"}, "epochs": 1})
    assert (config.losses, config.temperature, config.kd_weight, config.combine) == ((), 4.0, 0.9, "mean")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("losses: [{loss: dk}]", "steps.step.losses.0.loss: unknown loss 'dk'; nearest: 'dkd'"),
        ("losses: [{loss: similarities}]", "unknown loss 'similarities'; nearest: 'similarity'"),
        ("losses: [{loss: magic}]", "unknown loss 'magic'; known: attention_transfer, attention_weights, dist, dkd,"),
        ("losses: [{weight: 2}]", "steps.step.losses.0: missing key 'loss'"),
        ("losses: [{loss: kd}, {loss: kd, temprature: 3}]", "losses.1: unknown key 'temprature'; nearest: 'temperat"),
        ("losses: [{loss: kd, alpha: 3}]", "losses.0: unknown key 'alpha'; known: loss, temperature, weight"),
        ("losses: [{loss: hints}]", "losses.0: missing key 'taps'"),
        ("losses: [{loss: hints, taps: {}}]", "losses.0.taps: Dictionary should have at least 1 item"),
        ("losses: [{loss: kd, weight: -1}]", "losses.0.weight: Input should be greater than or equal to 0, got -1"),
        ("losses: [{loss: kd, temperature: 0}]", "losses.0.temperature: Input should be greater than 0, got 0"),
        (
            "losses: [{loss: kd, temperature: {start: 4, end: 0}}]",
            "losses.0.temperature.end: Input should be greater than 0, got 0",
        ),
        ("losses: [{loss: kd, weight: {start: 4, edn: 0}}]", "losses.0.weight: unknown key 'edn'; nearest: 'end'"),
        ("losses: [{loss: kd, weight: {start: 1, end: 2, shape: sine}}]", "weight.shape: Input should be 'linear' or"),
        ("losses: [{loss: kd, weight: 0}, {loss: hard, weight: {start: 0, end: 0}}]", "weights of all losses are zero"),
        ("losses: [{loss: kd}], temperature: 3", "`temperature` is of plain distillation: name it in each of the"),
        ("losses: [{loss: kd}], kd_weight: 0.5", "`kd_weight` is of plain distillation: weigh the `losses`"),
        ("combine: vote", "steps.step.combine: Input should be 'mean' or 'confidence', got 'vote'"),
    ],
)
def test_wrong_mixtures_are_refused_when_the_recipe_is_read(read: Read, entry: str, message: str):
    with pytest.raises(RecipeError) as caught:
        read(entry)
    assert message in str(caught.value)
    assert "has 1 problem" in str(caught.value) or "edn" in entry
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("entry", ["losses: [{loss: kd}]", "combine: mean"])
def test_qat_distils_plainly(read: Read, entry: str):
    with pytest.raises(RecipeError, match=r"unknown key '(losses|combine)'"):
        read(f"student: teacher, {entry}", "qat")


def test_the_losses_are_plain_functions():
    for loss in (*LOGIT_LOSSES.values(), *FEATURE_LOSSES.values()):
        assert inspect.isfunction(loss)
        assert inspect.signature(loss, eval_str=True).return_annotation is Tensor
        assert "arXiv" in (loss.__doc__ or "") or "Park" in (loss.__doc__ or "")


def test_the_readme_lists_every_loss_and_its_example_is_read(tmp_path: Path, root: Path):
    section = (root / "README.md").read_text(encoding="utf-8").split("\n## Distillation\n")[1].split("\n## ")[0]
    listed = [name for row in re.findall(r"^\| (`.*?`) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(names(LossesConfig))
    (block,) = re.findall(r"```\n(.*?)```", section, re.S)
    path = tmp_path / "r.yaml"
    teacher = "teacher: {stage: train, model: {name: mlp}, epochs: 1}"
    path.write_text(f"name: r\ndata: {{dataset: digits}}\nsteps:\n  {teacher}\n{block}")
    assert len(load_recipe(path, [], CATALOGUE).step("student").config.losses) == 3  # type: ignore[attr-defined]
