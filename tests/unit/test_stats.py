"""Intervals against numbers worked out by hand, and against what they claim on simulated studies."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats import binom

from crewbench import metrics, stats


def test_a_geometric_mean_and_its_interval_by_hand():
    # logs 0, ln 2, 2 ln 2: mean ln 2, deviation ln 2; t(0.975, 2) = 4.30265; half = t · ln 2 / √3
    found = stats.geometric_mean([1.0, 2.0, 4.0])
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 * math.exp(-half), 2 * math.exp(half)))
    assert found.n == 3


def test_an_arithmetic_mean_and_its_interval_by_hand():
    # mean 2, deviation 1, t(0.975, 2) / √3 = 2.48414
    found = stats.arithmetic_mean([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_one_trial_has_a_value_but_no_interval_and_says_so():
    found = stats.geometric_mean([3.0])
    assert found.value == pytest.approx(3.0)
    assert not found.has_interval
    assert found.half_width_pct is None
    assert "one trial" in found.reason


def test_no_trial_is_not_estimable():
    found = stats.geometric_mean([])
    assert found.value is None
    assert found.reason


def test_a_value_that_is_not_positive_has_no_geometric_mean():
    assert stats.geometric_mean([1.0, 0.0]).value is None


def test_equal_trials_have_an_interval_of_no_width():
    found = stats.geometric_mean([2.0, 2.0, 2.0])
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_half_the_width_is_a_share_of_the_value():
    assert stats.Estimate(10.0, 9.0, 11.0, 3).half_width_pct == pytest.approx(10.0)


def test_pairing_removes_what_differs_between_repeats():
    baseline = {1: 10.0, 2: 20.0, 3: 40.0}
    measured = {1: 5.0, 2: 10.0, 3: 20.0}
    found = stats.paired(metrics.speedup, baseline, measured)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2.0, 2.0, 2.0, 3))


def test_only_repeats_that_both_have_are_paired():
    found = stats.paired(metrics.speedup, {1: 10.0, 2: 12.0}, {2: 3.0, 3: 1.0})
    assert (found.value, found.n) == (pytest.approx(4.0), 1)
    assert not found.has_interval


def test_without_a_common_repeat_nothing_is_compared():
    found = stats.paired(metrics.speedup, {("a", 1): 10.0}, {("b", 1): 5.0})
    assert found.value is None
    assert "no repeat in common" in found.reason


def test_a_ratio_of_means_and_fiellers_interval_by_hand():
    # x 9, 10, 11: mean 10, s_xx 1; y 2, 1.9, 2.1: mean 2, s_yy 0.01, s_xy 0.05; t²/n = 6.170938.
    # A = 4 - 0.0617094, B = 20 - 0.3085469, C = 100 - 6.170938: roots (19.6914531 ± √18.22...) / 3.9382906.
    found = stats.ratio_of_means({1: 9.0, 2: 10.0, 3: 11.0}, {1: 2.0, 2: 1.9, 3: 2.1})
    a, b, c = 4 - 0.06170938, 20 - 0.3085469, 100 - 6.170938
    half = math.sqrt(b * b - a * c)
    assert found.value == 5.0
    assert (found.low, found.high) == pytest.approx(((b - half) / a, (b + half) / a), rel=1e-6)


def test_a_ratio_of_means_in_proportion_has_an_interval_of_no_width():
    found = stats.ratio_of_means({1: 10.0, 2: 11.0, 3: 12.0}, {1: 2.0, 2: 2.2, 3: 2.4})
    assert (found.value, found.low, found.high, found.n) == pytest.approx((5.0, 5.0, 5.0, 3))


def test_a_ratio_over_what_may_be_zero_has_no_interval_and_says_so():
    found = stats.ratio_of_means({1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: -0.9, 3: 0.5})
    assert not found.has_interval
    assert "includes 0" in found.reason
    assert stats.ratio_of_means({1: 1.0}, {1: 0.0}).value is None
    assert stats.ratio_of_means({1: 1.0}, {2: 1.0}).reason == "no repeat in common on one host"
    assert stats.ratio_of_means({1: 6.0}, {1: 2.0}) == stats.Estimate(
        3.0, None, None, 1, "one trial has no interval"
    )


@pytest.mark.parametrize("n", [3, 5, 9])
def test_fiellers_interval_covers_the_truth_as_often_as_it_claims(n):
    draw = random.Random(n)
    studies = covered = 0
    while studies < 1000:
        x = {i: draw.gauss(60, 6) for i in range(n)}
        found = stats.ratio_of_means(x, {i: draw.gauss(1.5, 0.1) + 0.01 * (x[i] - 60) for i in x})
        studies += 1
        covered += not found.has_interval or found.low <= 40 <= found.high
    low, high = binom.interval(0.99, studies, stats.CONFIDENCE)
    assert low <= covered <= high


@pytest.mark.parametrize(("share", "needed"), [(0.5, 7), (0.9, 44), (0.99, 459)])
def test_a_percentile_needs_enough_trials(share, needed):
    assert stats.percentile_minimum(share) == needed
    assert stats.percentile(range(needed - 1), share).value is None
    assert str(needed) in stats.percentile(range(needed - 1), share).reason
    assert stats.percentile(range(needed), share).value is not None


def test_a_percentile_is_a_value_that_was_seen():
    assert stats.percentile([float(i) for i in range(1, 101)], 0.9).value == 90.0


def test_a_share_outside_zero_and_one_is_no_percentile():
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.percentile_minimum(1.0)


def test_differences_are_taken_within_a_block_that_both_have():
    assert stats.differences({1: 5.0, 2: 7.0, 3: 9.0}, {2: 3.0, 3: 10.0, 4: 1.0}) == {2: 4.0, 3: -1.0}


# Intervals by n -----------------------------------------------------------------------------------

STUDIES = 1000


def within(found: int, share: float, studies: int = STUDIES) -> bool:
    """Whether `found` of the studies is what `share` claims, by the 99 % interval of the binomial."""
    low, high = binom.interval(0.99, studies, share)
    return low <= found <= high


def normal(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Logarithms of times that vary by 5 %."""
    return 0.05 * draw.standard_normal(shape)


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The same with a long tail of slow trials, mean 0."""
    return 0.035 * (draw.gamma(2.0, size=shape) - 2.0)


def covered(found: stats.Means, truth: float = 0.0) -> int:
    return int(((found.low <= truth) & (truth <= found.high)).sum())


@pytest.mark.parametrize(("n", "times"), [(2, normal), (5, normal), (9, normal), (10, normal), (20, normal),
                                          (10, skewed)])  # fmt: skip
def test_intervals_cover_the_truth_as_often_as_they_claim(n, times):
    found = stats.of_mean(times(np.random.default_rng(n), (STUDIES, n)))
    assert within(covered(found), stats.CONFIDENCE)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_scipys_bootstraps_do_not_cover_what_they_claim_at_ten_repeats(method):
    """Why the studentised one is taken: the day these cover too, it may go."""
    studies = normal(np.random.default_rng(10), (STUDIES, 10))
    found = scipy_stats.bootstrap(
        (studies,), np.mean, axis=1, method=method, n_resamples=999, vectorized=True,
        rng=np.random.default_rng(0), batch=100,
    ).confidence_interval  # fmt: skip
    assert ((found.low <= 0) & (found.high >= 0)).sum() < binom.ppf(0.005, STUDIES, stats.CONFIDENCE)


@pytest.mark.parametrize("n", [5, 10])
def test_an_interval_of_a_thousand_studies_is_that_of_each_alone(n):
    studies = normal(np.random.default_rng(n), (7, n))
    together = stats.of_mean(studies)
    for i, study in enumerate(studies):
        alone = stats.geometric_mean(np.exp(study))
        assert (alone.low, alone.high) == pytest.approx((np.exp(together.low[i]), np.exp(together.high[i])))


def test_from_ten_repeats_on_the_interval_is_drawn_from_the_trials_and_always_the_same():
    nine, ten = ([1.0, 1.1, 1.2, 1.05, 3.0, 1.15, 1.02, 1.08, 1.12, 1.01][:n] for n in (9, 10))
    logs = np.log(ten)
    by_t = scipy_stats.t.ppf(0.975, 9) * logs.std(ddof=1) / math.sqrt(10)
    found = stats.geometric_mean(ten)
    assert math.log(found.high / found.low) / 2 > 1.1 * by_t, "one slow trial of ten: t would be too narrow"
    assert stats.geometric_mean(ten) == found
    assert math.log(stats.geometric_mean(nine).high / stats.geometric_mean(nine).value) == pytest.approx(
        scipy_stats.t.ppf(0.975, 8) * np.log(nine).std(ddof=1) / 3
    )


def test_ten_equal_trials_and_nine_equal_ones_with_another_have_bounded_intervals():
    assert stats.arithmetic_mean([4.0] * 10) == stats.Estimate(4.0, 4.0, 4.0, 10)
    found = stats.arithmetic_mean([4.0] * 9 + [5.0])  # a third of all draws has no spread
    half = scipy_stats.t.ppf(0.975, 9) * 0.1
    assert (found.low, found.high) == pytest.approx((4.1 - half, 4.1 + half))


@pytest.mark.parametrize("n", [5, 12])
def test_an_interval_leaves_one_out_where_its_p_says_so(n):
    found = stats.of_mean(normal(np.random.default_rng(1), (STUDIES, n)) + 0.03)
    outside = (found.low > 0) | (found.high < 0)
    assert 50 < outside.sum() < STUDIES - 50
    assert (outside == (found.p <= stats.ALPHA)).mean() > 0.999


# Comparing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "times"), [(5, normal), (10, normal), (10, skewed)])
def test_two_equal_modes_are_told_apart_as_rarely_as_claimed(n, times):
    draw = np.random.default_rng(100 + n)
    found = stats.of_mean(times(draw, (STUDIES, n)) - times(draw, (STUDIES, n)))
    alarms = int((found.p <= stats.ALPHA).sum())
    assert alarms <= binom.ppf(0.995, STUDIES, stats.ALPHA)


def families(n: int, slower: float = 1.0, modes: int = 4) -> np.ndarray:
    """Corrected p of every pair of modes, (studies, pairs); first those with the first mode, `slower`."""
    logs = normal(np.random.default_rng(n), (STUDIES, modes, n))
    logs += 0.2 * np.random.default_rng(1).standard_normal((STUDIES, 1, n))  # what a repeat has in common
    logs[:, 0] += math.log(slower)
    pairs = [(i, j) for i in range(modes) for j in range(i + 1, modes)]
    return stats.holm(np.stack([stats.of_mean(logs[:, i] - logs[:, j]).p for i, j in pairs], axis=-1))


@pytest.mark.parametrize(("n", "modes"), [(5, 4), (10, 3)])
def test_among_equal_modes_hardly_any_study_has_a_false_alarm(n, modes):
    assert (families(n, modes=modes) <= stats.ALPHA).any(axis=1).sum() <= binom.ppf(0.995, STUDIES, 0.05)


def test_without_the_correction_too_many_studies_would():
    logs = normal(np.random.default_rng(5), (STUDIES, 4, 5))
    pairs = [stats.of_mean(logs[:, i] - logs[:, j]).p for i in range(4) for j in range(i + 1, 4)]
    assert (np.stack(pairs) <= stats.ALPHA).any(axis=0).sum() > binom.ppf(0.995, STUDIES, 0.05)


def test_a_difference_of_a_fifth_is_found_at_five_repeats():
    draw = np.random.default_rng(3)
    slow, fast = normal(draw, (STUDIES, 5)) + math.log(1.2), normal(draw, (STUDIES, 5))
    assert (stats.of_mean(slow - fast).p <= stats.ALPHA).mean() >= 0.8
    assert (stats.welch(slow, fast).p <= stats.ALPHA).mean() >= 0.8


def test_a_mode_slower_by_a_fifth_is_found_among_four_corrected_for_six_pairs():
    assert (families(5, slower=1.2)[:, :3] <= stats.ALPHA).any(axis=1).mean() >= 0.8


@pytest.mark.parametrize(("sizes", "spreads"), [((5, 5), (1, 1)), ((5, 9), (1, 2)), ((20, 6), (2, 1))])
def test_an_unpaired_interval_covers_the_truth_whatever_sizes_and_spreads(sizes, spreads):
    draw = np.random.default_rng(sum(sizes))
    sides = [s * normal(draw, (STUDIES, n)) for n, s in zip(sizes, spreads, strict=True)]
    found = stats.welch(*sides)
    assert within(covered(found), stats.CONFIDENCE)
    assert within(int((found.p <= stats.ALPHA).sum()), 0.05)


def test_welchs_interval_and_p_are_scipys():
    a, b = [2.0, 2.1, 1.9, 2.2, 2.05], [1.5, 1.9, 1.6, 1.4, 1.8, 1.7]
    expected = scipy_stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    found = stats.compare_unpaired(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert np.log([found.ratio.low, found.ratio.high]) == pytest.approx([interval.low, interval.high])


def test_a_paired_p_is_scipys_and_under_five_repeats_there_is_none():
    a = {r: v for r, v in enumerate([2.0, 2.3, 1.9, 2.2, 2.05])}
    b = {r: v for r, v in enumerate([1.9, 2.1, 1.95, 2.0, 2.0])}
    found = stats.compare_paired(a, b)
    expected = scipy_stats.ttest_rel(np.log(list(a.values())), np.log(list(b.values())))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.ratio.n == 5
    few = stats.compare_paired({r: a[r] for r in range(4)}, b)
    assert few.p is None and few.ratio.has_interval
    assert stats.significant(few.p) == stats.TOO_FEW


def test_comparing_nothing_or_what_has_no_logarithm_says_why():
    nothing, ones = dict.fromkeys(range(5), 0.0), dict.fromkeys(range(5), 1.0)
    assert stats.compare_paired({1: 1.0}, {2: 1.0}).ratio.reason == "no repeat in common on one host"
    assert stats.compare_unpaired([], [1.0]).ratio.reason == "no trial to estimate from"
    alone = stats.Estimate(2.0, None, None, 1, "one trial has no interval")
    assert stats.compare_unpaired([2.0], [1.0]).ratio == alone
    assert "logarithm" in stats.compare_unpaired([0.0] * 5, [1.0] * 5).ratio.reason
    assert "logarithm" in stats.compare_paired(nothing, ones).ratio.reason


def test_holms_correction_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.8 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (not under the one before), 0.8
    assert stats.holm([0.02, 0.8, 0.01, 0.03]) == pytest.approx([0.06, 0.8, 0.04, 0.06])
    assert stats.holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])


def test_a_comparison_without_a_p_is_not_of_the_family():
    ratio = stats.Estimate(1.0, None, None, 3)
    family = [stats.Comparison(ratio, p) for p in (0.01, None, 0.04)]
    assert stats.corrected(family) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert stats.corrected([stats.Comparison(ratio, None)]) == [None]
    assert [stats.significant(p) for p in (0.02, None, 0.051)] == ["yes", "too few repeats", "no"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_correction_keeps_the_order_and_is_between_none_and_bonferronis(ps):
    corrected = stats.holm(ps)
    assert all(p <= c <= min(1, p * len(ps)) for p, c in zip(ps, corrected, strict=True))
    assert list(corrected[np.argsort(ps, kind="stable")]) == sorted(corrected)


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=14), st.data())
def test_who_is_compared_with_whom_turns_the_ratio_and_leaves_its_p(values, data):
    others = data.draw(st.lists(st.floats(0.01, 100), min_size=len(values), max_size=len(values)))
    ours, theirs = dict(enumerate(values)), dict(enumerate(others))
    for one, other in (
        (stats.compare_paired(ours, theirs), stats.compare_paired(theirs, ours)),
        (stats.compare_unpaired(values, others), stats.compare_unpaired(others, values)),
    ):
        assert one.ratio.value == pytest.approx(1 / other.ratio.value)
        assert one.ratio.low == pytest.approx(1 / other.ratio.high, rel=1e-6)
        assert one.p == pytest.approx(other.p, abs=1e-6)
        assert one.ratio.low <= one.ratio.value * (1 + 1e-9) and one.ratio.value <= one.ratio.high * (
            1 + 1e-9
        )


# How many repeats ---------------------------------------------------------------------------------


def test_the_repeats_that_an_interval_needs_by_hand():
    # t(0.975, 4) / √5 = 1.2417, halved 0.6208; t(11) / √12 = 0.6354, t(12) / √13 = 0.6043
    assert stats.repeats_needed(10.0, 5, 5.0) == 13
    assert stats.repeats_needed(4.0, 5, 5.0) == 5
    assert stats.repeats_needed(1e9, 3, 5.0, most=40) == 40


def test_stopping_when_the_interval_is_narrow_costs_little_of_its_coverage():
    """The rule of scripts/study.py: from 5 repeats on, until the half-width is 5 % or there are 20."""
    logs = 1.6 * normal(np.random.default_rng(8), (STUDIES, 20))
    going, hits = np.arange(STUDIES), 0
    for n in (5, 6, 7, 8, 9, 12, 20):
        found = stats.of_mean(logs[going, :n])
        stop = (np.exp(found.high - found.value) - np.exp(found.low - found.value) <= 0.1) | (n == 20)
        hits += int(((found.low <= 0) & (found.high >= 0))[stop].sum())
        going = going[~stop]
    assert hits / STUDIES >= 0.9
