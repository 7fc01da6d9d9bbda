"""What is said of each metric, held against figures worked out by hand or by the statistics themselves."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import pytest

from compress.errors import ArtifactError
from compress.report.claims import figures, judged_claims, references_differ
from compress.report.comparison import Claim
from compress.report.document import FreshRow, ReportDocument, Variant

Report = Callable[..., ReportDocument]
N = 450


def bits(*wrong: int, n: int = N) -> str:
    """Answers of n samples, all right but those."""
    right = "".join("0" if index in wrong else "1" for index in range(n))
    padded = right.ljust(-(-n // 8) * 8, "0")
    return base64.b64encode(int(padded, 2).to_bytes(len(padded) // 8, "big")).decode()


def fresh(*medians: float, batch: int = 1) -> list[dict[str, Any]]:
    return [{"batch": batch, "medians_ms": list(medians)}]


def around(centre: float) -> list[dict[str, Any]]:
    return fresh(*(centre * factor for factor in (0.99, 0.995, 1.0, 1.005, 1.01)))


def cold(peak: int) -> dict[str, Any]:
    return {"processes": 5, "load_ms": 1.0, "first_ms": 1.0, "base_bytes": 1, "peak_bytes": peak}


def claims_of(report: Report, base: dict[str, Any], new: dict[str, Any], metric: str) -> list[Claim]:
    found = judged_claims(report(int8=base), report(int8=new))
    return [claim for claim in found if (claim.variant, claim.metric) == ("int8", metric)]


@pytest.mark.parametrize(
    ("ratio", "verdict", "harmless"),
    [
        (1.0, "no difference", False),
        (1.2, "slower", False),
        (0.8, "faster", False),
        (1.055, "inconclusive", False),
        (0.955, "inconclusive", True),
    ],
)
def test_latency(report: Report, ratio: float, verdict: str, harmless: bool) -> None:
    (claim,) = claims_of(
        report,
        {"latency": [], "ratio_to_float": [], "fresh": around(2.0)},
        {"latency": [], "ratio_to_float": [], "fresh": around(2.0 * ratio)},
        "latency",
    )
    assert (claim.verdict, claim.harmless, claim.batch, claim.unit) == (verdict, harmless, 1, "ms")
    assert claim.change == pytest.approx(ratio)
    assert claim.base is not None
    assert claim.new is not None
    assert claim.new / claim.base == pytest.approx(ratio), "the figures are those that the ratio is made of"
    assert claim.low is not None
    assert claim.high is not None
    # Welch by hand: 8 degrees of freedom (t .975 = 2.306004), sd of the logs .0079060 on both sides.
    assert math.log(claim.high / claim.low) == pytest.approx(2 * 2.306004 * 0.0079060 * math.sqrt(2 / 5), rel=1e-3)
    assert claim.detail.startswith("geometric means of 5 and 5 processes")


def test_an_open_latency_says_what_would_decide(report: Report) -> None:
    side = {"latency": [], "ratio_to_float": []}
    (open_claim,) = claims_of(report, {**side, "fresh": around(2.0)}, {**side, "fresh": around(2.09)}, "latency")
    assert open_claim.verdict == "inconclusive"
    assert "processes a report would decide" in open_claim.detail
    (harmless,) = claims_of(report, {**side, "fresh": around(2.0)}, {**side, "fresh": around(1.91)}, "latency")
    assert harmless.detail.endswith("not slower beyond the tolerance, whether faster is open")


def test_few_processes_decide_nothing(report: Report) -> None:
    claims = claims_of(report, {"fresh": fresh(1.0, 1.0, 1.0, 1.0)}, {"fresh": around(1.0)}, "latency")
    by_batch = {claim.batch: claim for claim in claims}
    assert {claim.verdict for claim in claims} == {"inconclusive"}
    assert by_batch[1].detail == "a verdict needs 5 fresh processes in each report, got 4 and 5"
    assert (
        by_batch[32].detail == "a verdict needs 5 fresh processes in each report, got 0 and 0; p50 within one process"
    )
    assert (by_batch[32].base, by_batch[32].low, by_batch[32].change) == (1.0, None, 1.0)


def test_a_batch_size_of_one_side_only(report: Report) -> None:
    side = {"latency": [], "ratio_to_float": []}
    new = {**side, "fresh": [*around(1.0), *fresh(1, 1, 1, 1, 1, batch=8)]}
    claims = claims_of(report, {**side, "fresh": around(1.0)}, new, "latency")
    assert [(claim.batch, claim.verdict) for claim in claims] == [(1, "no difference"), (8, "inconclusive")]
    assert claims[1].detail == "not timed at this batch size in the base report"


@pytest.mark.parametrize(
    ("before", "after", "verdict", "harmless"),
    [
        ((), (), "no difference", False),
        ((1, 2), (2, 3), "no difference", False),
        ((), tuple(range(20)), "worse", False),
        (tuple(range(20)), (), "better", False),
        ((), tuple(range(4)), "inconclusive", False),
        (tuple(range(4)), (), "inconclusive", True),
    ],
)
def test_top1(report: Report, before: tuple[int, ...], after: tuple[int, ...], verdict: str, harmless: bool) -> None:
    def side(wrong: tuple[int, ...]) -> dict[str, Any]:
        return {"correct": bits(*wrong), "top1": 1 - len(wrong) / N}

    (claim,) = claims_of(report, side(before), side(after), "top1")
    assert (claim.verdict, claim.harmless, claim.change_unit) == (verdict, harmless, "pp")
    assert claim.change == pytest.approx(100 * (len(before) - len(after)) / N)
    gained, lost = len(set(before) - set(after)), len(set(after) - set(before))
    assert claim.detail.startswith(f"n 450: {gained} gained, {lost} lost; Tango's test")
    assert ("samples would decide" in claim.detail) == (verdict == "inconclusive" and not harmless)


def test_top1_without_answers_per_sample(report: Report) -> None:
    (claim,) = claims_of(report, {"correct": bits()}, {}, "top1")
    assert (claim.verdict, claim.detail) == ("inconclusive", "a report holds no answers per sample")


@pytest.mark.parametrize("damaged", ["not base64!", "AAAA", bits(n=451)])
def test_damaged_answers(report: Report, damaged: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        judged_claims(report(int8={"correct": bits()}), report(int8={"correct": damaged}))
    assert caught.value.exit_code == 6
    assert caught.value.where.startswith("variant int8")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(1.0, 1.0, "no difference"), (1.0, 0.8, "worse"), (0.98, 0.98, "inconclusive")],
)
def test_agreement_without_answers_is_judged_at_the_most_unfavourable_pairing(
    report: Report, before: float, after: float, verdict: str
) -> None:
    with_answers = {"agreement": before, "agrees": bits()}
    for base in ({"agreement": before}, with_answers):
        (claim,) = claims_of(report, base, {"agreement": after}, "agreement")
        assert (claim.verdict, claim.harmless, claim.p_holm) == (verdict, True, None)
        assert claim.change == pytest.approx(100 * (after - before))
        assert claim.detail == (
            "with teacher; n 450; Tango's test at the most unfavourable pairing; "
            "information, decides nothing: supports top-1"
        )


def test_agreement_is_paired_by_sample(report: Report) -> None:
    before, after = {"agreement": 0.98, "agrees": bits(*range(9))}, {"agreement": 0.98, "agrees": bits(*range(1, 10))}
    (claim,) = claims_of(report, before, after, "agreement")
    assert (claim.verdict, claim.harmless, claim.p_holm) == ("no difference", True, None)
    assert "n 450; 1 gained, 1 lost; Tango's test;" in claim.detail
    # The same two accuracies at the most unfavourable pairing leave the question open.
    (unpaired,) = claims_of(report, {"agreement": 0.98}, {"agreement": 0.98}, "agreement")
    assert unpaired.verdict == "inconclusive"
    with pytest.raises(ArtifactError) as caught:
        claims_of(report, before, {"agreement": 0.98, "agrees": "AAAA"}, "agreement")
    assert (caught.value.exit_code, caught.value.where) == (6, "variant int8, agrees")


def test_agreement_needs_one_reference(report: Report) -> None:
    retrained = [entry.model_copy(update={"digest": "e" * 64}) for entry in report().lineage]
    for other, reason in (
        (report(reference="float", float_twin=None, int8={"ratio_to_float": []}), "does not say which model"),
        (report(lineage=[]), "does not say which model its reference is (its lineage has no such step)"),
        (report(lineage=retrained), "different models (teacher bbbbbbbbbbbb, teacher eeeeeeeeeeee)"),
    ):
        assert reason in (references_differ(report(), other) or "")
        assert not [claim for claim in judged_claims(report(), other) if claim.metric == "agreement"]
    assert references_differ(report(), report()) is None
    assert {c.variant for c in judged_claims(report(), report()) if c.metric == "agreement"} == {"float", "int8"}


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("size", 100_000, 101_000, "no difference"),
        ("size", 100_000, 101_001, "worse"),
        ("size", 100_000, 99_000, "better"),
        ("memory", 100_000, 105_000, "no difference"),
        ("memory", 100_000, 105_001, "worse"),
        ("memory", 100_000, 95_000, "better"),
    ],
)
def test_bytes_are_compared_as_they_are(report: Report, metric: str, before: int, after: int, verdict: str) -> None:
    def side(size: int) -> dict[str, Any]:
        return {"size_bytes": size} if metric == "size" else {"cold_start": cold(size)}

    (claim,) = claims_of(report, side(before), side(after), metric)
    assert (claim.verdict, claim.base, claim.new, claim.low, claim.p) == (verdict, before, after, None, None)
    assert claim.change == pytest.approx(after / before)


def test_what_the_new_report_lost_is_not_a_pass(report: Report) -> None:
    (memory,) = claims_of(report, {"cold_start": cold(9)}, {}, "memory")
    assert (memory.verdict, memory.detail) == ("inconclusive", "not known in the new report")
    missing = report(variants=[*report().variants[:2], report().variants[3].model_copy(update={"name": "int8"})])
    claims = {(c.metric, c.batch): c for c in judged_claims(report(), missing) if c.variant == "int8"}
    for metric in (("top1", None), ("agreement", None), ("latency", 1), ("latency", 32)):
        assert claims[metric].verdict == "inconclusive"
        assert claims[metric].harmless == (metric[0] == "agreement")
        assert claims[metric].detail.partition(";")[0] == "was not run in the new report: no NVIDIA driver"


def test_what_neither_ran_is_compared_by_size_alone(report: Report) -> None:
    claims = [claim for claim in judged_claims(report(), report()) if claim.variant == "engine"]
    assert [claim.metric for claim in claims] == ["size"]


def test_one_slower_claim_among_many_may_be_chance(report: Report) -> None:
    side = {"latency": [], "ratio_to_float": []}
    alone = claims_of(report, {**side, "fresh": around(1.0)}, {**side, "fresh": around(1.07)}, "latency")
    assert alone[0].verdict == "slower"
    assert alone[0].p is not None
    assert 0.025 / 12 < alone[0].p < 0.025 / 3, "the setting of this test"
    batches = [{"batch": batch, "medians_ms": around(1.0)[0]["medians_ms"]} for batch in range(1, 13)]
    changed = [{**batches[0], "medians_ms": around(1.07)[0]["medians_ms"]}, *batches[1:]]
    first, *others = claims_of(report, {**side, "fresh": batches}, {**side, "fresh": changed}, "latency")
    assert (first.verdict, first.harmless) == ("inconclusive", False)
    assert "by itself slower, among 12 claims perhaps chance (Holm)" in first.detail
    assert first.p is not None
    assert first.p_holm == pytest.approx(12 * first.p)
    assert {claim.verdict for claim in others} == {"no difference"}


def test_a_family_is_one_metric_of_what_gets_deployed(report: Report) -> None:
    side = {"latency": [], "ratio_to_float": [], "correct": bits(), "agrees": bits(), "agreement": 1.0, "top1": 1.0}

    def timed(centre: float, teacher: float = 1.0) -> ReportDocument:
        document = report(int8={**side, "fresh": [*around(centre), *fresh(1, 1, 1, 1, 1, batch=8)]})
        slow = Variant.model_validate(document.variant("teacher").model_dump() | side | {"fresh": around(teacher)})
        return document.model_copy(update={"variants": [slow, *document.variants[1:]]})

    claims = {(c.variant, c.metric, c.batch): c for c in judged_claims(timed(1.0), timed(1.07, teacher=1.5))}
    latency, top1 = claims["int8", "latency", 1], claims["int8", "top1", None]
    assert (latency.verdict, latency.harmless, top1.harmless) == ("slower", False, False)
    assert latency.p is not None
    assert latency.p_holm == pytest.approx(2 * latency.p), "two latencies are held together, top-1 apart from them"
    assert top1.p_holm == top1.p
    teacher = claims["teacher", "latency", 1]
    assert (teacher.verdict, teacher.harmless, teacher.p_holm) == ("slower", True, None)
    assert teacher.detail.endswith("; information, decides nothing: a checkpoint is not what gets deployed")
    assert {c.harmless for c in claims.values() if c.variant == "teacher"} == {True}


def test_checkpoints_decide_where_nothing_else_was_measured(report: Report) -> None:
    def only(centre: float) -> ReportDocument:
        document = report()
        teacher = document.variant("teacher").model_copy(update={"fresh": [FreshRow(**around(centre)[0])]})
        kept = [teacher, document.variant("engine")]
        return document.model_copy(update={"variants": kept, "float_twin": None})

    (claim,) = [c for c in judged_claims(only(1.0), only(1.2)) if c.batch == 1]
    assert (claim.variant, claim.verdict, claim.harmless, claim.p_holm) == ("teacher", "slower", False, claim.p)


def test_figures_carry_no_verdict(report: Report) -> None:
    base, new = report(int8={"correct": bits(), "fresh": around(1.0)}), report(int8={"correct": bits(1)})
    for same_samples in (True, False):
        claims = figures(base, new, same_samples=same_samples)
        assert claims
        assert {(claim.verdict, claim.p, claim.harmless) for claim in claims} == {(None, None, False)}
        (top1,) = [claim for claim in claims if (claim.variant, claim.metric) == ("int8", "top1")]
        assert (top1.low is not None) == same_samples


def test_figures_do_not_say_what_would_decide(report: Report) -> None:
    def side(centre: float, *wrong: int) -> ReportDocument:
        return report(int8={"correct": bits(*wrong), "fresh": around(centre)})

    for centre, wrong in ((1.045, range(4)), (0.955, ()), (1.2, ())):
        claims = figures(side(1.0), side(centre, *wrong), same_samples=True)
        assert not [c.detail for c in claims if "decide" in c.detail or "is open" in c.detail or "Holm" in c.detail]
