from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from compress.pipeline import runner
from compress.pipeline.stage import GateVerdict
from compress.report.document import ReportDocument, Verdict
from compress.report.gates import GatesConfig, Measured, judge, not_evaluated, unanswerable

Report = Callable[..., ReportDocument]
NOT_RUN = "engine was not run: no NVIDIA driver"


def verdict_of(verdicts: list[Verdict], gate: str, variant: str) -> Verdict:
    (found,) = [v for v in verdicts if (v.gate, v.variant) == (gate, variant)]
    return found


def pair(gained: int, lost: int, n: int = 450) -> dict[str, int]:
    return {"gained": gained, "lost": lost, "n": n}


def verdict(kind: str, gate: str = "top1_drop_pp") -> Verdict:
    return Verdict.model_validate(
        {"gate": gate, "variant": "v", "verdict": kind, "limit": 1.0, "value": 1.0, "unit": "pp", "detail": "d"}
    )


def exit_code(verdicts: list[Verdict]) -> int:
    """What a run makes of them."""
    return runner.exit_code([GateVerdict.model_validate(verdict.model_dump()) for verdict in verdicts])


def test_no_gates_give_no_verdicts(report: Report) -> None:
    assert judge(GatesConfig(), report()) == []
    assert exit_code([]) == 0


@pytest.mark.parametrize("gate", ["top1_drop_pp", "top1_drop_to_float_pp"])
@pytest.mark.parametrize(
    ("counts", "decision", "value", "code"),
    [
        (pair(5, 9), "pass", 4 / 4.5, 0),
        (pair(9, 9), "pass", 0.0, 0),
        (pair(0, 40), "fail", 40 / 4.5, 3),
        (pair(2, 14), "inconclusive", 12 / 4.5, 4),
    ],
)
def test_accuracy_is_judged_by_the_paired_test(
    report: Report, gate: str, counts: dict[str, int], decision: str, value: float, code: int
) -> None:
    field = {"top1_drop_pp": "paired_to_reference", "top1_drop_to_float_pp": "paired_to_float"}[gate]
    verdicts = judge(GatesConfig.model_validate({gate: 3.0}), report(int8={field: counts}))
    assert [v.variant for v in verdicts] == ["int8", "engine"]
    found = verdict_of(verdicts, gate, "int8")
    assert (found.verdict, found.limit, found.unit) == (decision, 3.0, "pp")
    assert found.value == pytest.approx(value)
    assert str(found.value) != "-0.0"
    assert verdict_of(verdicts, gate, "engine").detail == NOT_RUN
    assert exit_code(verdicts) == code


def test_the_detail_of_an_accuracy_verdict_carries_its_numbers(report: Report) -> None:
    passed, _ = judge(GatesConfig(top1_drop_pp=3.0), report())
    assert passed.detail == (
        "change against teacher -0.89 pp (95 % interval -2.79 to +0.84 pp; n 450: 5 gained, 9 lost), "
        "p 0.016 against a loss of 3 pp or more"
    )
    open_question, _ = judge(GatesConfig(top1_drop_pp=1.0), report())
    assert open_question.verdict == "inconclusive"
    assert open_question.detail.endswith("; about 2,665 samples would decide if nothing is lost")
    hopeless, _ = judge(GatesConfig(top1_drop_pp=1.0), report(int8={"paired_to_reference": pair(10, 110, 10_000)}))
    assert hopeless.detail.endswith("; the observed loss is the limit itself, so that no number of samples decides")


def test_accuracy_gates_leave_float_variants_and_the_reference_alone(report: Report) -> None:
    verdicts = judge(
        GatesConfig(top1_drop_pp=3.0, agreement_min=0.9, size_bytes_max=10**7, latency_ratio=1.0), report()
    )
    assert {v.variant for v in verdicts} == {"int8", "engine"}


def test_counts_that_are_missing_are_not_a_pass(report: Report) -> None:
    found, _ = judge(GatesConfig(top1_drop_to_float_pp=0.5), report(int8={"paired_to_float": None}))
    assert found.verdict == "not run"
    assert found.detail == "the report holds no counts paired with float"


@pytest.mark.parametrize(
    ("limit", "decision", "code"),
    [(0.9, "pass", 0), (0.79, "fail", 3), (0.8, "inconclusive", 4), (0.801, "inconclusive", 4)],
)
def test_latency_is_judged_by_the_ends_of_the_interval(report: Report, limit: float, decision: str, code: int) -> None:
    verdicts = judge(GatesConfig(latency_ratio={1: limit}), report())
    found = verdict_of(verdicts, "latency_ratio", "int8")
    assert (found.verdict, found.limit, found.value, found.unit) == (decision, limit, 0.8, "ratio")
    assert found.detail.startswith("batch 1: latency 0.800 x that of float (95 % interval 0.796 to 0.804; 20 blocks)")
    assert exit_code(verdicts) == code


def test_an_inconclusive_latency_says_what_would_decide(report: Report) -> None:
    found, _ = judge(GatesConfig(latency_ratio={1: 0.802}), report())
    assert found.detail.endswith("; about 171 blocks would decide at this ratio")
    at_the_limit, _ = judge(GatesConfig(latency_ratio={1: 0.8}), report())
    assert at_the_limit.detail.endswith("; the observed ratio is the limit itself")


def test_one_latency_limit_holds_for_every_batch_and_a_mapping_for_its_own(report: Report) -> None:
    both = judge(GatesConfig(latency_ratio=0.6), report())
    assert [(v.variant, v.verdict, v.detail.split(":")[0]) for v in both] == [
        ("int8", "fail", "batch 1"),
        ("int8", "pass", "batch 32"),
        ("engine", "not run", "engine was not run"),
    ]
    one = judge(GatesConfig(latency_ratio={32: 0.6, 8: 0.6}), report())
    assert [v.verdict for v in one] == ["pass", "not run", "not run"]
    assert one[1].detail == "batch 8: not timed against float in the same kind of session"


def test_a_variant_of_another_session_kind_has_no_latency_verdict(report: Report) -> None:
    found, _ = judge(GatesConfig(latency_ratio=1.0), report(int8={"session": "tensorrt gpu", "ratio_to_float": []}))
    assert (found.verdict, found.limit) == ("not run", 1.0)
    assert found.detail == "not timed against float in the same kind of session"


def test_a_drifting_machine_decides_nothing(report: Report) -> None:
    row = {"batch": 1, "p50_ms": 0.1, "p90_ms": 0.1, "p99_ms": None, "n": 100, "unstable": True}
    found, *_ = judge(GatesConfig(latency_ratio=0.9), report(int8={"latency": [row]}))
    assert found.verdict == "inconclusive"
    assert "latencies drifted in both measurements" in found.detail


@pytest.mark.parametrize(("agreement", "decision"), [(1.0, "pass"), (0.96, "inconclusive"), (0.9, "fail")])
def test_agreement_is_judged_by_its_interval(report: Report, agreement: float, decision: str) -> None:
    found, engine = judge(GatesConfig(agreement_min=0.95), report(int8={"agreement": agreement}))
    assert (found.verdict, found.value, found.unit) == (decision, agreement, "fraction")
    assert f"for {round(agreement * 450)} of 450 samples" in found.detail
    assert ("; about 4,601 samples would decide at this share" in found.detail) is (decision == "inconclusive")
    assert (engine.verdict, engine.detail) == ("not run", NOT_RUN)


@pytest.mark.parametrize(
    ("facts", "decision", "value"),
    [
        ({"int8_convolutions": 6, "convolutions": 6, "int8_gemms": 2, "gemms": 2}, "pass", 1.0),
        ({"int8_convolutions": 5, "convolutions": 6, "int8_gemms": 2, "gemms": 2}, "fail", 0.875),
        ({"convolutions": 6}, "fail", 0.0),
        ({"target": "8.9"}, "not run", None),
        ({}, "not run", None),
    ],
)
def test_int8_operands_are_judged_of_the_engine_alone(
    report: Report, facts: dict[str, Any], decision: str, value: float | None
) -> None:
    *others, engine = report().variants
    document = report(variants=[*others, engine.model_copy(update={"facts": facts})])
    (found,) = judge(GatesConfig(int8_operands_min=1.0), document)
    assert (found.variant, found.verdict, found.value) == ("engine", decision, value)
    assert value is None or f"of {sum(facts.get(name, 0) for name in ('convolutions', 'gemms'))} conv" in found.detail


def test_size_is_judged_even_where_the_variant_was_not_run(report: Report) -> None:
    small, engine = judge(GatesConfig(size_bytes_max=56_789), report())
    assert (small.verdict, engine.verdict) == ("pass", "fail")
    assert engine.detail == "1,234,567 bytes, allowed 56,789"
    unknown, _ = judge(GatesConfig(size_bytes_max=1), report(int8={"size_bytes": None}))
    assert (unknown.verdict, unknown.detail) == ("not run", "int8 has no file whose size is known")


def test_require_turns_not_run_into_exit_7(report: Report) -> None:
    verdicts = judge(GatesConfig(require=("int8", "engine")), report())
    assert [(v.variant, v.verdict) for v in verdicts] == [("int8", "pass"), ("engine", "not run")]
    assert exit_code(verdicts) == 7
    assert exit_code(judge(GatesConfig(top1_drop_pp=3.0), report())) == 0


def test_gates_without_an_answer_are_named(report: Report) -> None:
    verdicts = judge(GatesConfig(top1_drop_pp=3.0, latency_ratio=1.0, require=("engine",)), report())
    assert (
        not_evaluated(verdicts) == "not evaluated: top1_drop_pp of engine, latency_ratio of engine, require of engine"
    )
    assert not_evaluated([verdict("pass")]) == ""


KINDS = {"teacher": "checkpoint", "float": "onnx_model", "int8": "quantized_onnx", "engine": "engine"}
WHOLE = Measured(KINDS, "teacher", "float", (1, 32))
WITHOUT_TWIN = Measured(KINDS, "teacher", None)
FLOATS = Measured({"teacher": "checkpoint", "float": "onnx_model"}, "teacher", "float")
NO_ENGINE = Measured({"teacher": "checkpoint", "int8": "quantized_onnx"}, "teacher", None)
NO_TWIN = "no benchmark names a float_twin to compare with"
NOT_QUANTIZED = "no benchmark has a quantized variant to judge (the output of calibrate or engine)"
NO_REPORT = "no step writes a report that they could be judged from; add a benchmark step"
ALL = {"top1_drop_pp": 3, "top1_drop_to_float_pp": 1, "latency_ratio": 1, "agreement_min": 0.9, "size_bytes_max": 9}


@pytest.mark.parametrize(
    ("gates", "benchmarks", "expected"),
    [
        ({**ALL, "require": ["engine", "float", "teacher"]}, [WHOLE], []),
        ({}, [], []),
        ({"top1_drop_pp": 3.0}, [], [("", NO_REPORT)]),
        ({"require": ["int8"]}, [], [("", NO_REPORT)]),
        (
            {"require": ["engin", "zz"]},
            [FLOATS, WHOLE],
            [
                ("require", "no benchmark measures 'engin', only teacher, float, int8, engine; did you mean engine?"),
                ("require", "no benchmark measures 'zz', only teacher, float, int8, engine"),
            ],
        ),
        (ALL, [WITHOUT_TWIN], [("top1_drop_to_float_pp", NO_TWIN), ("latency_ratio", NO_TWIN)]),
        (ALL, [FLOATS], [(gate, NOT_QUANTIZED) for gate in ALL]),
        (ALL, [FLOATS, WITHOUT_TWIN], [("top1_drop_to_float_pp", NOT_QUANTIZED), ("latency_ratio", NOT_QUANTIZED)]),
        (ALL, [FLOATS, WHOLE], []),
        ({"int8_operands_min": 1}, [WHOLE], []),
        ({"int8_operands_min": 1}, [NO_ENGINE], [("int8_operands_min", "no benchmark has an engine to judge")]),
        ({"latency_ratio": {1: 1, 32: 1}, "p99_ms_max": {32: 1}}, [WHOLE], []),
        (
            {"latency_ratio": {1: 1, 7: 1}, "p99_ms_max": {8: 1}},
            [WHOLE],
            [("latency_ratio", "batch 7 is not timed, only 1, 32"), ("p99_ms_max", "batch 8 is not timed, only 1, 32")],
        ),
    ],
)
def test_gates_that_can_never_be_answered(
    gates: dict[str, Any], benchmarks: list[Measured], expected: list[tuple[str, str]]
) -> None:
    assert unanswerable(GatesConfig.model_validate(gates), benchmarks) == expected


def test_a_report_answers_what_it_can_and_leaves_the_rest_to_another(report: Report) -> None:
    gates = GatesConfig(top1_drop_pp=3.0, latency_ratio=1.0, require=("int8", "elsewhere"))
    verdicts = judge(gates, report(int8={"ratio_to_float": []}, float_twin=None))
    assert {(v.gate, v.variant) for v in verdicts} == {
        ("top1_drop_pp", "int8"), ("top1_drop_pp", "engine"), ("require", "int8"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "gates",
    [
        {"top1_drop": 3.0},
        {"top1_drop_pp": 0},
        {"top1_drop_pp": 100.0},
        {"top1_drop_to_float_pp": -1.0},
        {"latency_ratio": 0},
        {"latency_ratio": {0: 1.0}},
        {"latency_ratio": float("inf")},
        {"agreement_min": 95},
        {"agreement_min": 1},
        {"int8_operands_min": 0},
        {"int8_operands_min": 1.5},
        {"size_bytes_max": 0},
        {"require": "engine"},
    ],
)
def test_limits_that_make_no_sense_are_refused(gates: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GatesConfig.model_validate(gates)


def test_judging_a_stored_report_imports_no_numeric_library(report: Report) -> None:
    from compress.report.document import report_json

    code = """
import sys
from compress.report.document import report_from_json, stored_schema
from compress.report.gates import GatesConfig, judge
from compress.report.markdown import markdown
document = report_from_json(sys.stdin.buffer.read())
verdicts = judge(GatesConfig(top1_drop_pp=3.0, latency_ratio=1.0, agreement_min=0.9), document)
assert len(verdicts) == 7, verdicts
assert markdown(document, verdicts) and stored_schema()
heavy = {"numpy", "scipy", "torch", "onnx", "onnxruntime", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], input=report_json(report()), check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
