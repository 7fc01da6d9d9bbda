"""`precision` of a `calibrate` step: what a recipe may say, and what the artifact says of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from compress.artifacts.manifest import Precision, Quantization
from compress.cli.render import table_lines
from compress.cli.showing import precision_tables
from compress.errors import UsageError
from compress.pipeline import machine
from compress.quantization.quantize import DEFAULTS, quantize_onnx
from compress.quantization.search import Goal
from compress.stages import STAGES
from compress.stages.calibrate import CalibrateConfig, CalibrateInputs
from compress.stages.export import ExportInputs
from compress.stages.precision import FloatLayersConfig, choose, float_layers_of, latency_text


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
    for value in (
        "int8", {"sqnr_db": 25}, {"budget_pp": 0}, {"float_layers": ["conv_0"]}, {"sqnr_db": 9, "minimize": "latency"},
    ):  # fmt: skip
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
        ({"float_layers": ["conv_0"], "minimize": "latency"}, "`minimize` belongs to sqnr_db and budget_pp"),
        ({"budget_pp": 1, "minimize": "energy"}, "'work' or 'latency'"),
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
    record = {"mode": "adaptive", "goal": "at most 0.5 pp of top-1 lost", "int8_macs": 0.9, "loss_pp": 0.4,
              "sqnr_db": 21.5, "split": "validation", "n": 450}  # fmt: skip
    assert Precision.model_validate(record).model_dump(mode="json") == record
    timed = {**record, "latency_to_int8": 1.07}
    assert Precision.model_validate(timed).model_dump(mode="json") == timed


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


LATENCY = {
    "cpu": "Some CPU", "threads": 1, "batch": 1, "tolerance": 0.02, "least_work_layers": ["conv_3"],
    "chosen": {"ratio": 1.071, "low": 1.06, "high": 1.08, "blocks": 300},
    "least_work": {"ratio": 1.135, "low": 1.11, "high": 1.16, "blocks": 300},
    "float": {"ratio": 1.4, "low": None, "high": None, "blocks": 300},
}  # fmt: skip


@pytest.mark.slow
def test_a_choice_by_latency_says_what_was_timed(execute, float_onnx):
    inputs = CalibrateInputs(model=float_onnx)
    # so that one of the two layers has to stay in float
    goal = json.loads((execute(STAGES["calibrate"], "all", inputs, samples=100, precision={"sqnr_db": 5}).path
                       / "precision.json").read_text())["all_int8"]["sqnr_db"] + 0.5  # fmt: skip
    precision = {"sqnr_db": goal, "minimize": "latency"}
    timed = execute(STAGES["calibrate"], "timed", inputs, samples=100, precision=precision)

    document = json.loads((timed.path / "precision.json").read_text())
    latency = document["latency"]
    assert document["cost"] == "latency in ONNX Runtime over that of the all-int8 file"
    assert (latency["threads"], latency["batch"], latency["cpu"]) == (1, 1, machine.cpu())
    for name in ("chosen", "least_work", "float"):
        assert latency[name]["ratio"] > 0
        assert latency[name]["blocks"] >= 12
    assert timed.manifest.quantization.precision.latency_to_int8 == latency["chosen"]["ratio"]
    metrics = {metric.name: metric for metric in timed.manifest.metrics}
    assert metrics["latency_to_int8"].value == latency["chosen"]["ratio"]
    assert any("of the all-int8 file's" in note for note in timed.manifest.notes)


def test_noise_moves_no_choice_and_gains_do(monkeypatch, chain):
    """The glue between search and clock: what is faster is what the interval says, not the ratio."""
    from compress.measure import candidates

    data = np.random.default_rng(0).random((64, 1, 8, 8), np.float32)
    model = chain(100)
    full = quantize_onnx(model, iter([data]))
    feed = {"image": data[:1]}
    asked = []

    def chosen(high, longer=1.0, seconds=candidates.SECONDS):
        def together(graphs, given, *, threads, seconds=seconds):
            assert threads == 1
            assert given is feed
            asked.append((tuple(graphs), seconds))
            return {name: name for name in graphs}

        monkeypatch.setattr(candidates, "time_together", together)
        ratio, beside = candidates.LatencyRatio(0.9, 0.8, high, 20), candidates.LatencyRatio(0.95, 0.9, longer, 60)
        monkeypatch.setattr(
            candidates, "median_ratio", lambda one, other: beside if (one, other) == ("least_work", "chosen") else ratio
        )
        return choose(model, full, Goal(sqnr_db=20), lambda: iter([data]), None, DEFAULTS, "latency", feed)

    noisy, clear = chosen(1.1), chosen(0.85)

    assert noisy.choice.float_layers == noisy.choice.least_work == ("c1",)
    assert set(clear.choice.float_layers) > {"c1"}
    assert {names for names, _ in asked} == {
        ("all_int8", "candidate", "best"), ("all_int8", "chosen", "least_work", "float"),
    }  # fmt: skip
    assert asked[-1][1] > asked[0][1], "what was chosen is measured again, and longer"
    assert noisy.latency is not None
    assert noisy.latency["chosen"] == {"ratio": 0.9, "low": 0.8, "high": 1.1, "blocks": 20}
    assert noisy.summary().endswith(latency_text(noisy.latency))
    assert "refuted" not in noisy.latency

    refuted = chosen(0.85, longer=0.97)

    assert refuted.choice.float_layers == ("c1",), "the least work was faster when both were timed longer"
    assert refuted.latency is not None
    assert refuted.latency["refuted"]["layers"] == list(clear.choice.float_layers)
    assert refuted.latency["chosen"] == refuted.latency["least_work"]
    assert f"{', '.join(clear.choice.float_layers)} in float seemed faster, timed longer 0.90" in refuted.summary()


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
    assert "latency" not in text
    tables = precision_tables({**document, "latency": LATENCY})
    text = "\n".join(line for table in tables for line in table_lines(table))
    assert (
        "1.07 (1.06 to 1.08) of the all-int8 file's; with the least work in float 1.14, all in float 1.40; "
        "batch 1, 1 thread, Some CPU"
    ) in text  # fmt: skip
    unmeasured = {"sqnr_db": None, "loss_pp": None}
    plain = {
        **document, "mode": "int8", "goal": None,
        "layers": [{**layer, "alone": unmeasured, "without": unmeasured, "decided": "int8", "why": "it can be"}],
    }  # fmt: skip
    text = "\n".join(line for table in precision_tables(plain) for line in table_lines(table))
    assert "goal" not in text
    assert "it can be" in text
