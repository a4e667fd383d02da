"""How much agents slow each other: an agent beside others against an agent alone.

An agent's nearest neighbour is who shares most with it while it works: the worker, else the device, else only
the host. What is compared is the engine's time for a token, prefill and decode, in warm rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crewbench import metrics, stats
from crewbench.records import AgentRow, Status, WorkerRow

RELATIONS = {
    "worker": "others on the same worker",
    "device": "others on the same device",
    "host": "others on the same host",
    "none": "nobody at the same time",
}
"""What an agent shares with its nearest neighbour, the nearest first."""

SAME = ("engine", "start", "variant", "compile_cache", "host")
"""What an agent and the one alone must have in common, besides equal work."""


COLUMNS = (
    *("relation", "steps", "others", "prompt_tokens", "output_tokens", "s_per_token"),
    *("alone", "alone_s_per_token", "slowdown", "note"),
)
"""What the table `interference` says besides the trial."""


@dataclass(frozen=True, slots=True)
class Beside:
    """One trial's warm steps of one relation: medians over steps and rounds. `others` is how many agents of
    that relation worked at the same time, averaged over a step's time; `devices` how many hold a copy.
    `alone_s_per_token` is the single agent's in the same repeat; `note` says why there is none."""

    relation: str
    steps: int
    others: float
    s_per_token: float
    prompt_tokens: float | None
    output_tokens: float
    devices: int
    alone: str = ""
    alone_s_per_token: float | None = None
    note: str = ""

    @property
    def slowdown(self) -> float | None:
        """Seconds per token here / seconds per token alone: 1 is not slowed."""
        return slowdown(self.alone_s_per_token, self.s_per_token) if self.alone_s_per_token else None

    def row(self) -> dict[str, Any]:
        """What the table `interference` says of it."""
        return {name: getattr(self, name) for name in COLUMNS}


def slowdown(alone_s: float, measured_s: float) -> float | None:
    """measured_s / alone_s: 2 takes twice as long as alone."""
    return measured_s / alone_s if alone_s > 0 else None


def seconds_per_token(step: AgentRow) -> float | None:
    """(prefill_s + decode_s) / output_tokens, in s/token."""
    if None in (step.prefill_s, step.decode_s) or not step.output_tokens:
        return None
    return (step.prefill_s + step.decode_s) / step.output_tokens


def of_trial(agents: Sequence[AgentRow], workers: Sequence[WorkerRow]) -> list[Beside]:
    """The warm steps of a trial's last attempt by their nearest neighbour. Steps that did not work count as
    neighbours, for they worked until they failed, and are not measured."""
    last = max((a.attempt for a in agents), default=0)
    holds: dict[tuple[str, int], set[str]] = defaultdict(set)
    for worker in workers:
        if worker.attempt == last:
            holds[worker.worker, worker.worker_life].add(worker.device_uuid)
    rounds: dict[int, list[AgentRow]] = defaultdict(list)
    for step in agents:
        if step.attempt == last and step.round > 0 and None not in (step.started_at_s, step.ended_at_s):
            rounds[step.round].append(step)
    found: dict[str, list[tuple[AgentRow, float]]] = defaultdict(list)
    for steps in rounds.values():
        for step in steps:
            if step.status == Status.OK and seconds_per_token(step) is not None:
                relation, others = nearest(step, [s for s in steps if s is not step], holds)
                found[relation].append((step, others))
    return [
        Beside(
            relation,
            len(found[relation]),
            metrics.median(others for _, others in found[relation]),
            metrics.median(seconds_per_token(step) for step, _ in found[relation]),
            metrics.median(step.prompt_tokens for step, _ in found[relation]),
            metrics.median(step.output_tokens for step, _ in found[relation]),
            max(len(holds[_life(step)]) for step, _ in found[relation]),
        )
        for relation in RELATIONS
        if relation in found
    ]


def nearest(
    step: AgentRow, peers: Iterable[AgentRow], holds: Mapping[tuple[str, int], set[str]]
) -> tuple[str, float]:
    """The closest relation of a step to those that overlap it in time, and how many of that relation there
    were at once: the sum of their overlaps over the step's own time."""
    shared: dict[str, float] = defaultdict(float)
    own_s = step.ended_at_s - step.started_at_s
    for peer in peers:
        both_s = min(step.ended_at_s, peer.ended_at_s) - max(step.started_at_s, peer.started_at_s)
        if both_s > 0:
            shared[relation(_life(step), _life(peer), holds)] += both_s
    for name in RELATIONS:
        if name in shared:
            return name, shared[name] / own_s
    return "none", 0.0


def relation(one: tuple[str, int], other: tuple[str, int], holds: Mapping[tuple[str, int], set[str]]) -> str:
    """What two workers' lives share."""
    if one == other:
        return "worker"
    return "device" if holds.get(one, set()) & holds.get(other, set()) else "host"


def _life(step: AgentRow) -> tuple[str, int]:
    return step.worker, step.worker_life


def is_alone(agents: int, beside: Sequence[Beside], workers: Sequence[WorkerRow]) -> bool:
    """Whether a trial's only agent had a worker and its devices to itself: any mode's cell with one agent."""
    last = max((w.attempt for w in workers), default=0)
    held: dict[str, set[str]] = defaultdict(set)
    for worker in workers:
        if worker.attempt == last:
            held[worker.device_uuid].add(worker.worker)
    to_itself = all(len(names) == 1 for names in held.values())
    return agents == 1 and [b.relation for b in beside] == ["none"] and to_itself


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial as this comparison sees it. `cell` is what makes its cell, workload and host included; `name`
    says it in words; `alone`: its only agent had a worker and devices to itself."""

    cell: Mapping[str, Any]
    repeat: int
    name: str
    beside: tuple[Beside, ...]
    alone: bool

    @property
    def key(self) -> tuple:
        return tuple(self.cell[name] for name in SAME)


def compare(trials: Sequence[Seen]) -> list[Seen]:
    """The same trials, each with the single agent of its repeat beside it, or why there is none.

    The single agent is that of the cell with one agent, whatever its mode, with the same engine, start,
    variant, compiled code and host that does the same work: the same tasks, the same number of output tokens,
    a copy on as many devices. Of several such cells it is the one with most repeats, the first by name."""
    singles: dict[tuple, dict[str, dict[int, Seen]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials:
        if trial.alone:
            singles[trial.key][trial.name][trial.repeat] = trial
    return [
        replace(trial, beside=tuple(_paired(trial, one, singles.get(trial.key, {})) for one in trial.beside))
        for trial in trials
    ]


def _paired(trial: Seen, one: Beside, singles: Mapping[str, Mapping[int, Seen]]) -> Beside:
    if trial.alone:
        return replace(one, note="is the agent alone")
    if not singles:
        which = f"engine {trial.cell['engine']}, {trial.cell['start']} start, variant {trial.cell['variant']}"
        return replace(one, note=f"not measured: no agent was measured alone ({which}, this host)")
    same = {
        name: by_repeat
        for name, by_repeat in singles.items()
        if all(_same_work(trial, one, single) for single in by_repeat.values())
    }
    if not same:
        return replace(one, note="not measured: the agent that was measured alone did other work")
    name = min(same, key=lambda name: (-len(same[name]), name))
    found = same[name].get(trial.repeat)
    if found is None:
        return replace(one, alone=name, note=f"not measured: no repeat {trial.repeat} of {name}")
    return replace(one, alone=name, alone_s_per_token=found.beside[0].s_per_token)


def _same_work(trial: Seen, one: Beside, single: Seen) -> bool:
    theirs = single.beside[0]
    equal = (one.output_tokens, one.devices) == (theirs.output_tokens, theirs.devices)
    return equal and trial.cell["workload"] == single.cell["workload"]


def estimates(trials: Iterable[Seen]) -> dict[str, tuple[stats.Estimate, str]]:
    """(slowdown, the cell that was alone) of each relation, over one cell's trials paired by repeat."""
    found: dict[str, list[tuple[int, Beside]]] = defaultdict(list)
    for trial in trials:
        for one in trial.beside:
            found[one.relation].append((trial.repeat, one))
    said = {}
    for name, rows in found.items():
        known = [(repeat, one) for repeat, one in rows if one.alone_s_per_token is not None]
        if not known:
            said[name] = (stats.Estimate(None, None, None, 0, rows[0][1].note), "")
            continue
        alone = {repeat: one.alone_s_per_token for repeat, one in known}
        ours = {repeat: one.s_per_token for repeat, one in known}
        said[name] = (stats.paired(slowdown, alone, ours), known[0][1].alone)
    return said
