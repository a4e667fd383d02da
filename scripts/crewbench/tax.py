"""What the agents' framework costs: warm rounds against replays, the same calls made again without it.

A replay hands the calls of the last warm round straight to the engine, as many at once as the mode had. What
a warm round takes more is CrewAI's, LangChain's and the templates': in seconds, in tokens and in calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crewbench import metrics
from crewbench.deployment import Deployment
from crewbench.records import AgentRow, RoundRow, Status
from crewbench.stats import Estimate

PAIRS_TO_CLAIM = 10
"""Trials from which a limit can be called met (design rule 10)."""


COLUMNS = (
    *("warm_rounds", "replays", "warm_s", "replay_s", "added_s", "warm_over_replay", "added_share_pct"),
    *("added_ms_per_step", "added_tokens_per_step", "added_calls_per_step", "note"),
)
"""What the table `tax` says besides the trial."""

STEP_COLUMNS = (
    *("step", "agent", "warm_s", "replay_s", "added_ms", "prompt_tokens", "task_tokens", "added_tokens"),
    *("llm_calls", "added_calls"),
)
"""What the table `tax_steps` says besides the trial."""


@dataclass(frozen=True, slots=True)
class StepTax:
    """One step of the crew, medians over its warm and its replayed rounds that worked. None: not measured."""

    step: str
    agent: str
    warm_s: float | None = None
    replay_s: float | None = None
    prompt_tokens: float | None = None
    task_tokens: float | None = None
    llm_calls: float | None = None

    @property
    def added_ms(self) -> float | None:
        """1000 · (the step's wall time - its replay's), both from started to ended."""
        if self.warm_s is None or self.replay_s is None:
            return None
        return 1000 * (self.warm_s - self.replay_s)

    @property
    def added_tokens(self) -> float | None:
        """prompt_tokens - task_tokens: ids of the prompt that are neither the agent's nor the task's text."""
        if self.prompt_tokens is None or self.task_tokens is None:
            return None
        return self.prompt_tokens - self.task_tokens

    @property
    def added_calls(self) -> float | None:
        """llm_calls - 1: one call answers a task."""
        return None if self.llm_calls is None else self.llm_calls - 1


@dataclass(frozen=True, slots=True)
class Tax:
    """One trial. `warm_s` and `replay_s` are medians over the rounds that worked; `note` says why there is
    nothing to compare."""

    warm_s: float | None
    replay_s: float | None
    warm_rounds: int
    replays: int
    steps: tuple[StepTax, ...]
    note: str = ""

    @property
    def measured(self) -> bool:
        return self.warm_s is not None and self.replay_s is not None

    @property
    def added_s(self) -> float | None:
        """Warm makespan - replay makespan, in seconds."""
        return self.warm_s - self.replay_s if self.measured else None

    @property
    def warm_over_replay(self) -> float | None:
        """Warm makespan / replay makespan: 1 is a framework that costs nothing."""
        return metrics.speedup(self.warm_s, self.replay_s) if self.measured else None

    @property
    def added_share_pct(self) -> float | None:
        """100 · (warm - replay) / warm: the framework's part of the warm makespan, in %."""
        return metrics.share_pct(self.added_s, self.warm_s) if self.measured else None

    @property
    def added_ms_per_step(self) -> float | None:
        """Mean of the steps' added_ms."""
        return _mean(step.added_ms for step in self.steps)

    @property
    def added_tokens_per_step(self) -> float | None:
        """Mean of the steps' added_tokens, of those whose prompt holds nobody else's words."""
        return _mean(step.added_tokens for step in self.steps)

    @property
    def added_calls_per_step(self) -> float | None:
        """Mean of the steps' added_calls."""
        return _mean(step.added_calls for step in self.steps)

    def row(self) -> dict[str, Any]:
        """What the table `tax` says of the trial."""
        return {name: getattr(self, name) for name in COLUMNS}

    def step_rows(self) -> list[dict[str, Any]]:
        """What the table `tax_steps` says of the trial: a row per step."""
        return [{name: getattr(step, name) for name in STEP_COLUMNS} for step in self.steps]


def of_trial(
    rounds: Sequence[RoundRow],
    agents: Sequence[AgentRow],
    replays: Sequence[AgentRow],
    deployment: Deployment | None,
    asked_for: bool,
) -> Tax:
    """The tax of a trial's last attempt. `asked_for`: whether its config wanted replays.

    A step that reads what others wrote has their words in its prompt, so its tokens cannot be told apart;
    `deployment` says which steps do (None: nobody knows, and no step's are)."""
    last = max((r.attempt for r in rounds), default=0)
    warm = [r for r in rounds if r.attempt == last and r.round > 0]
    worked = {r.round for r in warm if r.status == Status.OK}
    replays = [r for r in replays if r.attempt == last]
    makespans = replay_makespans_s(replays)
    own_words = {step.name for step in deployment.steps if not step.after} if deployment else set()
    steps = []
    for name in dict.fromkeys(a.step for a in agents if a.attempt == last):
        ours = [a for a in agents if a.attempt == last and a.step == name and a.round in worked]
        theirs = [r for r in replays if r.step == name and r.round in makespans]
        alone = name in own_words
        steps.append(
            StepTax(
                name,
                next(a.agent for a in agents if a.step == name),
                _wall_s(ours),
                _wall_s(theirs),
                metrics.median(a.prompt_tokens for a in ours) if alone else None,
                metrics.median(a.task_tokens for a in ours) if alone else None,
                metrics.median(a.llm_calls for a in ours),
            )
        )
    return Tax(
        metrics.median(r.makespan_s for r in warm if r.round in worked),
        metrics.median(makespans.values()),
        len(worked),
        len(makespans),
        tuple(steps),
        _why_not(asked_for, warm, worked, replays, makespans),
    )


def replay_makespans_s(replays: Iterable[AgentRow]) -> dict[int, float]:
    """Last ended - first queued of each replayed round in which every step worked, in seconds, by round."""
    by_round: dict[int, list[AgentRow]] = {}
    for row in replays:
        by_round.setdefault(row.round, []).append(row)
    return {
        number: metrics.makespan_s((r.queued_at_s, r.ended_at_s) for r in rows)
        for number, rows in by_round.items()
        if all(r.status == Status.OK for r in rows)
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _wall_s(rows: Iterable[AgentRow]) -> float | None:
    return metrics.median(r.ended_at_s - r.started_at_s for r in rows)


def _why_not(
    asked_for: bool, warm: Sequence[Any], worked: Iterable[int], replays: Sequence[Any], makespans: Any
) -> str:
    if not asked_for:
        return "not measured: replays were off (config key replay)"
    if not warm:
        return "not measured: there was no warm round"
    if not worked:
        return "not measured: no warm round worked"
    if not replays:
        return "not measured: nothing was replayed"
    return "" if makespans else "not measured: no replay worked"


def share_pct(ratio: float | None) -> float | None:
    """100 · (1 - 1 / ratio): the share of the warm makespan that a ratio of warm to replay stands for."""
    return None if ratio is None or ratio <= 0 else 100 * (1 - 1 / ratio)


def against_goal(found: Estimate, goal: float) -> str:
    """Whether a ratio is at most `goal`: "met" only where the whole interval of enough trials says so."""
    if not found.has_interval:
        return "not estimable"
    if found.high <= goal:
        few = found.n < PAIRS_TO_CLAIM
        return f"inside, but {PAIRS_TO_CLAIM} trials are needed to say so" if few else "met"
    return "not met" if found.low > goal else "not settled"
