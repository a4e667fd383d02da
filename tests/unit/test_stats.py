"""Intervals against numbers worked out by hand, and against what they claim on simulated studies."""

import math
import random

import pytest
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


@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_cover_the_truth_as_often_as_they_claim(n):
    draw = random.Random(n)
    studies = 1000
    covered = 0
    for _ in range(studies):
        found = stats.geometric_mean([draw.lognormvariate(1.0, 0.2) for _ in range(n)])
        covered += found.low <= math.e <= found.high
    low, high = binom.interval(0.99, studies, stats.CONFIDENCE)
    assert low <= covered <= high


def test_differences_are_taken_within_a_block_that_both_have():
    assert stats.differences({1: 5.0, 2: 7.0, 3: 9.0}, {2: 3.0, 3: 10.0, 4: 1.0}) == {2: 4.0, 3: -1.0}
