"""Trials' wall time against its lower bound, by hand."""

import pytest

from crewbench.session import GAP_S, Ran, bound_s, ran, sessions, summarise


def trial(cell, repeat, start, end, *, gpus=1, host="box", exclusive=True, waited=0.0):
    return Ran(f"{cell}__r{repeat}", cell, host, gpus, exclusive, float(start), float(end), waited)


def only(trials, planned=None, host_gpus=4):
    planned = planned or [t.trial_id for t in trials]
    (found,) = summarise(trials, planned, host_gpus)
    return found


def test_the_bound_of_exclusive_trials_is_their_sum_and_waiting_for_others_is_nobodys_work():
    found = only([trial("a", 1, 0, 10), trial("b", 1, 12, 20), trial("a", 2, 20, 31, waited=1.0)])
    assert found.wall_s == 31
    assert found.bound_s == found.trials_s == 10 + 8 + 10
    assert found.wall_over_bound == pytest.approx(31 / 28)
    assert found.lease_waited_s == 1
    assert found.exclusive


def test_the_bound_of_packed_trials_is_the_area_of_the_host_or_the_longest_one():
    wide = [
        trial("a", 1, 0, 10, gpus=2, exclusive=False),
        trial("b", 1, 0, 10, gpus=2, exclusive=False),
        trial("c", 1, 10, 14, gpus=4, exclusive=False),
    ]
    assert only(wide).bound_s == 14 and only(wide).wall_over_bound == 1
    long = [trial("a", 1, 0, 30, exclusive=False), trial("b", 1, 0, 4, exclusive=False)]
    assert only(long).bound_s == 30
    assert only(long).trials_s == 34


def test_an_exclusive_trial_among_packed_ones_takes_the_whole_host():
    assert bound_s([(1.0, 10.0), (0.25, 8.0)]) == 12


def test_a_pause_longer_than_the_gap_begins_a_new_session_and_a_shorter_one_does_not():
    trials = [trial("a", 1, 0, 10), trial("a", 2, 10 + GAP_S, 80), trial("a", 3, 81 + GAP_S, 150)]
    assert [len(s) for s in sessions(reversed(trials))] == [2, 1]
    found = summarise(trials, [t.trial_id for t in trials], 1)
    assert [(s.session, s.trials, s.wall_s) for s in found] == [(1, 2, 80), (2, 1, 9)]


def test_a_long_trial_beside_short_ones_is_no_pause():
    packed = [
        trial("long", 1, 0, 500, exclusive=False),
        trial("short", 1, 0, 10, exclusive=False),
        trial("short", 2, 400, 410, exclusive=False),
    ]
    assert len(sessions(packed)) == 1


def test_hosts_have_sessions_of_their_own():
    found = summarise([trial("a", 1, 0, 10), trial("a", 2, 5, 20, host="other")], ["a__r1", "a__r2"], None)
    assert [(s.host, s.trials, s.wall_over_bound) for s in found] == [("box", 1, 1), ("other", 1, 1)]


def test_trials_that_started_at_another_place_than_planned_are_counted():
    trials = [trial("a", 1, 0, 10), trial("b", 1, 10, 20), trial("c", 1, 20, 30)]
    assert only(trials, ["a__r1", "x__r1", "b__r1", "c__r1"]).out_of_order == 0
    assert only(trials, ["b__r1", "a__r1", "c__r1"]).out_of_order == 2


def test_achieved_repeats_are_those_of_the_cells_with_fewest_and_most():
    found = only([trial("a", 1, 0, 1), trial("a", 2, 1, 2), trial("a", 3, 2, 3), trial("b", 1, 3, 4)])
    assert (found.cells, found.repeats_min, found.repeats_max) == (2, 1, 3)


def test_a_record_says_when_its_trial_ran_or_gives_nothing():
    record = {
        "identity": {"trial_id": "a__r2", "repeat": 2, "host": "box", "gpus": 2},
        "spec": {"exclusive": False},
        "anchor": {"zero_wall_s": 100.0},
        "finished_wall_s": 130.0,
        "lease_waited_s": 4.0,
    }
    assert ran(record) == Ran("a__r2", "a", "box", 2, False, 100.0, 130.0, 4.0)
    assert ran(record).duration_s == 26
    assert ran({**record, "anchor": {}}) is None
    assert ran({"trial_id": "a__r2"}) is None
