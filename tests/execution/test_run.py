"""What becomes of workers that die, stall or contradict themselves: rows, never a hang or a crash."""

import json

import pytest

import spoken
from crewbench.execute import run
from spoken import Trial, alone, pair


def statuses(records):
    return [(a.round, a.step, str(a.status)) for a in records.agents]


def test_a_round_waits_for_a_worker_that_still_loads_when_all_its_steps_are_settled():
    def worker(name, life, attempt, trial):
        return [spoken.dies] if name == "worker0" else [spoken.loads_late, trial.pids[0]]

    records = Trial(worker).run(pair(leads=True))
    assert statuses(records) == [
        (0, "step0", "error"),
        (0, "step1", "skipped"),
        (1, "step0", "skipped"),
        (1, "step1", "skipped"),
    ]
    assert [(w.worker, str(w.status)) for w in records.workers] == [("worker0", "error"), ("worker1", "ok")]


def test_a_worker_killed_in_the_middle_of_a_message_is_a_row():
    records = Trial(lambda *_: [spoken.is_killed_in_a_message], warm_rounds=0).run(alone())
    assert statuses(records) == [(0, "step0", "error")]
    assert "SIGKILL while it was at stage 'import'" in records.agents[0].error


def test_a_worker_that_closes_its_connection_and_lives_on_is_ended(monkeypatch):
    monkeypatch.setattr(run, "GRACE_S", 0.1)
    records = Trial(lambda *_: [spoken.closes_its_end]).run(alone())
    assert statuses(records) == [(0, "step0", "error"), (1, "step0", "skipped")]
    assert "closed its connection" in records.agents[0].error


def test_a_worker_that_never_speaks_is_a_timeout_and_its_time_counts_as_spawning(monkeypatch):
    monkeypatch.setattr(run, "GRACE_S", 0.1)
    records = Trial(lambda *_: [spoken.never_speaks], warm_rounds=0, load_timeout_s=0.1).run(alone())
    assert statuses(records) == [(0, "step0", "timeout")]
    assert "overran loading" in records.agents[0].error
    assert records.rounds[0].spawn_s >= 0.2


def test_an_attempt_whose_workers_are_all_gone_already_is_cancelled_like_any_other():
    def worker(name, life, attempt, trial):
        trial.all_gone_before = attempt == 1
        return [spoken.fails_loading] if attempt == 1 else [spoken.works]

    records = Trial(worker).run(pair(), pair())
    assert [(r.attempt, r.round, str(r.status)) for r in records.rounds] == [
        (1, 0, "oom"),
        (2, 0, "ok"),
        (2, 1, "ok"),
    ]


def test_an_out_of_memory_in_a_warm_round_starts_the_next_attempt_too():
    def worker(name, life, attempt, trial):
        return [spoken.works, 1 if attempt == 1 else None]

    records = Trial(worker, warm_rounds=2).run(pair(), pair())
    assert [(r.attempt, r.round, str(r.status)) for r in records.rounds] == [
        (1, 0, "ok"),
        (1, 1, "oom"),
        (2, 0, "ok"),
        (2, 1, "ok"),
        (2, 2, "ok"),
    ]
    first, *more = records.ooms
    assert (first.attempt, first.round, first.phase, first.worker_life) == (1, 1, "warm", 0)
    assert first.step in ("step0", "step1") and first.worker == first.step.replace("step", "worker")
    assert (first.oom_phase, first.requested_mib, first.free_mib) == ("decode", 2.0, None)
    assert first.held_by == f"{first.worker}: 40.0 MiB; process 1: unknown"
    assert json.loads(first.holders) == {str(first.pid): 40.0, "1": None}
    assert {(r.attempt, r.round) for r in more} <= {(1, 1)}


def test_every_worker_that_has_no_room_to_load_is_a_row_without_a_step():
    records = Trial(lambda *_: [spoken.fails_loading], warm_rounds=0).run(pair())
    assert [(r.worker, r.step, r.oom_phase) for r in sorted(records.ooms, key=lambda r: r.worker)] == [
        ("worker0", "", "load"),
        ("worker1", "", "load"),
    ]
    assert {(r.device_uuid, r.requested_mib, r.free_mib, r.simulated) for r in records.ooms} == {
        ("slot-0", 30.0, 8.0, True)
    }
    assert {r.pid for r in records.ooms} == {w.pid for w in records.workers}


@pytest.mark.parametrize("failing", [0, 1])
def test_the_loading_of_a_worker_that_failed_counts_as_loading_not_as_the_next_ones_spawning(failing):
    def worker(name, life, attempt, trial):
        return [spoken.fails_loading, 0.4] if life == failing else [spoken.works]

    records = Trial(worker, warm_rounds=0).run(alone("step", steps=3))
    assert [str(a.status) for a in records.agents].count("oom") == 1
    assert records.rounds[0].load_s >= 0.4
