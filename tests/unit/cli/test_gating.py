"""Gates from the command line, read as a recipe's would be."""

from __future__ import annotations

import pytest

from compress.cli.gating import check_answered, gates_from_options, overrides_from_gates
from compress.errors import UsageError
from compress.report.document import LatencyRow, ReportDocument, Variant
from compress.report.gates import GatesConfig, judge


def test_values_are_yaml_and_the_last_one_counts() -> None:
    options = ["top1_drop_pp=1", " top1_drop_pp = 2.5", 'latency_ratio={"1": 1.05, "32": 1.1}', "require=[int8]"]
    assert gates_from_options(options) == GatesConfig(
        top1_drop_pp=2.5, latency_ratio={1: 1.05, 32: 1.1}, require=("int8",)
    )
    assert overrides_from_gates(["p99_ms_max=2"]) == ["gates.p99_ms_max=2"]
    assert overrides_from_gates([]) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("top1_dorp_pp=1", "--gate top1_dorp_pp=1: unknown gate 'top1_dorp_pp'; nearest: 'top1_drop_pp'"),
        ("zzz=1", "unknown gate 'zzz'; known: agreement_min, int8_operands_min, latency_ratio, memory_bytes_max, "),
        ("top1_drop_pp", "--gate top1_drop_pp: expected NAME=VALUE"),
        ("top1_drop_pp=", "expected NAME=VALUE"),
        ("=1", "expected NAME=VALUE"),
        ("top1_drop_pp=much", "--gate top1_drop_pp=much: gates.top1_drop_pp: Input should be a valid number"),
        ("top1_drop_pp=-1", "gates.top1_drop_pp: Input should be greater than 0, got -1"),
        ('latency_ratio={"0": 1}', "Input should be greater than or equal to 1"),
        ("latency_ratio={}", "should have at least 1 item"),
        ("p99_ms_max={}", "should have at least 1 item"),
        ("latency_ratio={1: 1}", "keys must be strings, got '1'; put it in quotes"),
        ("p99_ms_max=.inf", "is not a finite number"),
        ("latency_ratio={1: ", "--gate latency_ratio={1: : "),
        ("require=int8", "gates.require: Input should be a valid tuple"),
    ],
)
def test_gates_that_make_no_sense(option: str, said: str) -> None:
    for read in (gates_from_options, overrides_from_gates):
        with pytest.raises(UsageError) as caught:
            read([option])
        assert said in caught.value.message
        assert caught.value.exit_code == 2


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        gates_from_options(["zzz=1", "top1_drop_pp=-1"])
    assert "unknown gate" in caught.value.message
    assert "greater than 0" in caught.value.message


def test_gates_that_judge_nothing_do_not_pass_unseen() -> None:
    float_only = ReportDocument(
        reference="teacher",
        float_twin=None,
        split="test",
        n=9,
        variants=[Variant(name="teacher", kind="checkpoint", status="not run", reason="r")],
        ladder=[],
        environment={},
        lineage=[],
    )
    gates = GatesConfig(top1_drop_pp=1, latency_ratio=1.05, require=("techer", "teacher"))
    with pytest.raises(UsageError) as caught:
        check_answered(gates, judge(gates, float_only), float_only)
    assert caught.value.message == (
        "--gate require: the report has no variant 'techer'; nearest: 'teacher'; "
        "--gate top1_drop_pp: the report has no quantized variant to judge; "
        "--gate latency_ratio: the report has no quantized variant beside its float twin to judge"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("gate", ["latency_ratio", "p99_ms_max"])
def test_batches_that_were_not_timed_do_not_pass_unseen(gate: str) -> None:
    variant = Variant(
        name="int8",
        kind="quantized_onnx",
        status="measured",
        top1=1,
        top1_interval=(0.5, 1),
        agreement=1,
        mean_kl=0,
        latency=[LatencyRow(batch=batch, p50_ms=1, p90_ms=1, p99_ms=None, n=9) for batch in (1, 32)],
    )
    document = ReportDocument(
        reference="int8", float_twin=None, split="test", n=9, variants=[variant], ladder=[], environment={}, lineage=[]
    )
    gates = GatesConfig.model_validate({gate: {7: 1.1}})
    with pytest.raises(UsageError, match=f"--gate {gate}: batch 7 is not timed, only 1, 32"):
        check_answered(gates, judge(gates, document), document)
