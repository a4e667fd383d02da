"""When a dearer start is repaid, against numbers worked out by hand."""

import pytest

from crewbench import breakeven
from crewbench.breakeven import (
    AT_ONCE,
    ENGINE,
    NEVER,
    NOT_SHOWN,
    REPAID,
    RESIDENT,
    RUNNER,
    Costs,
    Pair,
    Repeat,
)
from crewbench.records import AgentRow, RoundRow, Status, WorkerRow

CELL = {
    "mode": "sequential", "gpus": 1, "agents": 8, "engine": "eager", "start": "process", "variant": "base",
    "compile_cache": "none", "workload": "explain", "host": "box",
}  # fmt: skip


def a_round(number: int, makespan: float, **fields) -> RoundRow:
    return RoundRow(number, "warm" if number else "cold", 1, 1, 0.0, makespan, makespan, **fields)


def step(number: int, name: str, worker: str, life: int = 0) -> AgentRow:
    phase = "warm" if number else "cold"
    return AgentRow(number, phase, 1, name, name, worker, life, Status.OK, output_tokens=16)


WORKER = [WorkerRow("worker", 0, 1, "process")]


# What a trial says ----------------------------------------------------------------------------------


def test_a_start_is_the_stages_from_spawn_to_compile_and_a_call_a_share_of_a_warm_round():
    cold = a_round(0, 20.0, spawn_s=1.0, import_s=6.0, context_s=0.5, load_s=2.5, compile_s=4.0, decode_s=6.0)
    rounds = [cold, a_round(1, 3.0), a_round(2, 5.0)]
    steps = [step(r, name, "worker") for r in (0, 1, 2) for name in ("one", "two")]
    found = breakeven.of_trial(rounds, steps, WORKER, zygote_s=5.5)
    assert found == Costs(14.0, 2.0, None, 2, 32, "process", 5.5)


def test_a_worker_that_is_renewed_for_each_step_has_one_of_its_starts_counted():
    # Two lives, each started and used once: round 0 is a fresh worker for each call.
    rounds = [a_round(0, 20.0, import_s=12.0, load_s=4.0, decode_s=4.0), a_round(1, 4.0)]
    steps = [step(0, "one", "worker", 0), step(0, "two", "worker", 1), step(1, "one", "worker", 1)]
    found = breakeven.of_trial(rounds, steps, WORKER)
    assert (found.start_s, found.call_s, found.fresh_call_s) == (8.0, 2.0, 10.0)


def test_a_worker_for_each_agent_is_a_fresh_worker_for_each_call_too():
    rounds = [a_round(0, 10.0, import_s=8.0), a_round(1, 2.0)]
    steps = [step(0, "one", "worker0"), step(0, "two", "worker1")]
    assert breakeven.of_trial(rounds, steps, WORKER).fresh_call_s == 5.0
    assert breakeven.of_trial(rounds, steps, WORKER).start_s == 8.0


@pytest.mark.parametrize("failed", [0, 1])
def test_without_a_cold_and_a_warm_round_that_worked_nothing_is_said(failed):
    rounds = [a_round(0, 10.0), a_round(1, 2.0)]
    rounds[failed].status = Status.ERROR
    assert breakeven.of_trial(rounds, [step(0, "one", "worker")], WORKER) is None


# n* -------------------------------------------------------------------------------------------------


def pair(*repeats: tuple[float, float, float, float]) -> Pair:
    return Pair(ENGINE, CELL, CELL, {i: Repeat(*four) for i, four in enumerate(repeats, 1)}, 8)


def test_the_lines_cross_where_what_was_saved_is_what_the_start_cost_more():
    # (70 - 10) / (2 - 0.5) = 40 calls.
    one = pair((10.0, 70.0, 2.0, 0.5))
    assert one.outcome == REPAID
    assert (one.calls.value, one.calls.n) == (pytest.approx(40.0), 1)
    assert not one.calls.has_interval
    assert one.repeats[1].calls == pytest.approx(40.0)
    assert 10.0 + 40 * 2.0 == 70.0 + 40 * 0.5


def test_a_repeat_that_is_slow_throughout_weighs_no_more():
    # Three times as slow in starts and calls: n* is 40 in both repeats, exactly.
    found = pair((10.0, 70.0, 2.0, 0.5), (30.0, 210.0, 6.0, 1.5))
    assert (found.calls.value, found.calls.low, found.calls.high) == pytest.approx((40.0, 40.0, 40.0))


def test_the_interval_is_fiellers_on_paired_repeats():
    # In calls of a: later 30, 33, 27 of mean 30, saved 0.75, 0.7, 0.8 of mean 0.75; s_xx 9, s_yy 0.0025,
    # s_xy -0.15, t²/n = 4.302653² / 3 = 6.170938. A = 0.5470727, B = 23.4256407, C = 844.461558:
    # roots (23.4256407 ± √86.77878) / 0.5470727.
    found = pair((0.0, 30.0, 1.0, 0.25), (0.0, 33.0, 1.0, 0.3), (0.0, 27.0, 1.0, 0.2)).calls
    assert found.value == pytest.approx(40.0)
    assert (found.low, found.high) == pytest.approx((25.7921, 59.8479), abs=1e-4)


@pytest.mark.parametrize(
    ("repeats", "outcome"),
    [
        ([(10.0, 70.0, 2.0, 2.0)], NEVER),  # a call costs the same
        ([(10.0, 70.0, 2.0, 2.5), (10.0, 70.0, 2.0, 2.4), (10.0, 70.0, 2.0, 2.6)], NEVER),  # it costs more
        ([(10.0, 70.0, 2.0, 1.0), (10.0, 70.0, 2.0, 3.0), (10.0, 70.0, 2.0, 1.5)], NOT_SHOWN),  # nobody knows
    ],
)
def test_without_a_call_that_is_shown_to_be_cheaper_there_is_no_number(repeats, outcome):
    found = pair(*repeats)
    assert found.outcome == outcome
    assert found.calls.value is None
    assert "cheaper" in found.calls.reason
    assert found.row()["calls"] is None


def test_what_starts_sooner_and_calls_faster_is_ahead_at_once():
    found = pair((20.0, 10.0, 2.0, 0.5), (21.0, 10.0, 2.0, 0.5))
    assert found.outcome == AT_ONCE
    assert (found.calls.value, found.calls.low) == (0.0, 0.0)


# Pairs ----------------------------------------------------------------------------------------------


def costs(start: float, call: float, fresh: float | None = None, runner: str = "process", **other) -> Costs:
    return Costs(**{"calls": 8, "tokens": 512, **other}, start_s=start, call_s=call, fresh_call_s=fresh,
                 runner=runner)  # fmt: skip


def pairs(*trials: tuple[dict, Costs], repeat: int = 1) -> list[Pair]:
    return breakeven.pairs([({**CELL, **cell}, repeat, found) for cell, found in trials])


def test_a_fresh_worker_for_each_call_has_no_start_and_dear_calls():
    (found,) = pairs(({}, costs(7.0, 1.0, fresh=8.0)))
    assert found.comparison == RESIDENT
    assert found.repeats[1] == Repeat(0.0, 7.0, 8.0, 1.0)
    assert found.calls.value == pytest.approx(1.0)


def test_two_engines_in_one_mode_are_compared_and_the_later_start_is_b():
    for order in (1, -1):
        both = [({"engine": "compiled"}, costs(60.0, 0.2)), ({}, costs(7.0, 1.0))][::order]
        (found,) = pairs(*both)
        assert (found.comparison, found.a["engine"], found.b["engine"]) == (ENGINE, "eager", "compiled")


def test_a_server_is_compared_with_each_mode_of_processes():
    found = pairs(
        ({}, costs(7.0, 1.0)),
        ({"mode": "shared"}, costs(7.0, 0.6)),
        ({"mode": "served", "engine": "vllm"}, costs(120.0, 0.1, runner="server")),
    )
    assert [(p.comparison, p.a["mode"], p.b["mode"]) for p in found] == [
        (RUNNER, "sequential", "served"),
        (RUNNER, "shared", "served"),
    ]


def test_a_servers_variant_meets_the_same_variant_else_the_base():
    server = ({"mode": "served", "variant": "short"}, costs(120.0, 0.1, runner="server"))
    base, short = ({}, costs(7.0, 1.0)), ({"variant": "short"}, costs(7.0, 0.5))
    assert [p.a["variant"] for p in pairs(server, base)] == ["base"]
    assert [p.a["variant"] for p in pairs(server, base, short)] == ["short"]


def test_without_a_base_a_servers_base_meets_the_variants_there_are():
    server = ({"mode": "served"}, costs(120.0, 0.1, runner="server"))
    fast, short = ({"variant": "fast"}, costs(7.0, 1.0)), ({"variant": "short"}, costs(7.0, 0.5))
    assert [p.a["variant"] for p in pairs(server, fast, short)] == ["fast", "short"]


def test_a_server_that_cannot_be_forked_meets_forked_workers_where_there_are_no_others():
    server = ({"mode": "served"}, costs(120.0, 0.1, runner="server"))
    forked = ({"start": "zygote"}, costs(2.0, 1.0, zygote_s=12.0))
    (found,) = pairs(server, forked)
    assert (found.a["start"], found.b["start"]) == ("zygote", "process")
    assert found.repeats[1].zygote_s == 12.0
    row = found.row()
    assert (row["a_start"], row["b_start"], row["calls"]) == ("zygote", "process", pytest.approx(118 / 0.9))
    own = ({}, costs(7.0, 1.0))
    assert [p.a["start"] for p in pairs(server, forked, own)] == ["process"]
    # A mode that has none of its own keeps the forked ones, whatever another mode has.
    other = ({"mode": "shared"}, costs(7.0, 0.5))
    found = pairs(server, forked, other)
    assert [(p.a["mode"], p.a["start"]) for p in found] == [("sequential", "zygote"), ("shared", "process")]
    # From disk it could start too: that it was not measured is no reason to compare.
    assert pairs(server, ({"start": "disk"}, costs(20.0, 1.0))) == []


def test_a_server_from_disk_is_not_compared_with_workers_whose_weights_are_in_the_page_cache():
    server = ({"mode": "served", "start": "disk"}, costs(150.0, 0.1, runner="server"))
    assert pairs(server, ({"start": "zygote"}, costs(2.0, 1.0))) == []
    (found,) = pairs(server, ({"start": "disk"}, costs(20.0, 1.0)))
    assert found.a["start"] == "disk"


def test_what_a_variant_sets_of_the_machine_must_be_the_same():
    server = ({"mode": "served", "conditions": {}}, costs(120.0, 0.1, runner="server"))
    tight = ({"variant": "tight", "conditions": {"memory_mib": 20000}}, costs(7.0, 1.0))
    assert pairs(server, tight) == []


@pytest.mark.parametrize(
    "other", [{"agents": 4}, {"gpus": 2}, {"start": "zygote"}, {"host": "west"}, {"workload": "plan"}]
)
def test_pairs_have_agents_devices_start_host_and_work_in_common(other):
    assert pairs(({}, costs(7.0, 1.0)), ({"engine": "compiled", **other}, costs(60.0, 0.2))) == []


@pytest.mark.parametrize("other", [{"calls": 4}, {"tokens": 64}])
def test_other_numbers_of_calls_or_tokens_are_no_pair(other):
    assert pairs(({}, costs(7.0, 1.0)), ({"engine": "compiled"}, costs(60.0, 0.2, **other))) == []


def test_only_repeats_that_both_have_are_paired():
    trials = [(CELL, 1, costs(7.0, 1.0)), (CELL, 2, costs(7.0, 1.0))]
    trials.append(({**CELL, "engine": "compiled"}, 2, costs(60.0, 0.2)))
    (found,) = breakeven.pairs(trials)
    assert list(found.repeats) == [2]


def test_rows_have_the_tables_columns():
    (found,) = pairs(({}, costs(7.0, 1.0, fresh=8.0)))
    assert tuple(found.row()) == breakeven.COLUMNS
    assert all(tuple(row) == breakeven.REPEAT_COLUMNS for row in found.repeat_rows())
