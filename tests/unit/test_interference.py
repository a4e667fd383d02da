"""How much agents slow each other: neighbours, what counts as alone, and ratios, by hand."""

import pytest

from crewbench import interference
from crewbench.interference import Beside, Seen
from crewbench.records import AgentRow, Status, WorkerRow

CELL = {
    "mode": "shared", "gpus": 1, "agents": 2, "engine": "eager", "start": "process", "variant": "base",
    "compile_cache": "none", "workload": "explain", "host": "box",
}  # fmt: skip


def step(name: str, worker: str, start: float, end: float, rnd: int = 1, **fields) -> AgentRow:
    """16 tokens in the step's whole time but a tenth of a second, the first after a quarter of a second."""
    row = AgentRow(
        rnd, "warm", 1, name, name, worker, 0, Status.OK,
        started_at_s=start, ended_at_s=end, prefill_s=0.25, decode_s=end - start - 0.35,
        prompt_tokens=260, output_tokens=16,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(row, field, value)
    return row


def worker(name: str, *devices: str) -> list[WorkerRow]:
    return [WorkerRow(name, 0, 1, "process", device_uuid=device) for device in devices]


def relations(steps, workers) -> dict[str, tuple[int, float]]:
    return {b.relation: (b.steps, b.others) for b in interference.of_trial(steps, workers)}


def test_a_token_costs_prefill_and_decode_over_all_tokens():
    assert interference.seconds_per_token(step("a", "w", 0.0, 1.7)) == pytest.approx(1.6 / 16)
    assert interference.seconds_per_token(step("a", "w", 0, 1, decode_s=None)) is None
    assert interference.seconds_per_token(step("a", "w", 0, 1, output_tokens=0)) is None


def test_agents_on_one_worker_are_neighbours_there():
    steps = [step("a", "w", 0.0, 2.0), step("b", "w", 1.0, 3.0)]
    assert relations(steps, worker("w", "gpu0")) == {"worker": (2, 0.5)}


def test_two_workers_on_a_device_share_the_device_and_on_two_devices_the_host():
    steps = [step("a", "w0", 0.0, 2.0), step("b", "w1", 0.0, 2.0)]
    assert relations(steps, worker("w0", "gpu0") + worker("w1", "gpu0")) == {"device": (2, 1.0)}
    assert relations(steps, worker("w0", "gpu0") + worker("w1", "gpu1")) == {"host": (2, 1.0)}


def test_copies_that_share_one_of_their_devices_share_a_device():
    steps = [step("a", "w0", 0.0, 2.0), step("b", "w1", 0.0, 2.0)]
    held = worker("w0", "gpu0", "gpu1") + worker("w1", "gpu1", "gpu2")
    assert relations(steps, held) == {"device": (2, 1.0)}


def test_the_nearest_neighbour_counts_however_short_and_the_farther_ones_do_not():
    # c, on another device, works beside a all the time; b, on a's device, for half of it.
    steps = [step("a", "w0", 0.0, 2.0), step("b", "w1", 1.0, 3.0), step("c", "w2", 0.0, 3.0)]
    held = worker("w0", "gpu0") + worker("w1", "gpu0") + worker("w2", "gpu1")
    assert relations(steps, held) == {"device": (2, 0.5), "host": (1, pytest.approx(4 / 3))}


def test_agents_in_turn_have_nobody_beside_them():
    steps = [step("a", "w", 0.0, 2.0), step("b", "w", 2.0, 4.0), step("a", "w", 4.0, 6.0, rnd=2)]
    assert relations(steps, worker("w", "gpu0")) == {"none": (3, 0.0)}


def test_a_step_that_failed_is_a_neighbour_and_is_not_measured():
    steps = [step("a", "w", 0.0, 2.0), step("b", "w", 0.0, 2.0, status=Status.TIMEOUT)]
    assert relations(steps, worker("w", "gpu0")) == {"worker": (1, 1.0)}


def test_round_0_and_earlier_attempts_are_left_out():
    steps = [step("a", "w", 0.0, 2.0, rnd=0), step("a", "w", 2.0, 4.0, attempt=0), step("a", "w", 5.0, 7.0)]
    assert relations(steps, worker("w", "gpu0")) == {"none": (1, 0.0)}


@pytest.mark.parametrize(
    ("agents", "workers", "alone"),
    [
        (1, worker("w", "gpu0"), True),
        (1, worker("w", "gpu0", "gpu1"), True),
        (1, worker("w0", "gpu0") + worker("w1", "gpu0"), False),  # a second copy lies on its device
        (2, worker("w", "gpu0"), False),
    ],
)
def test_alone_is_one_agent_with_a_worker_and_its_devices_to_itself(agents, workers, alone):
    beside = interference.of_trial([step("a", workers[0].worker, 0.0, 2.0)], workers)
    assert interference.is_alone(agents, beside, workers) is alone


def seen(repeat: int, s_per_token: float, relation: str = "none", tokens: float = 16, **cell) -> Seen:
    """An agent alone unless it has a relation."""
    beside = Beside(relation, 2, 1.0, s_per_token, 260, tokens, 1)
    cell = {**CELL, "agents": 1 if relation == "none" else 2, **cell}
    return Seen(cell, repeat, f"{cell['mode']}, 1 agent", (beside,), relation == "none")


def slowdowns(*trials: Seen) -> list[float | None]:
    return [one.slowdown for trial in interference.compare(trials) for one in trial.beside if not trial.alone]


def test_a_slowdown_is_over_the_agent_alone_in_the_same_repeat():
    assert slowdowns(seen(1, 0.01), seen(2, 0.02), seen(1, 0.03, "worker"), seen(2, 0.04, "worker")) == [
        pytest.approx(3.0),
        pytest.approx(2.0),
    ]


def test_any_modes_single_agent_is_the_one_alone():
    assert slowdowns(seen(1, 0.01, mode="parallel"), seen(1, 0.03, "worker")) == [pytest.approx(3.0)]


def test_of_several_that_were_alone_the_one_with_most_repeats_is_taken():
    singles = [seen(1, 0.03, mode="parallel"), seen(1, 0.01, mode="served"), seen(2, 0.01, mode="served")]
    found = interference.compare([*singles, seen(1, 0.02, "worker")])[-1].beside[0]
    assert (found.alone, found.slowdown) == ("served, 1 agent", pytest.approx(2.0))


@pytest.mark.parametrize(
    "other", [{"engine": "vllm"}, {"start": "zygote"}, {"variant": "odd"}, {"host": "west"},
              {"compile_cache": "filled"}]
)  # fmt: skip
def test_another_engine_start_variant_or_host_is_no_comparison(other):
    (one,) = interference.compare([seen(1, 0.01, **other), seen(1, 0.02, "worker")])[-1].beside
    assert one.slowdown is None
    which = "engine eager, process start, variant base, this host"
    assert one.note == f"not measured: no agent was measured alone ({which})"


@pytest.mark.parametrize("other", [{"workload": "plan+work"}, {"tokens": 32}])
def test_an_agent_alone_that_did_other_work_is_no_comparison(other):
    (one,) = interference.compare([seen(1, 0.01, **other), seen(1, 0.02, "worker")])[-1].beside
    assert one.note == "not measured: the agent that was measured alone did other work"


def test_a_repeat_without_its_agent_alone_is_named():
    (one,) = interference.compare([seen(1, 0.01), seen(2, 0.02, "worker")])[-1].beside
    assert one.slowdown is None
    assert one.note == "not measured: no repeat 2 of shared, 1 agent"


def test_an_estimate_is_paired_by_repeat_and_has_an_interval():
    trials = interference.compare(
        [seen(r, alone) for r, alone in ((1, 0.01), (2, 0.02), (3, 0.04))]
        + [seen(r, slow, "worker") for r, slow in ((1, 0.03), (2, 0.06), (3, 0.12))]
    )
    ratio, alone = interference.estimates(trials[3:])["worker"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))
    assert (ratio.n, alone) == (3, "shared, 1 agent")


def test_an_estimate_that_is_not_there_says_why():
    trials = interference.compare([seen(1, 0.03, "worker")])
    ratio, _ = interference.estimates(trials)["worker"]
    assert ratio.value is None
    assert "no agent was measured alone" in ratio.reason
