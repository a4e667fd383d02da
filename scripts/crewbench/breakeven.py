"""After how many calls a dearer start is repaid by cheaper calls: a line against a line.

n calls cost start + n · call. What starts later and calls faster is ahead from
n* = (start_b - start_a) / (call_a - call_b) on. Each repeat gives a start and a call of both sides, on one
host; a call is one agent's task, and costs the crew its makespan over the number of its tasks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crewbench import cells, metrics, stats
from crewbench.records import AgentRow, RoundRow, Status, WorkerRow
from crewbench.runners import RUNNERS, RunnerInfo
from crewbench.start import STARTS

START = ("spawn", "import", "context", "load", "compile")
"""The stages of round 0 that are a start: before anything is inferred."""

RESIDENT, ENGINE, RUNNER = "resident", "engine", "runner"

COMPARISONS = {
    RESIDENT: "a resident worker instead of a fresh one for each call",
    ENGINE: "another engine in the same deployment",
    RUNNER: "a server or an actor instead of processes that hold the model",
}
"""What is compared, in words."""

BESIDE = ("agents", "gpus", "host", "workload")
"""What the two sides of a pair have in common, besides equal numbers of tasks and tokens."""

BASE = "base"
"""The variant without options, which every config has."""

OWN = ("mode", "engine", "start", "variant", "compile_cache")
"""What they may differ in."""

SIDES = ("comparison", *BESIDE, *(f"{side}_{name}" for side in "ab" for name in OWN))
"""The columns that say what is compared."""

COLUMNS = (
    *SIDES,
    *("n", "start_a_s", "start_b_s", "call_a_s", "call_b_s", "saved_pct", "saved_low_pct", "saved_high_pct"),
    *("zygote_s", "calls_per_round", "outcome", "calls", "low", "high", "note"),
)
REPEAT_COLUMNS = (*(*SIDES, "repeat", "start_a_s", "start_b_s", "call_a_s", "call_b_s", "zygote_s", "calls"),)

NEVER, NOT_SHOWN, AT_ONCE, REPAID = "never", "not shown", "at once", "repaid"
WITHOUT = (NEVER, NOT_SHOWN)
"""The outcomes that have no n*."""


@dataclass(frozen=True, slots=True)
class Costs:
    """One trial's last attempt, in seconds. `start_s` is one start of all its workers, `call_s` a warm call,
    `fresh_call_s` a call of round 0 where each had a worker of its own (else None). `calls` are those of a
    round, `tokens` what they put out; `zygote_s` is what the zygote took, which no start counts."""

    start_s: float
    call_s: float
    fresh_call_s: float | None
    calls: int
    tokens: int
    runner: str
    zygote_s: float | None = None


def of_trial(
    rounds: Sequence[RoundRow],
    agents: Sequence[AgentRow],
    workers: Sequence[WorkerRow],
    zygote_s: float | None = None,
) -> Costs | None:
    """What a trial says of starting and of calling; None where no cold or no warm round worked.

    start = the stages spawn to compile on round 0's critical path; a mode that starts its worker anew for
    each step has as many starts on it as the worker has lives, and one is counted. call = median warm
    makespan / tasks of a round. fresh call = round 0's makespan / its tasks, if each was the only one of its
    worker's life."""
    last = max((r.attempt for r in rounds), default=0)
    final = [r for r in rounds if r.attempt == last and r.status == Status.OK]
    cold = next((r for r in final if r.round == 0), None)
    warm_s = metrics.median(r.makespan_s for r in final if r.round > 0)
    steps = [a for a in agents if a.attempt == last and a.round == 0]
    if cold is None or warm_s is None or not steps:
        return None
    lives = Counter((a.worker, a.worker_life) for a in steps)
    starts = max(Counter(worker for worker, _ in lives).values())
    return Costs(
        sum(getattr(cold, f"{stage}_s") for stage in START) / starts,
        warm_s / len(steps),
        cold.makespan_s / len(steps) if max(lives.values()) == 1 else None,
        len(steps),
        sum(a.output_tokens or 0 for a in steps),
        next((w.runner for w in workers if w.attempt == last), ""),
        zygote_s,
    )


@dataclass(frozen=True, slots=True)
class Repeat:
    """Both sides in one repeat, in seconds. `zygote_s` is the zygote's own start, which neither counts."""

    start_a_s: float
    start_b_s: float
    call_a_s: float
    call_b_s: float
    zygote_s: float | None = None

    @property
    def calls(self) -> float | None:
        """(start_b - start_a) / (call_a - call_b); None where b's calls are not the cheaper ones."""
        slope = self.call_a_s - self.call_b_s
        return max(0.0, self.start_b_s - self.start_a_s) / slope if slope > 0 else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides of a comparison, by repeat. `a` and `b` are cells; where one trial has both, they are equal.
    `calls_per_round` is how many calls the crew makes in a round."""

    comparison: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    repeats: Mapping[int, Repeat]
    calls_per_round: int

    @property
    def saved(self) -> stats.Estimate:
        """1 - call_b / call_a, the share of a call that b saves: mean over repeats with its interval."""
        return stats.arithmetic_mean(list(self._saved().values()))

    @property
    def outcome(self) -> str:
        """never: b's calls are not cheaper; not shown: they are, but the interval of what one saves includes
        0; at once: they are, and b starts no later; else repaid."""
        saved = self.saved
        if saved.value <= 0:
            return NEVER
        if saved.has_interval and saved.low <= 0:
            return NOT_SHOWN
        return REPAID if sum(self._later().values()) > 0 else AT_ONCE

    @property
    def calls(self) -> stats.Estimate:
        """n*: mean((start_b - start_a) / call_a) / mean(1 - call_b / call_a), with Fieller's interval for
        paired values, cut at 0. Without a value where the outcome is never or not shown.

        Both are taken in calls of a in the same repeat: what makes a repeat slow makes its starts and its
        calls slow, and it weighs no more for that."""
        if self.outcome in WITHOUT:
            return stats.Estimate(None, None, None, len(self.repeats), _not_cheaper(self.saved))
        found = stats.ratio_of_means(self._later(), self._saved())
        low, high = (max(0.0, found.low), max(0.0, found.high)) if found.has_interval else (None, None)
        return stats.Estimate(max(0.0, found.value), low, high, found.n, found.reason)

    def _later(self) -> dict[int, float]:
        return {k: (r.start_b_s - r.start_a_s) / r.call_a_s for k, r in self.repeats.items()}

    def _saved(self) -> dict[int, float]:
        return {k: 1 - r.call_b_s / r.call_a_s for k, r in self.repeats.items()}

    def row(self) -> dict[str, Any]:
        """What the table `breakeven` says of the pair: means over its repeats, and n*."""
        calls, saved = self.calls, self.saved
        repeats = list(self.repeats.values())
        mean = {
            name: sum(getattr(r, name) for r in repeats) / len(repeats)
            for name in ("start_a_s", "start_b_s", "call_a_s", "call_b_s")
        }
        return {
            **self.sides(),
            "n": len(repeats),
            **mean,
            **{
                name: None if share is None else 100 * share
                for name, share in (
                    ("saved_pct", saved.value),
                    ("saved_low_pct", saved.low),
                    ("saved_high_pct", saved.high),
                )
            },
            "zygote_s": metrics.median(r.zygote_s for r in repeats),
            "calls_per_round": self.calls_per_round,
            "outcome": self.outcome,
            "calls": calls.value,
            "low": calls.low,
            "high": calls.high,
            "note": calls.reason,
        }

    def repeat_rows(self) -> list[dict[str, Any]]:
        """What the table `breakeven_repeats` says of the pair: a row per repeat."""
        names = ("start_a_s", "start_b_s", "call_a_s", "call_b_s", "zygote_s", "calls")
        return [
            {**self.sides(), "repeat": repeat, **{name: getattr(r, name) for name in names}}
            for repeat, r in sorted(self.repeats.items())
        ]

    def sides(self) -> dict[str, Any]:
        """What is compared, and both cells as far as they differ."""
        return {
            "comparison": self.comparison,
            **{name: self.b[name] for name in BESIDE},
            **{f"{side}_{name}": cell[name] for side, cell in (("a", self.a), ("b", self.b)) for name in OWN},
        }


def _not_cheaper(saved: stats.Estimate) -> str:
    if saved.value <= 0:
        return "its calls are not cheaper"
    return "its calls are not shown to be cheaper: the interval of what one saves includes 0"


Side = tuple[Mapping[str, Any], Mapping[int, Costs]]
"""A cell and its repeats."""


def pairs(trials: Iterable[tuple[Mapping[str, Any], int, Costs]]) -> list[Pair]:
    """Every pair of the trials' (cell, repeat, costs) that makes sense, within one host.

    A cell whose calls had workers of their own is compared with itself, resident. Two engines are compared in
    the same mode and start state, and whatever is not held by plain processes with each mode that is, if they
    have devices, agents and work in common. What the other side does not know, a start state or a variant,
    meets what it has instead."""
    sides: dict[tuple, Side] = {}
    grouped: dict[tuple, dict[int, Costs]] = defaultdict(dict)
    cell_of: dict[tuple, Mapping[str, Any]] = {}
    for cell, repeat, costs in trials:
        key = tuple(cell[name] for name in cells.WHERE)
        grouped[key][repeat], cell_of[key] = costs, cell
    sides = {key: (cell_of[key], repeats) for key, repeats in grouped.items()}
    known = list(sides.values())
    found = [_resident(*side) for side in known]
    found += [
        _pair(ENGINE, *_dearer_last(one, other))
        for i, one in enumerate(known)
        for other in known[:i]
        if _engines(one, other)
    ]
    found += [_pair(RUNNER, a, b) for a in known for b in known if _runners(a, b, known)]
    return [pair for pair in found if pair is not None]


def _resident(cell: Mapping[str, Any], repeats: Mapping[int, Costs]) -> Pair | None:
    both = {
        repeat: Repeat(0.0, c.start_s, c.fresh_call_s, c.call_s, c.zygote_s)
        for repeat, c in repeats.items()
        if c.fresh_call_s is not None
    }
    return Pair(RESIDENT, cell, cell, both, _calls(repeats)) if both else None


def _pair(comparison: str, a: Side, b: Side) -> Pair | None:
    (cell_a, ours), (cell_b, theirs) = a, b
    both = {
        repeat: Repeat(
            one.start_s,
            theirs[repeat].start_s,
            one.call_s,
            theirs[repeat].call_s,
            one.zygote_s if theirs[repeat].zygote_s is None else theirs[repeat].zygote_s,
        )
        for repeat, one in ours.items()
        if repeat in theirs and (one.calls, one.tokens) == (theirs[repeat].calls, theirs[repeat].tokens)
    }
    return Pair(comparison, cell_a, cell_b, both, _calls(ours)) if both else None


def _calls(repeats: Mapping[Hashable, Costs]) -> int:
    return max(c.calls for c in repeats.values())


def _runner(side: Side) -> RunnerInfo | None:
    """What holds the side's workers; None for one that this version has not."""
    return RUNNERS.get(next(iter(side[1].values())).runner)


def _beside(one: Side, other: Side) -> bool:
    """Whether both have in common what a pair must; `conditions` are what a variant sets of them."""
    same = all(one[0][name] == other[0][name] for name in BESIDE)
    return same and one[0].get("conditions") == other[0].get("conditions")


def _engines(one: Side, other: Side) -> bool:
    same = all(one[0][name] == other[0][name] for name in ("mode", "start", "variant"))
    return same and _beside(one, other) and one[0]["engine"] != other[0]["engine"]


def _dearer_last(one: Side, other: Side) -> tuple[Side, Side]:
    """Two sides, the one that takes longer to start last."""
    by_start = sorted((one, other), key=lambda side: metrics.median(c.start_s for c in side[1].values()))
    return by_start[0], by_start[1]


def _runners(a: Side, b: Side, known: Sequence[Side]) -> bool:
    """Whether a is held by the runner that others are compared with and b is not, and a is what should stand
    beside b among the sides of its mode."""
    ours, theirs = _runner(a), _runner(b)
    if ours is None or theirs is None or not ours.baseline or theirs.baseline:
        return False
    usual = [
        side[0]
        for side in known
        if side[0]["mode"] == a[0]["mode"] and (_runner(side) or theirs).baseline and _beside(side, b)
    ]
    own = b[0]["start"]
    starts = {own}
    if not any(cell["start"] == own for cell in usual):
        # A server is never forked from a zygote: without a process like its own, those that are stand beside
        # it, if they find as much on disk and in the page cache.
        found = {cell["start"] for cell in usual} - set(theirs.starts)
        starts = {start for start in found if _finds(start) == _finds(own)}
    usual = [cell for cell in usual if cell["start"] in starts]
    variants = {cell["variant"] for cell in usual}
    wanted = next(({v} for v in (b[0]["variant"], BASE) if v in variants), variants)
    return a[0] in usual and a[0]["variant"] in wanted


def _finds(start: str) -> tuple[bool, bool]:
    return STARTS[start].cached, STARTS[start].keeps_compiled
