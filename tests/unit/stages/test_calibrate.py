"""`calibrate`: what decides its artifact, and what it writes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from compress.artifacts.fingerprint import FileHashes
from compress.artifacts.manifest import Kind
from compress.artifacts.store import Store
from compress.pipeline.keys import Keys
from compress.pipeline.machine import FACTS
from compress.pipeline.recipe import load_recipe
from compress.stages import CATALOGUE, STAGES
from compress.stages.calibrate import CalibrateConfig, CalibrateInputs
from compress.stages.export import ExportInputs

RECIPE = """
name: keys
seed: 0
data: {dataset: digits, train_samples: 300, test_samples: 60}
steps:
  net: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  float: {stage: export, model: net}
  int8: {stage: calibrate, model: float}
"""


@pytest.fixture
def key_document(tmp_path, make):
    path = tmp_path / "keys.yaml"
    path.write_text(RECIPE)

    def document(*overrides, weights="weights"):
        recipe = load_recipe(path, overrides, CATALOGUE)
        inputs = {"float": make("float", Kind.ONNX_MODEL, digest=f"digest of {weights}")}
        return Keys(recipe, CATALOGUE, FileHashes(), Store(tmp_path / "store")).document(recipe.step("int8"), inputs)[0]

    return document


@pytest.mark.parametrize(
    "override",
    [
        "int8.method=entropy",
        "int8.weights=mse",
        "int8.granularity=per_tensor",
        "int8.samples=200",
        "data.train_samples=200",
    ],
)
def test_the_key_depends_on_data_and_method(key_document, override):
    assert key_document(override) != key_document()


def test_the_key_depends_on_the_weights_and_on_the_percentile(key_document):
    assert key_document() == key_document()
    assert key_document(weights="others") != key_document()
    one, other = (key_document("int8.method=percentile", f"int8.percentile={value}") for value in (99, 99.9))
    assert one != other


def test_only_latency_ties_the_key_to_the_machine(key_document, monkeypatch):
    by_work, by_latency = "int8.precision={budget_pp: 0.5}", "int8.precision={budget_pp: 0.5, minimize: latency}"
    here = {override: key_document(override) for override in (by_work, by_latency)}
    assert here[by_work]["facts"] == key_document()["facts"] == {}
    assert set(here[by_latency]["facts"]) == {"cpu"}
    monkeypatch.setitem(FACTS, "cpu", lambda: "another one")
    assert key_document(by_work) == here[by_work]
    assert key_document(by_latency)["facts"] == {"cpu": "another one"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "kl"}, "'minmax', 'moving_average', 'percentile', 'entropy' or 'mse'"),
        ({"weights": "min"}, "'max' or 'mse'"),
        ({"granularity": "per_row"}, "'per_channel' or 'per_tensor'"),
        ({"method": "percentile", "percentile": 50}, "greater than 50"),
        ({"percentile": 99.0}, "`percentile` belongs to method percentile, not mse"),
    ],
)
def test_what_is_unknown_is_refused(config, words):
    with pytest.raises(ValidationError, match=words):
        CalibrateConfig.model_validate(config)


def test_a_config_reads_back():
    config = CalibrateConfig(method="mse")
    assert CalibrateConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.slow
def test_the_files_of_the_artifact(execute):
    from compress.onnx_graph.calibration_cache import read_calibration_cache
    from compress.onnx_graph.scales import ScaleTable

    net = execute(STAGES["train"], "net", model={"name": "mlp", "widths": [8]}, epochs=1)
    exported = execute(STAGES["export"], "float", ExportInputs(model=net))
    int8 = execute(
        STAGES["calibrate"],
        "int8",
        CalibrateInputs(model=exported),
        samples=100,
        method="mse",
        weights="mse",
        granularity="per_tensor",
    )
    files = {path.name for path in int8.path.iterdir()}
    assert {"model.onnx", "model.ort.onnx", "scales.json", "calibration.cache"} <= files
    table = ScaleTable.from_json((int8.path / "scales.json").read_text())
    cache = read_calibration_cache((int8.path / "calibration.cache").read_text())
    weights = {tensor.name for tensor in onnx.load(int8.path / "model.onnx").graph.initializer}
    assert set(cache.scales) == set(table) - weights
    assert all(np.float32(scale) == np.float32(np.array(table[name].scale)) for name, scale in cache.scales.items())
    assert {scale.source for scale in table.values()} == {"mse"}
    assert all(isinstance(scale.scale, float) for scale in table.values())
    assert int8.manifest.quantization.method == "mse"
