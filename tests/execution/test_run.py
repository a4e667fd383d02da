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


def lives(records):
    return [(w.worker, w.worker_life, str(w.status)) for w in records.workers]


def test_a_worker_that_dies_in_a_step_lives_again_where_its_runner_says_so_and_so_does_the_step(tmp_path):
    counted = str(tmp_path / "made")

    def worker(name, life, attempt, trial):
        return [spoken.dies_in_a_step, counted, 7] if life == 0 else [spoken.works]

    records = Trial(worker, restarts=1, counted=counted).run(alone())
    assert [(a.round, str(a.status), a.worker_life, a.reruns, a.lost_tokens) for a in records.agents] == [
        (0, "ok", 1, 1, 7),
        (1, "ok", 1, 0, 0),
    ]
    assert lives(records) == [("worker", 0, "error"), ("worker", 1, "ok")]
    dead, new = records.workers
    assert dead.recovery_s is None
    assert new.recovery_s == pytest.approx(new.ready_at_s - dead.stopped_at_s)
    assert (records.restarts, str(records.status)) == (1, "ok")
    # The step's queueing is from its first to the run that counts.
    assert records.agents[0].queue_s > new.ready_at_s - new.spawned_at_s


def test_a_worker_that_dies_again_and_again_is_given_up_after_its_restarts(tmp_path):
    counted = str(tmp_path / "made")
    records = Trial(lambda *_: [spoken.dies_in_a_step, counted, 3], restarts=2, counted=counted).run(alone())
    assert lives(records) == [("worker", 0, "error"), ("worker", 1, "error"), ("worker", 2, "error")]
    first, second = records.agents
    assert (str(first.status), first.reruns, first.lost_tokens) == ("error", 2, 9)
    assert "SIGKILL while it ran" in first.error
    assert (str(second.status), second.reruns) == ("skipped", 0)


def test_tokens_that_nobody_counted_are_not_said_to_be_none():
    def worker(name, life, attempt, trial):
        return [spoken.dies_in_a_step, None, 3] if life == 0 else [spoken.works]

    records = Trial(worker, restarts=1, warm_rounds=0).run(alone())
    assert [(str(a.status), a.lost_tokens) for a in records.agents] == [("ok", None)]


def test_a_worker_without_restarts_ends_its_step_and_what_it_had_made_is_lost(tmp_path):
    counted = str(tmp_path / "made")
    records = Trial(lambda *_: [spoken.dies_in_a_step, counted, 5], counted=counted).run(alone())
    assert [(str(a.status), a.reruns, a.lost_tokens) for a in records.agents] == [
        ("error", 0, 5),
        ("skipped", 0, 0),
    ]
    assert len(records.workers) == 1


def test_a_worker_that_dies_while_it_loads_lives_again_and_no_step_was_run_twice():
    records = Trial(
        lambda name, life, *_: [spoken.dies] if life == 0 else [spoken.works], restarts=1, warm_rounds=0
    ).run(alone())
    assert lives(records) == [("worker", 0, "error"), ("worker", 1, "ok")]
    assert [(str(a.status), a.reruns, a.lost_tokens) for a in records.agents] == [("ok", 0, 0)]


def test_a_renewed_worker_that_dies_lives_again_with_the_step_it_was_started_for(tmp_path):
    counted = str(tmp_path / "made")

    def worker(name, life, attempt, trial):
        return [spoken.dies_in_a_step, counted, 2] if life == 1 else [spoken.works]

    records = Trial(worker, restarts=1, counted=counted).run(alone("step", steps=2))
    assert [(a.round, a.step, a.worker_life, a.reruns) for a in records.agents] == [
        (0, "step0", 0, 0),
        (0, "step1", 2, 1),
        (1, "step0", 2, 0),
        (1, "step1", 2, 0),
    ]
    assert {str(a.status) for a in records.agents} == {"ok"}


@pytest.mark.parametrize("failing", [0, 1])
def test_the_loading_of_a_worker_that_failed_counts_as_loading_not_as_the_next_ones_spawning(failing):
    def worker(name, life, attempt, trial):
        return [spoken.fails_loading, 0.4] if life == failing else [spoken.works]

    records = Trial(worker, warm_rounds=0).run(alone("step", steps=3))
    assert [str(a.status) for a in records.agents].count("oom") == 1
    assert records.rounds[0].load_s >= 0.4
