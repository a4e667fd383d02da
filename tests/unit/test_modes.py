"""Each mode's Deployments against its definition. No process and no model."""

import pytest

from crewbench.deployment import DeploymentError, Step, Worker
from crewbench.modes import MODES, get
from crewbench.trial import Cell


def cell(mode, gpus=1, agents=8, **options):
    return Cell(mode, gpus, agents, "eager", "zygote", "base", options)


def attempts(mode, gpus=1, agents=8):
    return list(MODES[mode].attempts(cell(mode, gpus, agents)))


def only(mode, gpus=1, agents=8):
    (deployment,) = attempts(mode, gpus, agents)
    return deployment


def names(n, prefix):
    return [f"{prefix}{i}" for i in range(n)]


def test_the_six_modes_come_in_the_order_of_their_rank():
    assert list(MODES)[:6] == [
        "parallel",
        "auto_expand",
        "sequential",
        "shared",
        "cooperative",
        "hierarchical",
    ]
    assert all(mode.name == name and mode.title and mode.idea for name, mode in MODES.items())


def test_an_unknown_mode_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match="unknown mode 'fast'; known: parallel"):
        get("fast")


def test_parallel_has_a_worker_per_agent_and_agent_i_on_device_i_mod_g():
    made = only("parallel", gpus=3, agents=8)
    assert [w.devices for w in made.workers] == [(0,), (1,), (2,), (0,), (1,), (2,), (0,), (1,)]
    assert [(s.worker, s.agent, s.task, s.after) for s in made.steps] == [
        (f"worker{i}", i, "explain", ()) for i in range(8)
    ]
    assert {w.concurrency for w in made.workers} == {1}
    assert made.lifetime == "trial"


def test_actors_are_parallels_workers_and_steps_with_another_runner():
    made, like = only("actors", gpus=3, agents=8), only("parallel", gpus=3, agents=8)
    assert made.steps == like.steps and made.lifetime == like.lifetime
    assert [(w.name, w.devices, w.concurrency) for w in made.workers] == [
        (w.name, w.devices, w.concurrency) for w in like.workers
    ]
    assert {w.runner for w in made.workers} == {"actor"}


def test_auto_expand_tries_parallel_on_one_device_then_two_and_so_on():
    tried = attempts("auto_expand", gpus=4)
    assert tried == [only("parallel", gpus=g) for g in (1, 2, 3, 4)]
    assert [len(d.devices) for d in tried] == [1, 2, 3, 4]


def test_sequential_renews_one_worker_for_each_step():
    made = only("sequential")
    assert made.workers == (Worker("worker", (0,), "eager"),)
    assert made.lifetime == "step"
    assert [(s.agent, s.task, s.after) for s in made.steps] == [(i, "explain", ()) for i in range(8)]


def test_shared_has_one_copy_that_works_on_every_agent_at_once():
    made = only("shared", agents=5)
    assert made.workers == (Worker("worker", (0,), "eager", concurrency=5),)
    assert [(s.agent, s.task, s.after) for s in made.steps] == [(i, "explain", ()) for i in range(5)]
    assert made.lifetime == "trial"


def test_cooperative_is_a_chain_in_which_each_step_reads_all_before_it():
    made = only("cooperative", agents=4)
    assert len(made.workers) == 1 and made.workers[0].concurrency == 1
    assert [s.after for s in made.steps] == [tuple(names(i, "agent")) for i in range(4)]
    assert {s.task for s in made.steps} == {"contribute"}


def test_hierarchical_plans_works_in_parallel_and_summarises():
    made = only("hierarchical", gpus=3, agents=8)
    plan, *work, summary = made.steps
    assert plan == Step("plan", "worker0", 0, "plan")
    assert [(s.worker, s.agent, s.task, s.after) for s in work] == [
        (f"worker{i % 3}", i, "work", ("plan",)) for i in range(1, 8)
    ]
    assert summary == Step("summary", "worker0", 0, "summarise", ("plan", *names(8, "agent")[1:]))
    assert [w.devices for w in made.workers] == [(0,), (1,), (2,)]
    assert {w.concurrency for w in made.workers} == {3}


def test_a_copy_may_lie_on_a_group_of_devices_and_agent_i_is_on_group_i_mod_the_groups():
    (made,) = MODES["parallel"].attempts(cell("parallel", gpus=4, agents=3, devices_per_copy=2))
    assert [w.devices for w in made.workers] == [(0, 1), (2, 3), (0, 1)]


def test_auto_expand_with_groups_of_devices_adds_a_whole_group_each_time():
    tried = list(MODES["auto_expand"].attempts(cell("auto_expand", gpus=6, devices_per_copy=2)))
    assert [d.devices for d in tried] == [(0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)]


@pytest.mark.parametrize("mode", ["sequential", "shared", "cooperative"])
def test_a_mode_with_one_copy_spreads_it_over_all_its_devices(mode):
    spread = cell(mode, gpus=3, devices_per_copy=3)
    assert MODES[mode].unfit(spread) is None
    (made,) = MODES[mode].attempts(spread)
    assert [w.devices for w in made.workers] == [(0, 1, 2)]


@pytest.mark.parametrize(
    ("mode", "gpus", "agents", "each", "reason"),
    [
        ("parallel", 1, 8, 2, "a copy takes 2 GPUs, and there is 1"),
        ("parallel", 2, 8, 3, "a copy takes 3 GPUs, and there are 2"),
        ("auto_expand", 4, 8, 3, "4 GPUs cannot be divided into groups of 3"),
        ("parallel", 8, 3, 2, "8 GPUs for 3 agents: 2 would stay empty"),
        ("sequential", 1, 8, 2, "runs on 2 GPUs, not on 1"),
        ("shared", 4, 8, 2, "runs on 2 GPUs, not on 4"),
        ("cooperative", 3, 8, 2, "runs on 2 GPUs, not on 3"),
    ],
)
def test_a_cell_whose_devices_make_no_whole_groups_is_unfit_with_a_reason(mode, gpus, agents, each, reason):
    assert MODES[mode].unfit(cell(mode, gpus, agents, devices_per_copy=each)) == reason


@pytest.mark.parametrize(
    ("mode", "gpus", "agents", "reason"),
    [
        ("parallel", 4, 2, "4 GPUs for 2 agents: 2 would stay empty"),
        ("auto_expand", 9, 8, "9 GPUs for 8 agents: 1 would stay empty"),
        ("sequential", 2, 8, "runs on one GPU, not on 2"),
        ("shared", 2, 8, "runs on one GPU, not on 2"),
        ("cooperative", 8, 8, "runs on one GPU, not on 8"),
        ("hierarchical", 1, 1, "a leader needs at least one other agent"),
        ("hierarchical", 4, 2, "4 GPUs for 2 agents: 2 would stay empty"),
    ],
)
def test_a_cell_that_makes_no_sense_is_unfit_with_a_reason(mode, gpus, agents, reason):
    assert MODES[mode].unfit(cell(mode, gpus, agents)) == reason


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("agents", [1, 2, 5, 8])
def test_every_fit_cell_gives_consistent_deployments_that_use_the_whole_crew(mode, gpus, agents):
    if MODES[mode].unfit(cell(mode, gpus, agents)) is not None:
        return
    made = attempts(mode, gpus, agents)
    assert made
    assert made == attempts(mode, gpus, agents), "a mode is a pure function"
    for deployment in made:
        assert {s.agent for s in deployment.steps} == set(range(agents))
        assert set(deployment.devices) <= set(range(gpus))
    assert made[-1].devices == tuple(range(gpus))


def test_modes_whose_steps_are_independent_do_the_same_work():
    workloads = {m: attempts(m, agents=4)[-1].workload for m in ("parallel", "sequential", "shared")}
    assert set(workloads.values()) == {"explain"}
    assert only("cooperative").workload == "contribute"
    assert only("hierarchical").workload == "plan+work+summarise"


def test_a_deployment_that_contradicts_itself_is_refused():
    from crewbench.deployment import Deployment

    worker, step = Worker("w", (0,), "eager"), Step("s", "w", 0, "explain")
    for workers, steps, lifetime in (
        ((worker, worker), (step,), "trial"),
        ((worker,), (), "trial"),
        ((worker,), (step, step), "trial"),
        ((worker,), (Step("s", "other", 0, "explain"),), "trial"),
        ((worker,), (Step("s", "w", 0, "explain", after=("later",)),), "trial"),
        ((worker, Worker("v", (0,), "eager")), (step,), "step"),
        ((Worker("w", (), "eager"),), (step,), "trial"),
        ((Worker("w", (0,), "eager", concurrency=0),), (step,), "trial"),
    ):
        with pytest.raises(DeploymentError):
            Deployment(workers, steps, lifetime)
