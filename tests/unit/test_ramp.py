"""What breaks first along a ramp: each constraint in a study of its own, and what is not known says so."""

import re
from dataclasses import replace

import pandas as pd
import pytest

import made_trials
from crewbench import opening, ramp, report, tables
from crewbench.config import Thresholds
from crewbench.ramp import Limits
from crewbench.records import Status
from crewbench.trial import Cell

ONE = {"engine": "eager", "start": "zygote"}
Made = made_trials.Costs


def built(root, cells, thresholds=None, repeats=2, costs=None, **more) -> dict[str, pd.DataFrame]:
    """The tables of these cells, each (cell, its own costs or None)."""
    lines = [
        made_trials.make_trial(root, cell, repeat, warm_rounds=1, costs=costs, order=repeat, **more)
        for repeat in range(1, repeats + 1)
        for cell in cells
    ]
    config = {"thresholds": thresholds or {}}
    return tables.build(tables.read_manifest(made_trials.write_manifest(root, lines, config=config)))


def over_agents(mode, *agents, gpus=1):
    return [Cell(mode, gpus, n, **ONE) for n in agents]


def verdict(found) -> dict:
    (row,) = found["verdict"].to_dict("records")
    return row


def constraint(found, name) -> dict:
    (row,) = found["constraints"].query("constraint == @name").to_dict("records")
    return row


# Each constraint is the first to break -------------------------------------------------------------


def test_memory_breaks_where_the_copies_no_longer_fit(tmp_path):
    found = built(tmp_path, over_agents("parallel", 1, 2, 4, 8))
    row = verdict(found)
    assert (row["first"], row["at_agents"], row["at_gpus"]) == ("memory", 4, 1)
    assert row["value"] == pytest.approx(800 / 640)  # four copies of 200 MiB
    assert row["margin_pct"] == pytest.approx(-25)
    assert (row["settled"], row["points"], row["simulated_budget"]) == (True, 4, True)
    assert row["evidence"] == (
        "out of memory in 2 of 2 trials, the fullest slot would need 800 of 640 MiB; "
        "also with 8 agents on 1 slot"
    )


def test_memory_that_is_taken_in_one_trial_of_two_is_broken_and_not_settled(tmp_path):
    lines = [
        made_trials.make_trial(tmp_path, Cell("parallel", 1, 3, **ONE), repeat, costs=Made(budget_mib=budget))
        for repeat, budget in ((1, 640), (2, 500))
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    row = verdict(found)
    assert (row["first"], row["settled"]) == ("memory", False)
    assert row["evidence"].startswith("out of memory in 1 of 2 trials")


def test_memory_that_runs_out_in_a_warm_round_is_broken(tmp_path):
    full = (1, "agent0", Status.OOM, "slot budget (simulated) is full")
    row = verdict(built(tmp_path, over_agents("parallel", 2), fail=full))
    assert (row["first"], row["at_agents"], row["settled"]) == ("memory", 2, True)
    assert row["evidence"].startswith("out of memory in 2 of 2 trials")


def test_latency_breaks_where_the_makespan_passes_the_deadline(tmp_path):
    found = built(tmp_path, over_agents("shared", 1, 2, 4), {"deadline_s": 1.5})
    row = verdict(found)
    assert (row["first"], row["at_agents"], row["threshold"]) == ("latency", 2, 1.5)
    warm = found["trials"].query("agents == 2")["warm_s"].mean()
    assert row["value"] == pytest.approx(warm, rel=0.01)
    assert row["margin_pct"] == pytest.approx(100 * (1.5 - row["value"]) / 1.5)
    assert re.search(r"a warm round takes [\d.]+ s \[.*\], the deadline is 1.50 s", row["evidence"])


def test_without_a_deadline_latency_is_not_judged(tmp_path):
    found = built(tmp_path, over_agents("shared", 1, 2))
    assert constraint(found, "latency")["outcome"] == "not judged"
    assert "thresholds.deadline_s" in constraint(found, "latency")["evidence"]


def test_parallelism_breaks_where_more_agents_only_wait_for_each_other(tmp_path):
    found = built(tmp_path, over_agents("shared", 1, 2, 4))
    row = verdict(found)
    assert (row["first"], row["at_agents"], row["over"]) == ("parallelism", 4, "agents")
    one, four = (found["trials"].query("agents == @n")["warm_s"].mean() for n in (1, 4))
    assert row["value"] == pytest.approx(one / four, rel=0.01)
    assert row["value"] < row["threshold"] == 0.5
    assert re.search(r"speed-up 1\.\d+ of an ideal 4.00 against 1 agent on 1 slot, warm", row["evidence"])


def test_parallelism_breaks_where_more_gpus_do_not_pay(tmp_path):
    found = built(tmp_path, [Cell("parallel", g, 8, **ONE) for g in (2, 8)], costs=Made(budget_mib=2000))
    row = verdict(found)
    # Eight processes do not slow each other here, so that more GPUs are wasted.
    assert (row["first"], row["at_agents"], row["at_gpus"], row["over"]) == ("parallelism", 8, 8, "GPUs")
    assert row["value"] == pytest.approx(0.25, rel=0.05)


def test_agents_and_gpus_that_grow_alike_are_efficient_where_the_makespan_stays(tmp_path):
    found = built(tmp_path, [Cell("parallel", g, g, **ONE) for g in (1, 2, 4)])
    row = constraint(found, "parallelism")
    assert (row["outcome"], row["over"]) == ("not reached", "agents and GPUs")
    assert row["value"] == pytest.approx(1, rel=0.1)
    assert verdict(found)["first"] == "not reached"


def test_of_several_efficiencies_at_a_point_the_least_is_judged(tmp_path):
    """Two agents on two slots take 2.5 times as long as one on one; two on one slot take longer still and
    one on two slots no less does not make up for it."""
    seconds = {(1, 1): 0.02, (2, 1): 0.06, (1, 2): 0.03, (2, 2): 0.055}
    lines = [
        made_trials.make_trial(
            tmp_path,
            Cell("parallel", gpus, agents, **ONE),
            repeat,
            warm_rounds=1,
            costs=Made(token_s=token_s),
        )
        for repeat in (1, 2)
        for (agents, gpus), token_s in seconds.items()
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    row = constraint(found, "parallelism")
    assert (row["outcome"], row["at_agents"], row["at_gpus"]) == ("broke", 1, 2)
    assert row["evidence"].endswith("also with 2 agents on 1 slot, 2 agents on 2 slots")
    alone = found["trials"].query("not (agents == 2 and gpus == 1) and not (agents == 1 and gpus == 2)")
    same = ramp.tables({**found, "trials": alone}, Limits())["constraints"]
    (both,) = [r for r in same if r["constraint"] == "parallelism"]
    assert (both["over"], both["value"] < 0.5) == ("agents and GPUs", True)


def test_orchestration_breaks_where_the_framework_takes_its_share(tmp_path):
    found = built(tmp_path, over_agents("parallel", 1, 2), costs=Made(framework_s=0.4))
    row = verdict(found)
    assert (row["first"], row["at_agents"]) == ("orchestration", 1)
    assert row["value"] == pytest.approx(0.4 / (0.12 + 47 * 0.02 + 0.4), rel=0.05)
    assert re.search(r"framework and queue take 2\d\.\d % .*; also with 2 agents on 1 slot", row["evidence"])


def test_at_one_point_memory_comes_first_and_else_what_is_furthest_beyond(tmp_path):
    found = built(tmp_path, over_agents("parallel", 1), {"deadline_s": 1.4}, costs=Made(framework_s=0.4))
    # 2 % over the deadline, 37 % over the share of the framework.
    assert constraint(found, "latency")["outcome"] == "broke"
    assert verdict(found)["first"] == "orchestration"


# What did not break, and what is not known ---------------------------------------------------------


def test_what_does_not_break_is_not_reached_with_its_margin(tmp_path):
    found = built(tmp_path, [Cell("parallel", g, g, **ONE) for g in (1, 2)], {"deadline_s": 10})
    row = verdict(found)
    assert (row["first"], row["outcome"]) == ("not reached", "not reached")
    assert row["evidence"].startswith("nearest is parallelism") or "nearest is" in row["evidence"]
    assert constraint(found, "memory")["margin_pct"] == pytest.approx(100 * (1 - 200 / 640))
    assert constraint(found, "latency")["margin_pct"] > 80


def test_without_a_ramp_parallelism_is_not_measured(tmp_path):
    found = built(tmp_path, over_agents("sequential", 4))
    row = constraint(found, "parallelism")
    assert (row["outcome"], row["evidence"]) == (
        "not measured", "it worked with one number of agents and GPUs only: no ramp"
    )  # fmt: skip
    said = opening.breaks_first(found["verdict"], opening.cells.headline_setting(found["trials"]), "slot")
    assert said.answer == "Nothing at 4 agents on 1 slot; no ramp was run"


def test_a_ramp_on_which_nothing_worked_has_no_latency(tmp_path):
    found = built(
        tmp_path, over_agents("shared", 2), {"deadline_s": 9}, fail=(0, "agent1", Status.ERROR, "it broke")
    )
    for name in ("latency", "parallelism", "orchestration"):
        assert constraint(found, name)["outcome"] == "not measured"
        assert constraint(found, name)["evidence"] == "no trial worked"


SLOW = (0, "agent1", Status.TIMEOUT, "over 600 s")


def two_points(root, fails, deadline_s=None, agents=(2, 4), **more):
    """`parallel` on two slots: fewer agents work, more end as `fails` say, one for each repeat."""
    few, many = (Cell("parallel", 2, n, **ONE) for n in agents)
    lines = [
        made_trials.make_trial(root, cell, repeat, warm_rounds=1, order=repeat, **more, fail=fail)
        for repeat, fails_here in enumerate(fails, start=1)
        for cell, fail in ((few, None), (many, fails_here))
    ]
    config = {"thresholds": {"deadline_s": deadline_s}}
    return tables.build(tables.read_manifest(made_trials.write_manifest(root, lines, config=config)))


def test_a_deadline_breaks_latency_where_every_trial_timed_out(tmp_path):
    found = two_points(tmp_path, [SLOW] * 3, deadline_s=20)
    row = verdict(found)
    assert (row["first"], row["at_agents"], row["n"], row["settled"]) == ("latency", 4, 3, True)
    assert row["evidence"] == "timed out in 3 of 3 trials, the deadline is 20.0 s"
    assert row["unexplained"] == ""
    breaks, _ = answers(found, deadline_s=20)
    assert breaks.answer == "Latency: Parallel with 4 agents on 2 slots"
    (shown,) = report.breaking.constraints(found, "slot")
    assert (shown["constraints"][1]["value"], shown["constraints"][1]["bad"]) == ("broke", True)


def test_where_some_trials_timed_out_the_mean_of_the_others_settles_nothing(tmp_path):
    row = constraint(two_points(tmp_path, [None, None, SLOW], deadline_s=20, agents=(1, 2)), "latency")
    assert (row["outcome"], row["settled"], row["at_agents"]) == ("not reached", False, 2)
    assert row["evidence"].endswith("the deadline is 20.0 s; timed out in 1 of 3 trials")


@pytest.mark.parametrize("fail", [SLOW, (0, "agent1", Status.ERROR, "it broke")])
def test_nothing_breaks_only_up_to_where_a_trial_worked_and_the_other_points_are_named(tmp_path, fail):
    found = two_points(tmp_path, [fail] * 2)
    row = verdict(found)
    assert (row["outcome"], row["agents_to"], row["worked_agents"]) == ("not reached", 4, 2)
    breaks, _ = answers(found)
    assert (
        breaks.answer
        == "Nothing at 2 agents on 2 slots; no trial worked of Parallel with 4 agents on 2 slots"
    )
    (said,) = breaks.support
    assert said.startswith(
        "Parallel: not reached at the only point that worked, 2 agents on 2 slots; nearest is "
    )
    assert said.endswith("; no trial worked with 4 agents on 2 slots.")
    assert constraint(found, "memory")["at_agents"] == 2  # what four would have taken is not known


def test_what_nothing_broke_up_to_is_a_point_that_was_measured(tmp_path):
    found = built(tmp_path, [Cell("parallel", 4, 1, **ONE), Cell("parallel", 2, 2, **ONE)])
    breaks, _ = answers(found)
    assert breaks.answer == "Nothing up to 2 agents on 2 slots"


def test_where_no_trial_worked_nothing_is_measured_and_not_nothing_broken(tmp_path):
    found = built(tmp_path, over_agents("shared", 2), fail=(0, "agent1", Status.ERROR, "it broke"))
    assert (verdict(found)["first"], verdict(found)["evidence"]) == ("not measured", "no trial worked")
    breaks, _ = answers(found)
    assert breaks.answer == "Not measured: no trial worked."
    assert breaks.support == ("Shared: not measured, no trial worked.",)


def test_a_mode_that_finds_its_gpus_is_judged_by_its_attempts(tmp_path):
    found = built(tmp_path, [Cell("auto_expand", 4, 4, **ONE)])
    row = verdict(found)
    assert (row["first"], row["at_gpus"], row["gpus_from"], row["gpus_to"]) == ("memory", 1, 1, 2)
    assert row["evidence"].endswith("not with 4 agents on 2 slots")
    assert "finds its number" in constraint(found, "parallelism")["evidence"]


def test_memory_that_an_engine_takes_in_advance_is_no_margin(tmp_path):
    found = built(tmp_path, [Cell("served", 1, 2, "vllm", "process")], repeats=1)
    row = constraint(found, "memory")
    assert row["outcome"] == "not reached"
    assert row["value"] != row["value"]
    assert "taken in advance" in row["evidence"]


def test_one_trial_settles_nothing(tmp_path):
    found = built(tmp_path, over_agents("shared", 1, 2, 4), repeats=1)
    assert (verdict(found)["first"], verdict(found)["settled"]) == ("parallelism", False)
    breaks, _ = answers(found)
    assert breaks.answer == "Parallelism, not settled: Shared with 4 agents on 1 slot"


def test_an_interval_of_a_share_stays_between_0_and_1(tmp_path):
    lines = [
        made_trials.make_trial(
            tmp_path, Cell("parallel", 1, 1, **ONE), repeat, warm_rounds=1, costs=Made(framework_s=framework)
        )
        for repeat, framework in ((1, 0.01), (2, 3.0))
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    assert "% [0, 100] of a warm round" in constraint(found, "orchestration")["evidence"]


def test_a_trial_that_failed_before_it_had_a_device_is_no_point(tmp_path):
    found = built(tmp_path, over_agents("sequential", 2))
    none = found["attempts"].assign(gpus_used=0)
    rows = ramp.tables({**found, "attempts": none}, Limits())["verdict"]
    assert (rows[0]["gpus_from"], rows[0]["gpus_to"]) == (1, 1)


def test_the_limits_have_the_configs_defaults():
    assert Limits.of(Thresholds().model_dump()) == Limits() == Limits.of(None)
    assert Limits.of({"deadline_s": 3.0, "logit_error": 2}) == Limits(deadline_s=3.0)


def test_the_queue_counts_as_orchestration():
    rounds = [{"status": "ok", "makespan_s": 10.0, "framework_s": 1.0, "queue_s": 2.0},
              {"status": "ok", "makespan_s": 10.0, "framework_s": 0.0, "queue_s": 1.0},
              {"status": "oom", "makespan_s": 99.0, "framework_s": 99.0, "queue_s": 0.0}]  # fmt: skip
    assert ramp.orchestration_share(rounds) == pytest.approx(0.2)
    assert ramp.orchestration_share([]) is None


def test_what_the_calls_alone_did_not_take_is_orchestration_where_it_is_more(tmp_path):
    found = built(tmp_path, over_agents("sequential", 2), repeats=3)

    def judged(*warm_over_replay):
        trials = found["trials"].assign(warm_over_replay=warm_over_replay)
        rows = ramp.tables({**found, "trials": trials}, Limits())["constraints"]
        (row,) = [row for row in rows if row["constraint"] == "orchestration"]
        return row["outcome"], row["value"], row["evidence"]

    outcome, value, evidence = judged(2.0, 2.5, 2.0)
    assert (outcome, value) == (ramp.Outcome.BROKE, pytest.approx((0.5 + 0.6 + 0.5) / 3))
    assert evidence.startswith("CrewAI takes 53.3 % [")
    assert evidence.endswith(" of a warm round, by its calls made again without it")
    assert judged(0.9, 1.0, 0.8)[2].startswith("framework and queue take ")


# In words ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """Two modes over agents, one of them over GPUs too, with a deadline."""
    cells = [
        *over_agents("parallel", 2, 4, gpus=2),
        *over_agents("parallel", 2, 4),
        *over_agents("shared", 2, 4),
        *over_agents("sequential", 2, 4),
    ]
    return built(tmp_path_factory.mktemp("crew"), cells, {"deadline_s": 4.0}, repeats=3)


def answers(found, **limits):
    return opening.answers(found, Limits(**limits))


def test_the_first_answer_names_the_constraint_the_modes_and_the_point(crew):
    breaks, _ = answers(crew, deadline_s=4.0)
    assert breaks.answer == "Memory (simulated budget): Parallel with 4 agents on 1 slot"
    lines = {line.split(":")[0]: line for line in breaks.support}
    assert (
        "800 of 640 MiB; not with 4 agents on 2 slots; 25.0 % beyond its threshold, a simulated budget."
        in lines["Parallel"]
    )
    assert lines["Sequential"].startswith("Sequential: latency breaks first, with 4 agents on 1 slot: ")
    assert lines["Shared"].startswith("Shared: not reached up to 4 agents on 1 slot; nearest is ")


def test_the_recommendation_is_the_fastest_that_works_keeps_the_deadline_and_pays(crew):
    _, use = answers(crew, deadline_s=4.0)
    assert use.question == "What to use for 4 agents?"
    assert re.fullmatch(r"Parallel on 2 slots: 1\.\d+ s a warm round", use.answer)
    assert "within the deadline of 4.00 s" in use.support[0]
    assert re.search(
        r"Left out: Sequential on 1 slot, 4\.\d+ s: over the deadline of 4.00 s.", "\n".join(use.support)
    )
    assert "The memory budget is simulated." in use.support
    assert "Random weights: time and memory decide here, not what the agents say." in use.support


def test_of_cells_that_are_not_told_apart_the_one_with_fewer_devices_is_recommended(tmp_path):
    cells = [Cell("parallel", g, 2, **ONE) for g in (1, 2)]
    _, use = answers(built(tmp_path, cells, repeats=3))
    assert use.answer.startswith("Parallel on 1 slot")
    assert "costs the fewest slot-seconds too" in " ".join(use.support)


@pytest.mark.parametrize("others", [(), ((4, 1, 0.03), (4, 4, 0.025)), ((1, 8, 0.01), (4, 8, 0.02))])
def test_gpus_that_do_not_pay_are_left_out_whatever_other_cells_were_run(tmp_path, others):
    """8 GPUs make 8 agents about twice as fast: a quarter of what they should. Parallelism breaks elsewhere
    first where 4 agents were run too, or fewer agents on 8 GPUs."""
    lines = [
        made_trials.make_trial(
            tmp_path,
            Cell("parallel", gpus, agents, **ONE),
            repeat,
            warm_rounds=1,
            costs=Made(token_s=token_s, budget_mib=2000),
        )
        for repeat in (1, 2, 3)
        for agents, gpus, token_s in ((8, 1, 0.08), (8, 8, 0.04), *others)
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    use = opening.recommendation(found["trials"].query("agents == 8"), found["constraints"], Limits(), "slot")
    assert use.answer.startswith("Parallel on 1 slot")
    (why,) = [line for line in use.support if line.startswith("Left out: Parallel on 8 slots")]
    assert re.search(r": 2\d\.\d % of the ideal speed-up over 1 slot, less than 50.0 %.$", why)


def chosen(root, *choices):
    """The first screen's second answer, of (cell, seconds a token), three repeats each."""
    lines = [
        made_trials.make_trial(
            root, cell, repeat, warm_rounds=1, costs=Made(token_s=token_s, budget_mib=2000)
        )
        for repeat in (1, 2, 3)
        for cell, token_s in choices
    ]
    _, use = answers(tables.build(tables.read_manifest(made_trials.write_manifest(root, lines))))
    return use


def test_what_to_use_is_looked_for_over_engines_and_variants_and_says_which(tmp_path):
    eager, other = Cell("shared", 1, 2, **ONE), Cell("shared", 1, 2, "transformers-serve", "process")
    threads = Cell("shared", 1, 2, "transformers-serve", "process", "quick", {"clients": "threads"})
    use = chosen(tmp_path, (eager, 0.03), (other, 0.02), (threads, 0.01))
    assert use.answer.startswith("Shared on 1 slot, transformers-serve, process start, variant quick: ")
    assert "Nothing else was measured" not in " ".join(use.support)


def test_another_machine_or_task_is_no_choice(tmp_path):
    small = Cell("shared", 1, 2, **ONE, variant="small", options={"memory_mib": 100})
    short = Cell("shared", 1, 2, **ONE, variant="short", options={"output_tokens": 2})
    use = chosen(tmp_path, (Cell("shared", 1, 2, **ONE), 0.03), (small, 0.01), (short, 0.001))
    assert use.answer.startswith("Shared on 1 slot: ")
    assert "Nothing else was measured on the same work" in " ".join(use.support)
    assert "costs the fewest" not in " ".join(use.support)


def test_starts_that_warm_rounds_do_not_see_leave_the_choice_to_the_cold_round(tmp_path):
    cells = [Cell("shared", 1, 2, "eager", start) for start in ("process", "zygote")]
    use = chosen(tmp_path, (cells[0], 0.0100), (cells[1], 0.0101))
    assert use.answer.startswith("Shared on 1 slot, zygote start: ")
    (other,) = [line for line in use.support if line.startswith("The same deployment, started as")]
    assert other.startswith("The same deployment, started as Shared on 1 slot, process start: ")
    assert other.endswith("; a warm round does not depend on the start.")


def test_what_to_use_says_when_its_engine_was_not_held_against_float32(tmp_path):
    use = chosen(tmp_path, (Cell("shared", 1, 2, **ONE), 0.03))
    assert "Of its engine: agreement with float32 not measured in this study." in use.support


def test_what_to_use_says_what_it_held_and_what_holds_much_less(tmp_path):
    use = chosen(tmp_path, (Cell("parallel", 1, 4, **ONE), 0.01), (Cell("shared", 1, 4, **ONE), 0.02))
    assert use.answer.startswith("Parallel on 1 slot: ")
    assert re.search(
        r"It held 800 MiB of its fullest slot\. For a smaller one: Shared on 1 slot held 2\d\d MiB and took ",
        " ".join(use.support),
    )


def test_a_deadline_that_nothing_keeps_leaves_nothing_to_use(crew):
    trials = crew["trials"].query("agents == 4")
    said = opening.recommendation(trials, crew["constraints"], Limits(deadline_s=0.1), "slot")
    assert said.answer == "Nothing fits"
    assert all("over the deadline of 0.100 s" in line for line in said.support[:3])


def test_what_breaks_in_another_setting_is_named_with_it(tmp_path):
    cells = [
        *over_agents("shared", 2),
        *over_agents("sequential", 2),
        Cell("parallel", 1, 4, **ONE, variant="small"),
    ]
    breaks, _ = answers(built(tmp_path, cells))
    assert breaks.answer == "Memory (simulated budget): Parallel with 4 agents on 1 slot (variant small)"
    assert breaks.support[0].startswith("Parallel, variant small: memory breaks ")
    assert breaks.support[1] == "In the setting that most modes share nothing broke."


def test_modes_of_different_settings_do_not_share_an_answer(tmp_path):
    cells = [
        *over_agents("shared", 2),
        *over_agents("sequential", 2),
        Cell("parallel", 1, 4, **ONE, variant="small"),
        Cell("actors", 1, 4, **ONE, variant="other"),
    ]
    breaks, _ = answers(built(tmp_path, cells))
    assert breaks.answer == "Memory (simulated budget): Parallel with 4 agents on 1 slot (variant small)"
    assert {"Parallel, variant small", "Actors, variant other"} <= {
        line.split(":")[0] for line in breaks.support
    }
    alike = [replace(cell, variant="small") if cell.mode == "actors" else cell for cell in cells]
    breaks, _ = answers(built(tmp_path / "alike", alike))
    assert breaks.answer == "Memory (simulated budget): Parallel and Actors with 4 agents on 1 slot"


def test_the_page_has_every_constraint_of_every_ramp_with_its_number(crew, tmp_path):
    rows = {row["name"]: row for row in report.breaking.constraints(crew, "slot")}
    assert list(rows) == ["Parallel", "Sequential", "Shared"]
    memory, latency, parallelism, orchestration = rows["Parallel"]["constraints"]
    assert (memory["value"], memory["bad"]) == ("125 %", True)
    assert memory["where"] == "25.0 % beyond, 4 agents on 1 slot"
    assert latency["value"].endswith(" s")
    assert rows["Parallel"]["ramp"] == "2 to 4 agents, 1 to 2 slots"
    assert orchestration["value"].endswith(" %")
    assert "50.0 % of the ideal speed-up" in report.breaking.limits_words(Limits())
