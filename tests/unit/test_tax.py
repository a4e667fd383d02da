"""What the agents' framework costs, against numbers worked out by hand."""

import pytest

from crewbench import tax
from crewbench.deployment import Deployment, Step, Worker
from crewbench.records import AgentRow, RoundRow, Status
from crewbench.stats import Estimate

TWO = Deployment(
    (Worker("worker", (0,), "eager", concurrency=2),),
    (Step("one", "worker", 0, "explain"), Step("two", "worker", 1, "explain")),
)
CHAIN = Deployment(
    (Worker("worker", (0,), "eager"),),
    (Step("one", "worker", 0, "explain"), Step("two", "worker", 1, "explain", after=("one",))),
)


def a_round(number: int, start: float, end: float, status: str = Status.OK, attempt: int = 1) -> RoundRow:
    return RoundRow(number, "warm" if number else "cold", attempt, 1, start, end, end - start, status=status)


def step(number: int, name: str, start: float, end: float, phase: str = "warm", **fields) -> AgentRow:
    row = AgentRow(
        number, phase, 1, name, f"agent {name}", "worker", 0, Status.OK,
        queued_at_s=start, started_at_s=start, ended_at_s=end,
        prompt_tokens=260, output_tokens=16, llm_calls=1, task_tokens=180,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(row, field, value)
    return row


ROUNDS = [a_round(0, 0.0, 9.0), a_round(1, 10.0, 12.0), a_round(2, 12.0, 15.0)]
AGENTS = [
    step(0, "one", 5.0, 9.0, "cold"),
    step(0, "two", 5.0, 8.0, "cold"),
    step(1, "one", 10.0, 12.0),
    step(1, "two", 10.0, 11.0),
    step(2, "one", 12.0, 15.0),
    step(2, "two", 12.0, 14.0, prompt_tokens=530, llm_calls=2),
]
REPLAYS = [
    step(1, "one", 15.0, 16.5, "replay"),
    step(1, "two", 15.0, 15.5, "replay"),
    step(2, "one", 17.0, 18.5, "replay"),
    step(2, "two", 17.0, 18.0, "replay"),
]


def measure(agents=AGENTS, replays=REPLAYS, rounds=ROUNDS, deployment=TWO, asked_for=True) -> tax.Tax:
    return tax.of_trial(rounds, agents, replays, deployment, asked_for)


def test_a_warm_round_stands_against_its_replay():
    # Warm 2 and 3 s, replays 1.5 s each: 2.5 / 1.5, one second more.
    found = measure()
    assert (found.warm_s, found.replay_s) == (2.5, 1.5)
    assert found.added_s == 1.0
    assert found.warm_over_replay == pytest.approx(5 / 3)
    assert found.added_share_pct == pytest.approx(40.0)
    assert found.note == ""


def test_a_replay_runs_from_the_first_that_was_queued_to_the_last_that_ended():
    rows = [step(1, "one", 3.0, 4.0, "replay", queued_at_s=2.0), step(1, "two", 4.0, 6.5, "replay")]
    assert tax.replay_makespans_s(rows) == {1: 4.5}


def test_each_step_has_what_was_added_to_it():
    # one: warm (2 + 3) / 2, replay 1.5; two: warm (1 + 2) / 2, replay (0.5 + 1) / 2.
    one, two = measure().steps
    assert (one.added_ms, two.added_ms) == (1000.0, 750.0)
    assert (one.added_tokens, two.added_tokens) == (80.0, 215.0)
    assert (one.added_calls, two.added_calls) == (0.0, 0.5)
    assert measure().added_ms_per_step == 875.0
    assert measure().added_tokens_per_step == 147.5
    assert measure().added_calls_per_step == 0.25


def test_words_of_others_in_a_prompt_are_not_the_frameworks():
    one, two = measure(deployment=CHAIN).steps
    assert (one.added_tokens, two.added_tokens) == (80.0, None)
    assert measure(deployment=CHAIN).added_tokens_per_step == 80.0
    assert measure(deployment=None).added_tokens_per_step is None


def test_a_replay_with_a_step_that_failed_is_no_replay():
    failed = [*REPLAYS[:3], step(2, "two", 17.0, 17.2, "replay", status=Status.TIMEOUT)]
    found = measure(replays=failed)
    assert (found.replays, found.replay_s) == (1, 1.5)
    assert found.steps[1].replay_s == 0.5


def test_a_warm_round_that_failed_is_left_out():
    rounds = [*ROUNDS[:2], a_round(2, 12.0, 15.0, Status.ERROR)]
    assert (measure(rounds=rounds).warm_s, measure(rounds=rounds).warm_rounds) == (2.0, 1)


def test_only_the_last_attempt_counts():
    rounds = [a_round(1, 0.0, 100.0, Status.OOM, attempt=0), *ROUNDS]
    assert measure(rounds=rounds).warm_s == 2.5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"asked_for": False, "replays": []}, "replays were off (config key replay)"),
        ({"rounds": ROUNDS[:1]}, "there was no warm round"),
        ({"rounds": [a_round(1, 0, 1, Status.OOM)]}, "no warm round worked"),
        ({"replays": []}, "nothing was replayed"),
        ({"replays": [step(1, "one", 0, 1, "replay", status=Status.SKIPPED)]}, "no replay worked"),
    ],
)
def test_what_was_not_measured_says_why(change, why):
    found = measure(**change)
    assert found.note == f"not measured: {why}"
    assert (found.added_s, found.warm_over_replay, found.added_share_pct) == (None, None, None)


def test_a_ratio_is_a_share_of_the_warm_makespan():
    assert tax.share_pct(1.25) == pytest.approx(20.0)
    assert tax.share_pct(0.8) == pytest.approx(-25.0)
    assert tax.share_pct(None) is None


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(1.03, 1.02, 1.04, 10), "met"),
        (Estimate(1.03, 1.02, 1.04, 9), "inside, but 10 trials are needed to say so"),
        (Estimate(1.03, 1.01, 1.06, 10), "not settled"),
        (Estimate(1.20, 1.10, 1.30, 3), "not met"),
        (Estimate(1.03, None, None, 1), "not estimable"),
        (Estimate(None, None, None, 0), "not estimable"),
    ],
)
def test_a_goal_is_met_only_by_the_whole_interval_of_enough_trials(estimate, said):
    assert tax.against_goal(estimate, 1.05) == said
