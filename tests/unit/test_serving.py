"""What servers say of themselves, against numbers worked out by hand."""

import pytest

from crewbench import serving
from crewbench.records import RoundRow, ServerRow, WorkerRow

ROUNDS = [
    RoundRow(0, "cold", 1, 1, 0.0, 8.0, 8.0),
    RoundRow(1, "warm", 1, 1, 8.0, 10.0, 2.0),
]
SERVER = [WorkerRow("server0", 0, 1, "server")]


def reading(t: float, **values) -> ServerRow:
    return ServerRow(t, "server0", 0, 1, **values)


def test_gauges_have_a_mean_over_time_and_a_peak_until_the_last_round_ends():
    readings = [
        reading(2.0, running=0.0, kv_used_share=0.0),
        reading(4.0, running=2.0, kv_used_share=0.1),
        reading(10.0, running=2.0, kv_used_share=0.1),
        reading(11.0, running=8.0, kv_used_share=0.9),  # a replay
    ]
    (row,) = serving.of_trial(ROUNDS, SERVER, readings)
    # (2 · 1 + 6 · 2) / 8
    assert (row["running_mean"], row["running_peak"]) == (pytest.approx(1.75), 2.0)
    assert row["kv_used_share_peak"] == 0.1
    assert (row["waiting_mean"], row["waiting_peak"], row["readings"]) == (None, None, 3)


def test_counters_are_what_they_had_reached_when_the_last_round_ended():
    readings = [
        reading(9.0, preemptions=1.0, prefix_queries=100.0, prefix_hits=40.0),
        reading(11.0, preemptions=1.0, prefix_queries=300.0, prefix_hits=160.0),
    ]
    (row,) = serving.of_trial(ROUNDS, SERVER, readings)
    assert (row["preemptions"], row["prefix_queries"], row["prefix_hits"]) == (1.0, 200.0, 100.0)
    assert row["prefix_hit_pct"] == 50.0


def test_a_counter_before_and_after_all_readings_is_the_nearest():
    seen = [(2.0, 10.0), (4.0, 30.0)]
    assert [serving.at(t, seen) for t in (1.0, 2.0, 3.0, 4.0, 9.0)] == [10.0, 10.0, 20.0, 30.0, 30.0]
    assert serving.at(1.0, []) is None


def test_without_a_query_there_is_no_share_of_hits():
    (row,) = serving.of_trial(ROUNDS, SERVER, [reading(3.0, prefix_queries=0.0, prefix_hits=0.0)])
    assert row["prefix_hit_pct"] is None


def test_a_server_that_gives_no_metrics_says_so():
    (row,) = serving.of_trial(ROUNDS, SERVER, [])
    assert row["note"] == "not measured: the server gives no metrics"
    assert row["preemptions"] is None


def test_each_server_has_a_row_and_other_workers_have_none():
    workers = [*SERVER, WorkerRow("server1", 0, 1, "server"), WorkerRow("worker", 0, 1, "process")]
    assert [row["worker"] for row in serving.of_trial(ROUNDS, workers, [])] == ["server0", "server1"]
    assert serving.of_trial(ROUNDS, workers[2:], []) == []


def test_a_row_has_the_tables_columns():
    (row,) = serving.of_trial(ROUNDS, SERVER, [reading(3.0)])
    assert set(row) == set(serving.COLUMNS)
