"""`precision` of a `calibrate` step: what a recipe may say, and what the artifact says of it."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from compress.artifacts.manifest import Quantization
from compress.cli.render import table_lines
from compress.cli.showing import precision_tables
from compress.errors import UsageError
from compress.stages import STAGES
from compress.stages.calibrate import CalibrateConfig, CalibrateInputs
from compress.stages.export import ExportInputs
from compress.stages.precision import FloatLayersConfig, float_layers_of


def precision(value):
    return CalibrateConfig.model_validate({"precision": value}).precision


def test_what_a_recipe_may_say():
    assert CalibrateConfig().precision == precision("int8") == "int8"
    by_hand = precision({"float_layers": ["conv_0", "gemm_*"]})
    assert float_layers_of(by_hand) == ("conv_0", "gemm_*")
    assert CalibrateConfig(precision=by_hand).settings().float_layers == ("conv_0", "gemm_*")
    assert float_layers_of(precision({"sqnr_db": 25})) == ()
    adaptive = precision({"budget_pp": 0.5, "samples": 100})
    assert isinstance(adaptive, FloatLayersConfig)
    assert (adaptive.budget_pp, adaptive.samples) == (0.5, 100)


def test_a_config_survives_its_own_dump():
    for value in ("int8", {"sqnr_db": 25}, {"budget_pp": 0}, {"float_layers": ["conv_0"]}):
        config = CalibrateConfig.model_validate({"precision": value})
        assert CalibrateConfig.model_validate(config.model_dump(mode="json", exclude={"percentile"})) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("int4", "expected int8, or a mapping with one of float_layers, sqnr_db, budget_pp"),
        (8, "expected int8, or a mapping"),
        ({}, "expected one of float_layers, sqnr_db, budget_pp, got none"),
        ({"sqnr_db": 20, "budget_pp": 1}, "got sqnr_db, budget_pp"),
        ({"sqnr_db": 20, "samples": 100}, "`samples` belongs to budget_pp"),
        ({"budget_pp": -1}, "greater than or equal to 0"),
        ({"budget_p": 1}, "budget_p"),
    ],
)
def test_what_a_recipe_may_not_say(value, said):
    with pytest.raises(ValidationError, match=said):
        precision(value)


def test_manifests_without_the_record_keep_their_checksums():
    old = {"scheme": "int8-symmetric", "method": "qat", "calibration_samples": 0, "calibration_digest": None}
    assert Quantization.model_validate(old).model_dump(mode="json") == {**old, "float_layers": []}


@pytest.fixture
def float_onnx(execute):
    teacher = execute(STAGES["train"], "teacher", model={"name": "mlp", "widths": [16]}, epochs=2)
    return execute(STAGES["export"], "float", ExportInputs(model=teacher))


@pytest.mark.slow
def test_the_artifact_says_what_was_chosen_and_why(execute, float_onnx):
    inputs = CalibrateInputs(model=float_onnx)

    plain = execute(STAGES["calibrate"], "plain", inputs, samples=100)
    assert plain.manifest.quantization.precision is None
    document = json.loads((plain.path / "precision.json").read_text())
    assert (document["mode"], document["int8_macs"]) == ("int8", 1.0)
    assert {layer["decided"] for layer in document["layers"]} == {"int8"}

    adaptive = execute(STAGES["calibrate"], "adaptive", inputs, samples=100, precision={"budget_pp": 100})
    record = adaptive.manifest.quantization.precision
    assert (record.mode, record.goal, record.split) == ("adaptive", "at most 100 pp of top-1 lost", "validation")
    assert record.loss_pp is not None
    assert record.n > 0
    metrics = {metric.name: metric for metric in adaptive.manifest.metrics}
    assert metrics["int8_macs"].value == 1
    assert (metrics["top1_loss"].unit, metrics["top1_loss"].split, metrics["top1_loss"].n) == (
        "pp", "validation", record.n,
    )  # fmt: skip
    assert any("of the multiply-accumulates are in int8" in note for note in adaptive.manifest.notes)

    mixed = execute(STAGES["calibrate"], "mixed", inputs, samples=100, precision={"sqnr_db": 5})
    record = mixed.manifest.quantization.precision
    assert (record.mode, record.split, record.n, record.loss_pp) == ("mixed", "calibration", 100, None)
    assert mixed.manifest.quantization.calibration_samples == 100

    by_hand = execute(STAGES["calibrate"], "by_hand", inputs, samples=100, precision={"float_layers": ["gemm_0"]})
    assert by_hand.manifest.quantization.float_layers == ("gemm_0",)
    assert by_hand.manifest.quantization.precision.mode == "by_hand"
    assert 0 < by_hand.manifest.quantization.precision.int8_macs < 1

    with pytest.raises(UsageError, match="gemm_7"):
        execute(STAGES["calibrate"], "wrong", inputs, samples=100, precision={"float_layers": ["gemm_7"]})


def test_tables_of_a_choice():
    layer = {
        "name": "conv_3", "operator": "Conv", "macs": 9216, "macs_share": 0.15,
        "alone": {"sqnr_db": 7.31, "loss_pp": 3.2}, "without": {"sqnr_db": 31.0, "loss_pp": 0.1},
        "decided": "float", "why": "were it in int8: 3.10 pp of top-1 are lost",
    }  # fmt: skip
    document = {
        "mode": "adaptive", "goal": "at most 0.5 pp of top-1 lost", "samples": 450, "float_top1": 0.98, "cost": "work",
        "int8_macs": 0.85, "reached": {"sqnr_db": 30.5, "loss_pp": 0.2}, "all_int8": {"sqnr_db": 7.3, "loss_pp": 3.1},
        "layers": [layer],
    }  # fmt: skip
    text = "\n".join(line for table in precision_tables(document) for line in table_lines(table))
    for part in (
        "at most 0.5 pp of top-1 lost", "85.0 %", "0.20 pp of top-1 lost, 30.50 dB", "3.10 pp of top-1 lost, 7.30 dB",
        "450 samples", "conv_3", "15.0", "7.3", "31.0", "float", "were it in int8",
    ):  # fmt: skip
        assert part in text
    unmeasured = {"sqnr_db": None, "loss_pp": None}
    plain = {
        **document, "mode": "int8", "goal": None,
        "layers": [{**layer, "alone": unmeasured, "without": unmeasured, "decided": "int8", "why": "it can be"}],
    }  # fmt: skip
    text = "\n".join(line for table in precision_tables(plain) for line in table_lines(table))
    assert "goal" not in text
    assert "it can be" in text
