"""Every metric against numbers worked out by hand."""

import inspect

import pytest

from crewbench import metrics


def test_a_makespan_runs_from_the_first_start_to_the_last_end():
    assert metrics.makespan_s([(2.0, 5.0), (1.0, 3.0), (4.0, 4.5)]) == 4.0


def test_without_spans_there_is_no_makespan():
    assert metrics.makespan_s([]) is None


def test_busy_time_counts_overlapping_spans_once():
    # [0, 3] and [2, 4] make 4 s, [6, 7] another; [2.5, 2.7] lies inside.
    assert metrics.busy_s([(2.0, 4.0), (0.0, 3.0), (6.0, 7.0), (2.5, 2.7)]) == pytest.approx(5.0)


def test_overlap_is_one_for_work_in_turn_and_the_number_of_agents_for_work_at_once():
    assert metrics.overlap([(0.0, 1.0), (1.0, 2.0), (5.0, 6.0)]) == 1.0
    assert metrics.overlap([(0.0, 2.0)] * 8) == 8.0
    assert metrics.overlap([(0.0, 2.0), (1.0, 3.0)]) == pytest.approx(4 / 3)
    assert metrics.overlap([]) is None


def test_the_first_token_of_each_call_is_not_decoded():
    assert metrics.decode_tokens_per_s(33, 1, 4.0) == 8.0
    assert metrics.decode_tokens_per_s(66, 2, 4.0) == 16.0


def test_one_token_has_no_decode_rate():
    assert metrics.decode_tokens_per_s(1, 1, 0.0) is None
    assert metrics.decode_tokens_per_s(1, 1, 0.5) is None


def test_decoding_is_bounded_by_how_fast_the_weights_can_be_read():
    # 4.3 TB/s over 14.5 GB of weights: 296.55 tokens/s.
    assert metrics.decode_limit_tokens_per_s(4300.0, 14_500_000_000) == pytest.approx(296.5517)
    assert metrics.decode_limit_tokens_per_s(4300.0, 0) is None
    assert metrics.decode_limit_tokens_per_s(0.0, 100) is None


def test_the_share_of_the_bandwidth_limit_is_the_rate_over_it():
    assert metrics.bandwidth_share(135.0, 300.0) == 0.45
    assert metrics.bandwidth_share(135.0, 0.0) is None


def test_crew_throughput_is_tokens_over_the_makespan():
    assert metrics.crew_tokens_per_s(256, 8.0) == 32.0
    assert metrics.crew_tokens_per_s(256, 0.0) is None


def test_a_speedup_over_one_is_faster_than_the_baseline():
    assert metrics.speedup(12.0, 3.0) == 4.0
    assert metrics.speedup(12.0, 0.0) is None


def test_scaling_efficiency_is_one_when_twice_the_gpus_halve_the_time():
    assert metrics.scaling_efficiency(1, 8.0, 4, 2.0) == 1.0
    assert metrics.scaling_efficiency(2, 8.0, 4, 8.0) == 0.5
    assert metrics.scaling_efficiency(1, 8.0, 4, 0.0) is None


def test_gpu_seconds_charge_every_attempt():
    assert metrics.gpu_seconds([(1, 2.0), (2, 3.0), (3, 10.0)]) == 38.0


def test_joules_per_token_and_shares():
    assert metrics.joules_per_token(512.0, 256) == 2.0
    assert metrics.joules_per_token(512.0, 0) is None
    assert metrics.share_pct(0.5, 20.0) == 2.5
    assert metrics.share_pct(0.5, 0.0) is None


def test_a_median_leaves_out_what_was_not_measured():
    assert metrics.median([3.0, None, 1.0, 2.0]) == 2.0
    assert metrics.median([4.0, 1.0, float("nan")]) == 2.5
    assert metrics.median([None]) is None


def test_a_mean_over_time_weighs_a_late_sample_by_what_it_covers():
    # 10 over [0, 1], a straight rise to 30 over [1, 5]: (10 + 4 · 20) / 5.
    assert metrics.time_mean([0.0, 1.0, 5.0], [10.0, 10.0, 30.0]) == pytest.approx(18.0)
    assert metrics.time_mean([2.0], [7.0]) == 7.0
    assert metrics.time_mean([], []) is None


def test_every_metric_function_gives_its_formula_or_unit():
    functions = [f for _, f in inspect.getmembers(metrics, inspect.isfunction)]
    assert all(f.__doc__ for f in functions if f.__module__ == metrics.__name__)


def test_every_metric_of_the_tables_has_a_unit_and_a_meaning():
    assert all(m.unit and m.meaning.endswith(".") for m in metrics.METRICS.values())
