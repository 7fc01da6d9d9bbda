from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from compress.measure import statistics
from compress.measure.statistics import (
    drift,
    mcnemar_p,
    needed_blocks,
    needed_samples,
    normal_sf,
    percentile,
    proportion_decision,
    ratio_decision,
    ratio_interval,
    tango_interval,
    tango_noninferiority,
    tango_score,
    wilson,
)

PAIRS = [(1, 7, 21), (40, 20, 160), (4, 12, 39), (0, 1, 44), (1, 0, 44), (0, 0, 450), (5, 9, 450), (31, 60, 10_000)]


def constrained_q(gained: int, lost: int, n: int, loss: float) -> float:
    """Share of gained samples that makes the counts likeliest when the loss is fixed, where the likelihood is flat."""

    def slope(q: float) -> float:
        return gained / q + lost / (q + loss) - 2 * (n - gained - lost) / (1 - 2 * q - loss)

    low, high = max(0.0, -loss), (1 - loss) / 2
    inside = (low + 1e-14, high - 1e-14)
    if slope(inside[0]) <= 0:
        return low
    if slope(inside[1]) >= 0:
        return high
    root: Any = optimize.brentq(slope, *inside, xtol=1e-16)
    return root


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe, 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_reproduces_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    interval = wilson(correct, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 450), (441, 450), (450, 450), (9_350, 10_000)])
def test_wilson_equals_scipy_and_statsmodels(correct: int, n: int) -> None:
    interval = wilson(correct, n)
    for expected in (
        tuple(stats.binomtest(correct, n).proportion_ci(method="wilson")),
        proportion_confint(correct, n, method="wilson"),
    ):
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)
    assert 0 <= interval.low <= correct / n <= interval.high <= 1


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 10), (11, 10)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct <= n"):
        wilson(correct, n)


def test_normal_quantiles_and_tail_equal_scipy() -> None:
    for constant, probability in ((statistics.Z_975, 0.975), (statistics.Z_950, 0.95), (statistics.Z_900, 0.9)):
        assert constant == pytest.approx(stats.norm.ppf(probability), abs=1e-14)
    for z in (-3.0, 0.0, 1.2, 8.0):
        assert normal_sf(z) == pytest.approx(stats.norm.sf(z), rel=1e-12)


@pytest.mark.parametrize(("gained", "lost", "n"), PAIRS)
@pytest.mark.parametrize("loss", [-0.2, -0.01, 0.01, 0.03, 0.25])
def test_tango_score_equals_a_root_search_over_the_likelihood(gained: int, lost: int, n: int, loss: float) -> None:
    q = constrained_q(gained, lost, n, loss)
    variance = n * (2 * q + loss - loss**2)
    assert tango_score(gained, lost, n, loss) == pytest.approx(
        (gained - lost + n * loss) / math.sqrt(variance), rel=1e-6
    )


def test_tango_score_by_hand() -> None:
    # No discordant pairs: q = 0, Z = n d / sqrt(n d (1 - d)).
    assert tango_score(0, 0, 100, 0.2) == pytest.approx(20 / math.sqrt(100 * 0.2 * 0.8), rel=1e-12)
    # At margin 0 it is McNemar's statistic.
    assert tango_score(4, 9, 50, 0.0) == pytest.approx((4 - 9) / math.sqrt(4 + 9), rel=1e-12)
    # Tango, 1998: two ways to disinfect contact lenses, 0 and 1 of 44 discordant, margin 0.1.
    assert tango_score(0, 1, 44, 0.1) == pytest.approx(1.709, abs=5e-4)
    # A loss of everything is impossible once anything was kept.
    assert tango_score(0, 0, 10, 1.0) == math.inf
    assert tango_score(0, 10, 10, 1.0) == 0.0


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high", "digit"),
    [
        # Fagerland, Lydersen and Laake, 2014, doi:10.1002/sim.6148: airway hyper-responsiveness.
        (1, 7, 21, -0.517, -0.026, 1e-3),
        # The same authors' contingencytables for R: complete response before and after consolidation therapy.
        (6, 16, 161, -0.1240, -0.0054, 1e-4),
    ],
)
def test_tango_interval_reproduces_published_examples(
    gained: int, lost: int, n: int, low: float, high: float, digit: float
) -> None:
    interval = tango_interval(gained, lost, n)
    assert interval.low == pytest.approx(low, abs=digit / 2)
    assert interval.high == pytest.approx(high, abs=digit / 2)


@pytest.mark.parametrize(("gained", "lost", "n"), PAIRS)
def test_tango_interval_equals_a_root_search_over_the_likelihood(gained: int, lost: int, n: int) -> None:
    def score(difference: float) -> float:
        q = constrained_q(gained, lost, n, -difference)
        return (gained - lost - n * difference) / math.sqrt(n * (2 * q - difference - difference**2))

    estimate = (gained - lost) / n
    interval = tango_interval(gained, lost, n)
    low = optimize.brentq(lambda d: score(d) - stats.norm.ppf(0.975), -0.999, estimate - 1e-6, xtol=1e-13)
    high = optimize.brentq(lambda d: score(d) + stats.norm.ppf(0.975), estimate + 1e-6, 0.999, xtol=1e-13)
    assert interval.low == pytest.approx(low, abs=1e-6)
    assert interval.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), PAIRS)
def test_tango_interval_mirrors_when_the_two_change_places(gained: int, lost: int, n: int) -> None:
    interval, mirrored = tango_interval(gained, lost, n), tango_interval(lost, gained, n)
    assert interval.low == pytest.approx(-mirrored.high, abs=1e-9)
    assert interval.high == pytest.approx(-mirrored.low, abs=1e-9)


def test_tango_interval_ends_at_one_when_everything_changed() -> None:
    assert tango_interval(5, 0, 5).high == 1.0
    assert tango_interval(0, 5, 5).low == -1.0


@pytest.mark.parametrize(
    ("gained", "lost", "n", "margin", "decision"),
    [
        (5, 9, 450, 0.03, "pass"),
        (0, 0, 450, 0.03, "pass"),
        (0, 0, 50, 0.01, "inconclusive"),
        (5, 12, 450, 0.01, "inconclusive"),
        (2, 14, 450, 0.03, "inconclusive"),
        (0, 40, 450, 0.03, "fail"),
        (10, 200, 10_000, 0.005, "fail"),
        (60, 0, 450, 0.01, "pass"),
    ],
)
def test_noninferiority_decisions(gained: int, lost: int, n: int, margin: float, decision: str) -> None:
    test = tango_noninferiority(gained, lost, n, margin)
    assert test.decision == decision
    assert test.difference == (gained - lost) / n
    assert test.p == pytest.approx(stats.norm.sf(test.z), rel=1e-9)
    assert (test.p < 0.05) == (decision == "pass")
    assert (test.high < -margin) == (decision == "fail")
    assert (test.needed_n is None) == (decision != "inconclusive")


def test_needed_n_is_the_closed_form_without_loss() -> None:
    test = tango_noninferiority(6, 6, 450, 0.01)
    assert test.decision == "inconclusive"
    assert test.needed_if == "if nothing is lost"
    assert test.needed_n == pytest.approx(8.6 * (12 / 450) / 0.01**2, rel=0.01)


def test_needed_n_without_discordant_pairs_is_the_least_that_passes() -> None:
    needed = tango_noninferiority(0, 0, 50, 0.01).needed_n
    assert needed is not None
    assert tango_noninferiority(0, 0, needed, 0.01).decision == "pass"
    assert tango_noninferiority(0, 0, needed - 2, 0.01).decision == "inconclusive"


def test_needed_n_exceeds_n_where_the_observed_loss_is_near_the_margin() -> None:
    test = tango_noninferiority(20, 110, 10_000, 0.01)
    assert test.decision == "inconclusive"
    assert test.needed_if == "at the observed loss"
    assert test.needed_n is not None
    assert test.needed_n > 10_000
    at_the_margin = tango_noninferiority(10, 110, 10_000, 0.01)
    assert at_the_margin.decision == "inconclusive"
    assert at_the_margin.needed_n is None


def test_noninferiority_errs_in_one_of_twenty_at_the_margin_and_passes_in_nine_of_ten_at_the_needed_n() -> None:
    chance = np.random.default_rng(0)
    n, margin, gained_share = 450, 0.03, 0.01
    at_margin = chance.multinomial(n, [gained_share, gained_share + margin, 1 - 2 * gained_share - margin], 2000)
    passes = np.mean([normal_sf(tango_score(int(b), int(c), n, margin)) < 0.05 for b, c, _ in at_margin])
    assert 0.02 < passes < 0.07
    needed = math.ceil(8.5638 * 0.04 / 0.01**2)
    no_loss = chance.multinomial(needed, [0.02, 0.02, 0.96], 1000)
    power = np.mean([normal_sf(tango_score(int(b), int(c), needed, 0.01)) < 0.05 for b, c, _ in no_loss])
    assert 0.86 < power < 0.95


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 10), (0, -1, 10), (6, 5, 10), (0, 0, 0)])
def test_tango_refuses_impossible_counts(gained: int, lost: int, n: int) -> None:
    for function in (tango_interval, lambda b, c, m: tango_noninferiority(b, c, m, 0.01)):
        with pytest.raises(ValueError, match=r"expected counts >= 0 with gained \+ lost <= n"):
            function(gained, lost, n)


@pytest.mark.parametrize("margin", [0.0, -0.01, 1.0, 3.0])
def test_noninferiority_refuses_a_margin_that_is_no_fraction(margin: float) -> None:
    with pytest.raises(ValueError, match="expected a margin within"):
        tango_noninferiority(1, 2, 100, margin)
    with pytest.raises(ValueError, match="expected a margin within"):
        tango_score(1, 2, 100, 1.5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 9), (3, 30), (700, 900)])
def test_mcnemar_equals_the_binomial_test_and_statsmodels(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)
    second: Any = mcnemar([[50, lost], [gained, 7]], exact=True)
    assert mcnemar_p(gained, lost) == pytest.approx(second.pvalue, rel=1e-6)


def test_mcnemar_reproduces_a_published_example() -> None:
    # contingencytables for R (Fagerland, Lydersen and Laake): the exact conditional test of the example above.
    assert mcnemar_p(6, 16) == pytest.approx(0.052479, abs=1e-6)


def test_mcnemar_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="expected counts >= 0"):
        mcnemar_p(-1, 2)


def test_ratio_interval_equals_the_t_test() -> None:
    logs = np.random.default_rng(1).normal(-0.2, 0.03, 20).tolist()
    expected = stats.ttest_1samp(logs, 0).confidence_interval()
    found = ratio_interval(logs)
    assert found.ratio == pytest.approx(math.exp(np.mean(logs)), rel=1e-12)
    assert found.low == pytest.approx(math.exp(expected.low), rel=1e-9)
    assert found.high == pytest.approx(math.exp(expected.high), rel=1e-9)
    assert found.blocks == 20
    assert found.sd_log == pytest.approx(np.std(logs, ddof=1), rel=1e-12)


def test_ratio_interval_of_equal_blocks_has_no_width() -> None:
    found = ratio_interval([math.log(0.5)] * 4)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("logs", "message"),
    [([], "at least 2"), ([0.1], "at least 2"), ([0.1, math.inf], "finite"), ([0, math.nan], "fin")],
)
def test_ratio_interval_refuses_what_has_no_interval(logs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_interval(logs)


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (0.9, 0.99, "pass"),
        (0.9, 1.0, "pass"),
        (0.99, 1.01, "inconclusive"),
        (1.0, 1.1, "inconclusive"),
        (1.01, 1.1, "fail"),
    ],
)
def test_ratio_decision(low: float, high: float, decision: str) -> None:
    assert ratio_decision(low, high, 1.0) == decision


def test_ratio_decision_is_the_one_sided_t_test_at_the_limit() -> None:
    chance = np.random.default_rng(2)
    for _ in range(50):
        logs = chance.normal(0.04, 0.02, 12).tolist()
        found = ratio_interval(logs)
        p = np.asarray(stats.ttest_1samp(logs, math.log(1.03), alternative="greater"))[1]
        assert (ratio_decision(found.low, found.high, 1.03) == "fail") == (p < 0.025)


def test_ratio_decision_raises_no_false_alarm_without_a_change() -> None:
    chance = np.random.default_rng(3)
    machine = chance.normal(0, 0.02, (300, 20, 1))  # noise that both variants of a block share
    logs = machine + chance.normal(0, 0.01, (300, 20, 2))
    differences = logs[..., 0] - logs[..., 1]
    decisions = []
    for row in differences:
        found = ratio_interval(row.tolist())
        decisions.append(ratio_decision(found.low, found.high, 1.03))
    assert "fail" not in decisions
    assert decisions.count("pass") > 290


@pytest.mark.parametrize(("low", "high", "limit"), [(1.1, 1.0, 1.0), (0.0, 1.0, 1.0), (0.9, 1.0, 0.0)])
def test_ratio_decision_refuses_what_is_no_interval(low: float, high: float, limit: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < low <= high and limit > 0"):
        ratio_decision(low, high, limit)


def test_needed_blocks() -> None:
    assert needed_blocks(math.log(1.02), 0.05, 1.0) == math.ceil((3.2415155 * 0.05 / math.log(1.02)) ** 2 + 1.9207)
    assert needed_blocks(0.0, 0.05, 1.0) is None
    assert needed_blocks(math.log(1.5), 0.0, 1.0) == 2


def test_needed_blocks_decide_nine_times_in_ten() -> None:
    chance = np.random.default_rng(3)
    for gap in (0.05, 0.03):  # in units of which the spread is .05: few blocks, and more
        count = needed_blocks(math.log(1.1) - gap, 0.05, 1.1)
        assert count is not None
        found = [
            ratio_interval((math.log(1.1) - gap + 0.05 * chance.standard_normal(count)).tolist()) for _ in range(500)
        ]
        decided = sum(ratio_decision(one.low, one.high, 1.1) == "pass" for one in found)
        assert 0.85 < decided / 500 < 0.97


@pytest.mark.parametrize(("share", "decision"), [(0.93, "pass"), (0.86, "fail")])
def test_needed_samples_decide_nine_times_in_ten(share: float, decision: str) -> None:
    chance = np.random.default_rng(4)
    count = needed_samples(round(100 * share), 100, 0.9)
    assert count is not None
    decided = sum(proportion_decision(int(chance.binomial(count, share)), count, 0.9) == decision for _ in range(500))
    assert 0.85 < decided / 500 < 0.97


def test_no_number_of_samples_decides_a_share_that_is_the_minimum() -> None:
    assert needed_samples(90, 100, 0.9) is None
    assert needed_samples(91, 100, 0.9) > 100  # type: ignore[operator]


@pytest.mark.parametrize(
    ("correct", "minimum", "decision"), [(990, 0.95, "pass"), (960, 0.95, "inconclusive"), (900, 0.95, "fail")]
)
def test_proportion_decision(correct: int, minimum: float, decision: str) -> None:
    assert proportion_decision(correct, 1000, minimum) == decision


def test_drift_equals_kendall_and_finds_the_slope() -> None:
    chance = np.random.default_rng(4)
    medians = np.exp(np.linspace(0, math.log(1.2), 20) + chance.normal(0, 0.005, 20)).tolist()
    found = drift(medians)
    assert found.p == pytest.approx(stats.kendalltau(range(20), medians)[1], rel=1e-9)
    assert found.change == pytest.approx(0.2, abs=0.02)
    assert found.unstable


def test_drift_needs_both_a_trend_and_a_size() -> None:
    chance = np.random.default_rng(5)
    small = (1 + np.linspace(0, 0.03, 20)).tolist()
    assert drift(small).p < 0.01
    assert not drift(small).unstable
    noisy = chance.normal(1.0, 0.1, 20).tolist()
    assert not drift(noisy).unstable
    assert drift([1.0] * 20) == statistics.Drift(0.0, 1.0, False)
    assert drift([1.0, 2.0]).p == 1.0


@pytest.mark.parametrize("medians", [[], [1.0, 0.0, 2.0]])
def test_drift_refuses_no_medians(medians: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least one block median"):
        drift(medians)


@pytest.mark.parametrize("percent", [0, 12.5, 50, 90, 99, 100])
def test_percentile_equals_numpy(percent: float) -> None:
    values = sorted(np.random.default_rng(6).random(37).tolist())
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)
    assert percentile([3.0], percent) == 3.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="expected data and 0 <= percent <= 100"):
        percentile(values, percent)
