"""Whether two reports may be compared, what that deserves, and gates against a base."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from compress.errors import NotComparableError
from compress.report.compare import compare_reports, find_mismatches, judge_comparison
from compress.report.comparison import Comparison
from compress.report.document import FreshRow, ReportDocument, Variant
from compress.report.gates import GatesConfig

Report = Callable[..., ReportDocument]
FINGERPRINT = {"cpu": "Example CPU", "threads": 2, "libraries": {"onnxruntime": "1.24"}, "data": {"test": "ab"}}
RIGHT = base64.b64encode(b"\xff" * 56 + b"\xc0").decode()  # 450 samples
HALF_WRONG = base64.b64encode(b"\x0f" * 56 + b"\xc0").decode()


def medians(centre: float) -> list[float]:
    return [centre * factor for factor in (0.99, 0.995, 1.0, 1.005, 1.01)]


@pytest.fixture
def whole(report: Report) -> Report:
    """A report in which everything of every measured variant can be decided; `int8_ms`, `correct` of int8."""

    def make(int8_ms: float = 1.0, correct: str = RIGHT, **fields: Any) -> ReportDocument:
        def complete(variant: Variant) -> Variant:
            if variant.status == "not run":
                return variant
            is_int8 = variant.name == "int8"
            changes = {
                "latency": [],
                "agreement": 1.0,
                "correct": correct if is_int8 else RIGHT,
                "fresh": [{"batch": 1, "medians_ms": medians(int8_ms if is_int8 else 2.0)}],
                "ratio_to_float": [],
            }
            return Variant.model_validate(variant.model_dump() | changes)

        document = report(**{"fingerprint": FINGERPRINT, **fields})
        return document.model_copy(update={"variants": [complete(variant) for variant in document.variants]})

    return make


def compared(base: ReportDocument, new: ReportDocument, **options: Any) -> Comparison:
    return compare_reports(base, new, base_name="main", new_name="branch", **options)


def test_a_report_against_itself(whole: Report) -> None:
    found = compared(whole(run="r-1"), whole(run="r-2"))
    assert found.exit_code == 0
    assert {claim.verdict for claim in found.claims} == {"no difference"}
    assert (found.base.name, found.base.run, found.new.name, found.new.run) == ("main", "r-1", "branch", "r-2")
    assert found.notes == [
        "engine was not run in the base report (no NVIDIA driver) and in the new report (no NVIDIA driver)"
    ]
    again = Comparison.model_validate_json(found.model_dump_json())
    assert again == found
    assert again.schema_version == 1


@pytest.mark.parametrize(
    ("ms", "correct", "code"),
    [(1.2, RIGHT, 3), (0.8, RIGHT, 0), (1.05, RIGHT, 4), (0.96, RIGHT, 0), (1.0, HALF_WRONG, 3), (1.05, HALF_WRONG, 3)],
)
def test_exit_codes(whole: Report, ms: float, correct: str, code: int) -> None:
    found = compared(whole(), whole(int8_ms=ms, correct=correct))
    assert found.exit_code == code
    assert compared(whole(), whole(int8_ms=ms, correct=correct), informational=True).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": FINGERPRINT | {"threads": 4}}, ["threads: 2 in the base, 4"]),
        ({"fingerprint": FINGERPRINT | {"data": {"test": "cd"}}}, ["data.test: ab in the base, cd"]),
        (
            {"fingerprint": {**FINGERPRINT, "libraries": {"onnxruntime": "1.25", "torch": "2.13"}}},
            ["libraries.onnxruntime: 1.24 in the base, 1.25", "libraries.torch: nothing in the base, 2.13"],
        ),
        (
            {"fingerprint": {k: v for k, v in FINGERPRINT.items() if k != "cpu"}},
            ["cpu: Example CPU in the base, nothi"],
        ),
        ({"split": "validation"}, ["split: test in the base, validation"]),
        ({"n": 451}, ["n: 450 in the base, 451"]),
    ],
)
def test_every_condition_that_differs_is_named(whole: Report, changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(NotComparableError, match="measured under different conditions") as caught:
        compared(whole(), whole(**changes))
    assert caught.value.exit_code == 4
    for line in said:
        assert f"\n  {line}" in caught.value.message
    assert caught.value.message.count("\n") == len(said), "what is equal is not named"
    assert "--informational" in caught.value.hint
    shown = compared(whole(), whole(**changes), informational=True)
    assert [f"{one.entry}: {one.base or 'nothing'}" for one in shown.mismatches] == [x.split(" in ")[0] for x in said]
    assert all(claim.verdict is None for claim in shown.claims)
    assert all(claim.low is None for claim in shown.claims if claim.metric == "top1"), "perhaps other samples"


def test_a_report_without_a_fingerprint(whole: Report) -> None:
    for base, new, older in (
        (whole(fingerprint={}), whole(), "main"),
        (whole(), whole(fingerprint={}), "branch"),
        (whole(fingerprint={}), whole(fingerprint={}), "main, branch"),
    ):
        with pytest.raises(NotComparableError, match="it has no fingerprint") as caught:
            compared(base, new)
        assert (caught.value.exit_code, caught.value.where) == (4, older)
        assert [one.entry for one in find_mismatches(base, new)] == ["fingerprint"]
        assert compared(base, new, informational=True).exit_code == 0


def altered(document: ReportDocument, name: str, **fields: Any) -> ReportDocument:
    variants = [v.model_copy(update=fields) if v.name == name else v for v in document.variants]
    return document.model_copy(update={"variants": variants})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("session", "onnxruntime cuda", "variants.int8.session: onnxruntime cpu in the base, onnxruntime cuda"),
        ("kind", "onnx_model", "variants.int8.kind: quantized_onnx in the base, onnx_model"),
    ],
)
def test_a_variant_that_is_or_ran_otherwise_is_not_the_same(whole: Report, field: str, value: str, said: str) -> None:
    other = altered(whole(int8_ms=1.2), "int8", **{field: value})
    with pytest.raises(NotComparableError, match="measured under different conditions") as caught:
        compared(whole(), other)
    assert (caught.value.exit_code, caught.value.message.splitlines()[1:]) == (4, [f"  {said}"])
    shown = compared(whole(), other, informational=True)
    assert (shown.exit_code, [one.entry for one in shown.mismatches]) == (0, [f"variants.int8.{field}"])
    assert {claim.verdict for claim in shown.claims} == {None}


def test_a_variant_that_one_side_did_not_run_has_no_session_to_differ(whole: Report) -> None:
    assert find_mismatches(whole(), altered(whole(), "engine", session="tensorrt", kind="onnx_model")) == []


def test_a_slower_checkpoint_is_told_and_decides_nothing(whole: Report) -> None:
    slow = altered(whole(), "teacher", fresh=[FreshRow(batch=1, medians_ms=medians(4.0))])
    found = compared(whole(), slow)
    assert [(c.variant, c.verdict, c.harmless) for c in found.claims if c.verdict == "slower"] == [
        ("teacher", "slower", True)
    ]
    assert found.exit_code == 0


def test_another_reference_leaves_agreement_out_with_the_reason(whole: Report) -> None:
    retrained = [entry.model_copy(update={"digest": "e" * 64}) for entry in whole().lineage]
    found = compared(whole(), whole(lineage=retrained))
    assert "agreement" not in {claim.metric for claim in found.claims}
    assert found.notes[-1] == (
        "the references are different models (teacher bbbbbbbbbbbb, teacher eeeeeeeeeeee), so that agreement is not "
        "compared"
    )


def test_power_and_false_alarms_are_those_of_the_decision(whole: Report) -> None:
    chance, bare = random.Random(3), whole()

    def measured(slow: float) -> ReportDocument:
        document = bare
        for name in ("teacher", "float", "int8"):
            rows = [
                FreshRow(
                    batch=batch,
                    medians_ms=[
                        math.exp(chance.gauss(0, 0.015)) * (slow if (name, batch) == ("int8", 1) else 1)
                        for _ in range(10)
                    ],
                )
                for batch in (1, 32)
            ]
            document = altered(document, name, fresh=rows)
        return document

    ends = {slow: [compared(measured(1), measured(slow)).exit_code for _ in range(100)] for slow in (1.0, 1.1)}
    assert ends[1.0].count(3) == 0
    assert ends[1.1].count(3) >= 95
    assert ends[1.1].count(0) == 0


def without(document: ReportDocument, name: str) -> ReportDocument:
    kept = [variant for variant in document.variants if variant.name != name]
    return document.model_copy(update={"variants": kept})


def test_a_missing_variant(whole: Report) -> None:
    with pytest.raises(NotComparableError, match="the new report has no variant 'int8'; it has: teacher, ") as caught:
        compared(whole(), without(whole(), "int8"))
    assert (caught.value.exit_code, caught.value.where) == (4, "branch")
    shown = compared(whole(), without(whole(), "int8"), informational=True)
    assert "int8 is in the base only" in shown.notes


def test_a_new_variant_is_noted(whole: Report) -> None:
    found = compared(without(whole(), "int8"), whole())
    assert found.exit_code == 0
    assert "int8 is new, there is nothing to hold it against" in found.notes


def test_a_report_in_which_nothing_ran(whole: Report) -> None:
    engine = whole().variant("engine")
    nothing = whole().model_copy(update={"variants": [engine], "reference": "engine", "float_twin": None})
    for informational in (False, True):
        with pytest.raises(NotComparableError, match="no variant of this report was measured") as caught:
            compared(whole(), nothing, informational=informational)
        assert (caught.value.exit_code, caught.value.where) == (4, "branch")


@pytest.mark.parametrize(
    ("limit", "ms", "decision"), [(1.05, 1.0, "pass"), (1.05, 1.2, "fail"), (1.25, 1.2, "pass"), (1.2, 1.2, "inconcl")]
)
def test_a_latency_gate_is_held_against_the_base(whole: Report, limit: float, ms: float, decision: str) -> None:
    found, engine = judge_comparison(GatesConfig(latency_ratio=limit), whole(), whole(int8_ms=ms))
    assert found.verdict.startswith(decision)
    assert (found.gate, found.variant, found.limit, found.value) == ("latency_ratio", "int8", limit, pytest.approx(ms))
    assert found.detail.startswith("batch 1: latency ")
    assert "x that of the base" in found.detail
    assert (" processes a report would decide at this ratio" in found.detail) is (found.verdict == "inconclusive")
    assert (engine.verdict, engine.detail) == ("not run", "was not run in the base report: no NVIDIA driver")


@pytest.mark.parametrize(("correct", "decision"), [(RIGHT, "pass"), (HALF_WRONG, "fail")])
def test_an_accuracy_gate_is_held_against_the_base(whole: Report, correct: str, decision: str) -> None:
    found, engine = judge_comparison(GatesConfig(top1_drop_pp=1), whole(), whole(correct=correct))
    assert (found.verdict, found.limit, found.unit) == (decision, 1.0, "pp")
    assert found.detail.startswith("change against the base ")
    assert engine.verdict == "not run"


def test_what_the_new_report_lost_is_inconclusive(whole: Report, report: Report) -> None:
    bare = report(fingerprint=FINGERPRINT)
    verdicts = judge_comparison(GatesConfig(top1_drop_pp=1, latency_ratio=1.05), whole(), bare)
    assert {v.gate: v.verdict for v in verdicts if v.variant == "int8"} == {
        "top1_drop_pp": "inconclusive",
        "latency_ratio": "inconclusive",
    }
    gone = whole().model_copy(
        update={"variants": [*whole().variants[:2], whole().variant("engine").model_copy(update={"name": "int8"})]}
    )
    verdicts = judge_comparison(GatesConfig(top1_drop_pp=1, latency_ratio={1: 1.05}), whole(), gone)
    assert [v.verdict for v in verdicts] == ["inconclusive", "inconclusive"]
    assert verdicts[0].detail == "was not run in the new report: no NVIDIA driver"
    other = judge_comparison(GatesConfig(latency_ratio={8: 1.05}), whole(), whole())
    assert (other[0].verdict, other[0].detail[:8]) == ("inconclusive", "batch 8:")


def test_a_variant_that_the_base_lacks_is_not_run(whole: Report) -> None:
    gates = GatesConfig(top1_drop_pp=1, latency_ratio=1.05)
    found = judge_comparison(gates, without(whole(), "int8"), whole())
    assert {(v.verdict, v.detail) for v in found if v.variant == "int8"} == {
        ("not run", "the base has no such variant")
    }


def test_the_other_gates_judge_the_new_report(whole: Report) -> None:
    found = judge_comparison(GatesConfig(size_bytes_max=1, agreement_min=0.9), whole(), whole())
    assert [(v.gate, v.variant, v.verdict) for v in found] == [
        ("agreement_min", "int8", "pass"),
        ("agreement_min", "engine", "not run"),
        ("size_bytes_max", "int8", "fail"),
        ("size_bytes_max", "engine", "fail"),
    ]
