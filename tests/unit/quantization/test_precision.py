from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import ModelError, UsageError
from compress.onnx_graph.canonical import canonical_bytes
from compress.onnx_graph.inspect import summarize
from compress.onnx_graph.qdq import scales_of
from compress.quantization.precision import REFUTED, choose_precision, fixed_precision, precision_document
from compress.quantization.quantize import quantize_onnx
from compress.quantization.search import Goal
from compress.quantization.sensitivity import answers
from compress.quantization.settings import QuantizeSettings
from compress.quantization.trials import Candidate, Cost


@pytest.fixture
def batches(images):
    return lambda: iter([images(64, 0), images(32, 1)])


def infer(model, data, *, optimized=True):
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": data})[0])


@pytest.fixture
def choose(batches):
    """`choose(model, goal)`: quantized throughout, and as the goal wants it; labels are what the model answers."""

    def run(model, goal, **options):
        full = quantize_onnx(model, batches())
        labels = answers(model, batches).argmax(axis=1)
        return full, choose_precision(model, full, goal, batches, labels, **options)

    return run


def test_everything_stays_int8_where_that_meets_the_goal(chain, choose):
    full, choice = choose(chain(), Goal(sqnr_db=15))
    assert choice.mode == "mixed"
    assert (choice.float_layers, choice.int8_macs) == ((), 1.0)
    assert canonical_bytes(choice.quantized.signed) == canonical_bytes(full.signed)
    assert choice.quantized.scales == full.scales
    assert (choice.quantized.calibrated, choice.quantized.kept) == (full.calibrated, 0)
    assert choice.reached == choice.all_int8
    assert {layer.why for layer in choice.layers} == {"the goal is met with it in int8"}


@pytest.mark.parametrize("goal", [Goal(sqnr_db=20), Goal(budget_pp=15)], ids=str)
def test_the_stretched_layer_alone_stays_in_float(chain, goal, choose, batches):
    model = chain(100)
    full, choice = choose(model, goal)
    assert choice.float_layers == ("c1",)
    assert choice.all_int8 is not None
    assert not choice.all_int8.met
    (layer,) = (layer for layer in choice.layers if layer.name == "c1")
    assert layer.why.startswith("were it in int8: ")
    assert layer.sensitivity is not None
    assert choice.int8_macs == pytest.approx(1 - layer.macs_share) == pytest.approx(1 - 9216 / (2 * 9216 + 32768 + 320))
    by_hand = quantize_onnx(model, batches(), QuantizeSettings(float_layers=("c1",)))
    assert canonical_bytes(choice.quantized.signed) == canonical_bytes(by_hand.signed)
    assert canonical_bytes(choice.quantized.unsigned) == canonical_bytes(by_hand.unsigned)
    assert choice.quantized.scales == by_hand.scales
    assert choice.quantized.calibrated == by_hand.calibrated == full.calibrated - 1
    assert set(scales_of(choice.quantized.signed)) == set(choice.quantized.scales)
    assert not any("c1" in note for note in choice.quantized.notes), "nobody is warned of what was chosen"


def test_both_files_meet_the_budget(chain, choose, batches):
    model = chain(100)
    _, choice = choose(model, Goal(budget_pp=15))
    data = np.concatenate(list(batches()))
    expected = infer(model, data).argmax(1)
    lost = [
        100 * (infer(graph, data, optimized=optimized).argmax(1) != expected).mean()
        for graph, optimized in ((choice.quantized.unsigned, True), (choice.quantized.signed, False))
    ]
    assert max(lost) <= 15
    assert choice.reached is not None
    assert choice.reached.score.loss_pp == pytest.approx(max(lost))
    assert choice.top1 == 1.0


def test_a_goal_that_only_float_meets(chain, choose):
    with pytest.raises(
        ModelError, match=r"Only with no layer in int8 is the goal met .*149 dB, on 96 samples"
    ) as caught:
        choose(chain(), Goal(sqnr_db=149))
    assert caught.value.exit_code == 5
    assert "`qat` step" in caught.value.hint


def test_a_budget_needs_labels(chain, batches):
    full = quantize_onnx(chain(), batches())
    with pytest.raises(UsageError, match="needs labelled samples") as caught:
        choose_precision(chain(), full, Goal(budget_pp=1), batches)
    assert caught.value.exit_code == 2


def pairs(model):
    """How many tensors are quantized in a graph: a price that a float layer beside another one lowers."""
    return float(sum(node.op_type == "QuantizeLinear" for node in model.graph.node))


def pairs_cost(*, stays):
    return Cost("pairs", lambda one, best: (pairs(one), pairs(one) < pairs(best)), lambda chosen, least_work: stays)


def test_a_layer_beside_a_float_one_stays_in_float_where_that_is_cheaper(chain, choose):
    cost = pairs_cost(stays=True)
    _, by_work = choose(chain(100), Goal(sqnr_db=20))
    _, choice = choose(chain(100), Goal(sqnr_db=20), cost=cost)

    assert by_work.float_layers == choice.least_work == by_work.least_work == ("c1",)
    assert by_work.candidates == ()
    assert choice.cost == "pairs"
    assert "c1" in choice.float_layers
    assert len(choice.float_layers) > 1
    assert 0 < choice.int8_macs < by_work.int8_macs
    assert pairs(choice.quantized.unsigned) < pairs(by_work.quantized.unsigned)
    assert choice.reached is not None
    assert choice.reached.met, "the graph that is kept was judged"
    taken = [one for one in choice.candidates if one.cheaper]
    assert taken[-1] == Candidate(choice.float_layers, pairs(choice.quantized.unsigned), cheaper=True, met=True)
    reasons = {layer.name: layer.why for layer in choice.layers if layer.decided == "float"}
    assert reasons.pop("c1").startswith("were it in int8: ")
    assert set(reasons.values()) <= {
        "the goal would be met with it in int8, at a higher cost",
        "the goal would be met with it in int8, at a cost that is not clearly lower",
    }
    document = precision_document(choice)
    assert document["candidates"][0]["cost"] == choice.candidates[0].cost
    assert document["candidates"][0]["met"] is True
    assert "candidates" not in precision_document(by_work)


def test_a_cost_that_favours_nothing_changes_nothing(chain, choose):
    _, by_work = choose(chain(100), Goal(sqnr_db=20))
    _, choice = choose(
        chain(100), Goal(sqnr_db=20), cost=Cost("noise", lambda one, best: (0.99, False), lambda *_: True)
    )
    assert choice.float_layers == by_work.float_layers
    assert canonical_bytes(choice.quantized.unsigned) == canonical_bytes(by_work.quantized.unsigned)
    assert choice.candidates
    assert not any(one.cheaper for one in choice.candidates)
    assert {one.met for one in choice.candidates} == {None}, "what is no cheaper is not judged"


def test_what_more_care_refutes_is_not_written(chain, choose):
    _, by_work = choose(chain(100), Goal(sqnr_db=20))
    _, cheapest = choose(chain(100), Goal(sqnr_db=20), cost=pairs_cost(stays=True))
    _, choice = choose(chain(100), Goal(sqnr_db=20), cost=pairs_cost(stays=False))

    assert cheapest.refuted == ()
    assert choice.refuted == cheapest.float_layers
    assert choice.float_layers == choice.least_work == ("c1",)
    assert canonical_bytes(choice.quantized.unsigned) == canonical_bytes(by_work.quantized.unsigned)
    assert choice.candidates == cheapest.candidates
    why = {layer.name: layer.why for layer in choice.layers}
    assert why["c1"].startswith("were it in int8: ")
    assert {why[name] for name in choice.refuted if name != "c1"} == {REFUTED}


def test_a_graph_of_one_batch_size(chain, images):
    model = chain(100)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    for tensor in model.graph.initializer:
        if tensor.name == "shape":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([16, 32]), "shape"))
    batches = lambda: ({"image": images(16, seed)} for seed in range(6))  # noqa: E731
    full = quantize_onnx(model, batches(), static_batch=True)
    labels = answers(model, batches).argmax(axis=1)
    choice = choose_precision(model, full, Goal(budget_pp=15), batches, labels, fixed_batch=16)
    assert choice.float_layers == ("c1",)
    assert choice.samples == 96


def test_a_trained_graph_keeps_its_scales(chain, choose, batches):
    model = chain(100)
    trained = quantize_onnx(model, batches()).signed
    _, choice = choose(trained, Goal(sqnr_db=20))
    assert choice.quantized.calibrated == 0
    assert choice.quantized.kept == len(choice.quantized.scales) > 0
    assert {scale.source for scale in choice.quantized.scales.values()} == {"qat"}


def test_batches_of_one_size_are_ranked_whole(chain, monkeypatch, images):
    monkeypatch.setattr("compress.quantization.precision.SENSITIVITY_SAMPLES", 50)
    model = chain(100)
    seen = []

    def batches():
        for seed in range(6):
            seen.append(seed)
            yield {"image": images(16, seed)}

    full = quantize_onnx(model, batches())
    labels = answers(model, batches).argmax(axis=1)
    choice = choose_precision(model, full, Goal(budget_pp=15), batches, labels, fixed_batch=16)
    lost = [layer.sensitivity.alone.loss_pp for layer in choice.layers if layer.sensitivity]
    assert all(loss is not None and loss * 48 == pytest.approx(round(loss * 48 / 100) * 100) for loss in lost), "of 48"
    assert choice.samples == 96


def test_many_samples_are_ranked_on_some_of_them(chain, monkeypatch, choose):
    monkeypatch.setattr("compress.quantization.precision.SENSITIVITY_SAMPLES", 10)
    _, choice = choose(chain(100), Goal(budget_pp=15))
    assert choice.float_layers == ("c1",)
    assert choice.samples == 96, "the files are judged on all"
    lost = [layer.sensitivity.alone.loss_pp for layer in choice.layers if layer.sensitivity]
    assert all(loss is not None and loss * 10 == pytest.approx(round(loss / 10) * 100) for loss in lost), "of 10"


def test_documents(chain, choose):
    _, one = choose(chain(100), Goal(budget_pp=15))
    _, two = choose(chain(100), Goal(budget_pp=15))
    document = precision_document(one)
    assert json.dumps(document) == json.dumps(precision_document(two))
    assert document["mode"] == "adaptive"
    assert document["goal"] == "at most 15 pp of top-1 lost"
    assert document["cost"].startswith("multiply-accumulates in float")
    assert (document["samples"], document["float_top1"]) == (96, 1.0)
    assert document["reached"]["loss_pp"] <= 15 < document["all_int8"]["loss_pp"]
    assert [layer["name"] for layer in document["layers"]] == ["c0", "c1", "c2", "p0", "logits"]
    assert [layer["decided"] for layer in document["layers"]] == ["int8", "float", "int8", "int8", "int8"]
    assert sum(layer["macs_share"] for layer in document["layers"]) == pytest.approx(1)
    said = one.summary()
    assert said.startswith("82.1 % of the multiply-accumulates are in int8; in float: c1; ")
    assert "on the 96 samples that this was chosen on (all in int8: " in said


def test_files_that_nobody_chose_about(chain, batches):
    model = chain()
    full = quantize_onnx(model, batches())
    choice = fixed_precision(model, full)
    assert (choice.mode, choice.int8_macs, choice.float_layers) == ("int8", 1.0, ())
    document = precision_document(choice)
    assert document["goal"] is document["float_top1"] is document["cost"] is document["reached"]["loss_pp"] is None
    assert choice.summary() == "100.0 % of the multiply-accumulates are in int8"


def test_layers_named_by_hand(chain, batches):
    model = chain()
    full = quantize_onnx(model, batches(), QuantizeSettings(float_layers=("c[12]",)))
    choice = fixed_precision(model, full, ("c[12]",))
    assert choice.mode == "by_hand"
    assert choice.float_layers == ("c1", "c2") == tuple(summarize(full.signed)["qdq"]["float_layers"])
    assert [layer.why for layer in choice.layers] == [
        "it can be", "named to stay in float", "named to stay in float", "it can be", "it can be",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="'k9'"):
        fixed_precision(model, full, ("k9",))
