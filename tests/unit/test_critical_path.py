"""The stages of a round's makespan, on rounds small enough to work out by hand."""

import pytest

from crewbench.execute.critical_path import Piece, stages
from crewbench.records import STAGES


def test_a_worker_and_its_step_explain_a_round():
    pieces = [
        Piece("worker", 0.0, 3.0, {"spawn": 1.0, "load": 2.0}),
        Piece("step", 3.0, 7.0, {"prefill": 1.0, "decode": 2.5, "framework": 0.5}, ("worker",)),
    ]
    assert stages(pieces, 0.0, 7.0) == {
        **dict.fromkeys(STAGES, 0.0),
        "spawn": 1.0,
        "load": 2.0,
        "prefill": 1.0,
        "decode": 2.5,
        "framework": 0.5,
    }


def test_only_the_slower_of_two_branches_counts():
    pieces = [
        Piece("fast", 0.0, 1.0, {"decode": 1.0}),
        Piece("slow", 0.0, 4.0, {"decode": 4.0}),
        Piece("summary", 4.0, 5.0, {"prefill": 1.0}, ("fast", "slow")),
    ]
    assert stages(pieces, 0.0, 5.0)["decode"] == 4.0


def test_what_no_stage_explains_is_idle():
    pieces = [
        Piece("worker", 0.0, 3.0, {"load": 2.0}),
        Piece("step", 3.5, 5.0, {"decode": 1.5}, ("worker",)),
    ]
    parts = stages(pieces, 0.0, 5.25)
    assert parts["idle"] == pytest.approx(1.0 + 0.5 + 0.25)
    assert sum(parts.values()) == pytest.approx(5.25)


def test_stages_never_claim_more_than_their_piece_lasted():
    parts = stages([Piece("step", 0.0, 1.0, {"prefill": 1.0, "decode": 1.0})], 0.0, 1.0)
    assert sum(parts.values()) == pytest.approx(1.0)
    assert parts["prefill"] == pytest.approx(0.5)


def test_a_piece_does_not_wait_for_one_that_ended_after_it_began():
    pieces = [
        Piece("other", 0.0, 2.0, {"decode": 2.0}),
        Piece("step", 1.0, 3.0, {"prefill": 2.0}, ("other",)),
    ]
    parts = stages(pieces, 0.0, 3.0)
    assert parts["decode"] == 0.0
    assert parts["idle"] == pytest.approx(1.0)


def test_a_round_without_pieces_is_idle():
    assert stages([], 1.0, 2.0) == {**dict.fromkeys(STAGES, 0.0), "idle": 1.0}


def test_a_step_that_waits_for_its_turn_is_queued_not_idle():
    pieces = [
        Piece("worker", 0.0, 1.0, {"load": 1.0}),
        Piece("step", 1.5, 2.0, {"decode": 0.5}, ("worker",), wait="queue"),
    ]
    parts = stages(pieces, 0.0, 2.0)
    assert parts["queue"] == pytest.approx(0.5)
    assert parts["idle"] == 0.0


def test_a_warm_step_that_starts_late_is_queued_from_the_rounds_start():
    assert stages([Piece("step", 0.25, 1.0, {"decode": 0.75}, wait="queue")], 0.0, 1.0)["queue"] == 0.25


def test_what_ended_after_the_round_held_nothing_up():
    pieces = [
        Piece("step", 0.0, 2.0, {"decode": 2.0}),
        Piece("other worker", 0.0, 9.0, {"load": 9.0}),
    ]
    parts = stages(pieces, 0.0, 2.0)
    assert parts["decode"] == 2.0 and sum(parts.values()) == 2.0


def test_pieces_shorter_than_a_clocks_read_do_not_wait_for_each_other_for_ever():
    pieces = [
        Piece("a", 1.0, 1.00005, {}, ("b",)),
        Piece("b", 1.0, 1.00005, {}, ("a",)),
    ]
    assert sum(stages(pieces, 0.0, 1.00005).values()) == pytest.approx(1.00005, abs=2e-4)
