from __future__ import annotations

import base64
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from compress.errors import ArtifactError
from compress.measure.comparison import (
    REPORT_TOLERANCE,
    holm,
    needed_medians,
    needed_medians_for_limit,
    paired_counts,
    ratio_verdict,
    slower_p,
    welch_ratio,
)
from compress.measure.statistics import ratio_decision

BASE = [1.00, 1.03, 0.99, 1.01, 1.02]
NEW = [1.10, 1.16, 1.08, 1.11, 1.13, 1.09, 1.12]


def bits(*right: bool | int) -> str:
    return base64.b64encode(np.packbits(np.array(right, bool)).tobytes()).decode()


def test_welch_ratio_equals_scipy_and_statsmodels() -> None:
    found = welch_ratio(BASE, NEW)
    logs = np.log(NEW), np.log(BASE)
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval()
    assert math.log(found.low) == pytest.approx(expected.low, abs=1e-9)
    assert math.log(found.high) == pytest.approx(expected.high, abs=1e-9)
    low, high = CompareMeans(*(DescrStatsW(side) for side in logs)).tconfint_diff(usevar="unequal")
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((low, high), abs=1e-9)
    assert found.ratio == pytest.approx(math.exp(logs[0].mean() - logs[1].mean()))
    assert (found.base_count, found.new_count) == (5, 7)
    assert (found.base_sd_log, found.new_sd_log) == pytest.approx((logs[1].std(ddof=1), logs[0].std(ddof=1)))


@pytest.mark.parametrize("limit", [1.0, 1.05, 1.15, 2.0])
def test_slower_p_is_the_one_sided_welch_test(limit: float) -> None:
    expected = stats.ttest_ind(np.log(NEW), np.log(BASE) + math.log(limit), equal_var=False, alternative="greater")
    found = welch_ratio(BASE, NEW)
    assert slower_p(found, limit) == pytest.approx(np.asarray(expected)[1], rel=1e-6)
    assert (slower_p(found, limit) < 0.025) == (found.low > limit)


def test_equal_medians_have_an_interval_without_width() -> None:
    found = welch_ratio([2.0, 2.0], [3.0, 3.0])
    assert (found.ratio, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert (slower_p(found, 1.4), slower_p(found, 1.6)) == (0.0, 1.0)
    assert needed_medians(found, 0.05) == 2


@pytest.mark.parametrize("medians", [[], [1.0], [1.0, 0.0], [1.0, math.inf], [1.0, math.nan]])
def test_welch_refuses_what_has_no_interval(medians: list[float]) -> None:
    for sides in ((BASE, medians), (medians, BASE)):
        with pytest.raises(ValueError, match="expected at least 2 medians, positive and finite"):
            welch_ratio(*sides)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.06, 1.10, "slower"),
        (1.05, 1.10, "inconclusive"),
        (1.02, 1.05, "no difference"),
        (1.02, 1.06, "inconclusive"),
        (0.96, 1.04, "no difference"),
        (1 / 1.05, 1.0, "no difference"),
        (0.94, 1.0, "inconclusive"),
        (0.90, 0.95, "faster"),
        (0.90, 0.96, "inconclusive"),
        (0.50, 2.0, "inconclusive"),
    ],
)
def test_ratio_verdict(low: float, high: float, verdict: str) -> None:
    assert ratio_verdict(low, high, 0.05) == verdict
    turned = {"slower": "faster", "faster": "slower"}
    assert ratio_verdict(1 / high, 1 / low, 0.05) == turned.get(verdict, verdict)


@pytest.mark.parametrize(("low", "high", "tolerance"), [(1.1, 1.0, 0.05), (0.0, 1.0, 0.05), (0.9, 1.0, 0.0)])
def test_ratio_verdict_refuses_what_is_no_interval(low: float, high: float, tolerance: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < low <= high and tolerance > 0"):
        ratio_verdict(low, high, tolerance)


def test_two_reports_are_judged_as_promised_in_simulation() -> None:
    chance = np.random.default_rng(0)

    def share(ratio: float, verdict: str, medians: int) -> float:
        hits = 0
        for _ in range(1000):
            base, new = chance.normal(0, 0.02, (2, medians))
            found = welch_ratio(np.exp(base).tolist(), (ratio * np.exp(new)).tolist())
            hits += ratio_verdict(found.low, found.high, REPORT_TOLERANCE) == verdict
        return hits / 1000

    assert share(1.0, "slower", 5) == 0
    assert share(1.05, "no difference", 5) < 0.04
    assert share(1.05, "slower", 5) < 0.04
    assert share(1.15, "slower", 5) > 0.95


def test_needed_medians_decide_nine_times_in_ten() -> None:
    chance = np.random.default_rng(1)
    for ratio, verdict in ((1.1, "slower"), (1.0, "no difference")):
        planned = welch_ratio([math.exp(0.03), math.exp(-0.03)], [ratio * math.exp(0.03), ratio * math.exp(-0.03)])
        count = needed_medians(planned, REPORT_TOLERANCE)
        assert count is not None
        decided = 0
        for _ in range(500):
            base, new = chance.normal(0, planned.base_sd_log, (2, count))
            found = welch_ratio(np.exp(base).tolist(), (ratio * np.exp(new)).tolist())
            decided += ratio_verdict(found.low, found.high, REPORT_TOLERANCE) == verdict
        assert 0.85 < decided / 500 < 0.96


@pytest.mark.parametrize(("limit", "decision"), [(1.15, "pass"), (1.05, "fail")])
def test_needed_medians_for_a_limit_decide_nine_times_in_ten(limit: float, decision: str) -> None:
    chance = np.random.default_rng(2)
    planned = welch_ratio([math.exp(0.03), math.exp(-0.03)], [1.1 * math.exp(0.03), 1.1 * math.exp(-0.03)])
    count = needed_medians_for_limit(planned, limit)
    assert count is not None
    decided = 0
    for _ in range(500):
        base, new = chance.normal(0, planned.base_sd_log, (2, count))
        found = welch_ratio(np.exp(base).tolist(), (1.1 * np.exp(new)).tolist())
        decided += ratio_decision(found.low, found.high, limit) == decision
    assert 0.85 < decided / 500 < 0.96


def test_more_claims_need_more_medians() -> None:
    found = welch_ratio([1.0, 1.1, 1.05], [1.2, 1.3, 1.25])
    counts = [needed_medians_for_limit(found, 1.1, claims) or 0 for claims in (1, 4, 20)]
    assert counts == sorted(set(counts))


def test_no_count_decides_a_ratio_on_the_limit() -> None:
    found = welch_ratio([1.0, 1.0], [1.25, 1.25])
    assert needed_medians(found, math.expm1(found.mean_log)) is None
    assert needed_medians_for_limit(found, math.exp(found.mean_log)) is None


@pytest.mark.parametrize("values", [[], [0.03], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9], [0.02, 0.02, 0.02]])
def test_holm_equals_statsmodels(values: list[float]) -> None:
    expected = np.asarray(multipletests(values, method="holm")[1]).tolist() if values else []
    assert holm(values) == pytest.approx(expected, abs=1e-12)


def test_paired_counts_by_hand() -> None:
    assert paired_counts(bits(1, 1, 0, 0, 1), bits(1, 0, 1, 0, 0), 5) == (1, 2)
    assert paired_counts(bits(1, 0), bits(1, 0), 2) == (0, 0)


def test_paired_counts_equal_numpy() -> None:
    base, new = np.random.default_rng(2).random((2, 1003)) < 0.9
    assert paired_counts(bits(*base), bits(*new), 1003) == (int((new & ~base).sum()), int((base & ~new).sum()))


@pytest.mark.parametrize(
    ("text", "n", "message"),
    [
        ("no base64!", 5, "are not base64"),
        ("é", 5, "are not base64"),
        (bits(1, 0, 1), 9, "expected one bit for each of 9 samples, got 1 bytes"),
        (bits(*[1] * 9), 8, "expected one bit for each of 8 samples, got 2 bytes"),
        (bits(1, 1, 1, 1), 3, "expected one bit for each of 3 samples"),
        ("", 1, "expected one bit for each of 1 samples, got 0 bytes"),
    ],
)
def test_bits_that_are_damaged_are_an_artifact_error(text: str, n: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        paired_counts(text, text, n)
    assert caught.value.exit_code == 6
    assert "run the benchmark again" in caught.value.hint


def test_comparing_imports_neither_numpy_nor_scipy() -> None:
    code = (
        "import sys\nfrom compress.measure.comparison import welch_ratio\nwelch_ratio([1.0, 1.1], [1.2, 1.3])\n"
        "print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
