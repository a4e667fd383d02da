"""What validity.py judges by: pure functions of plain numbers, without a device, a file or a clock.

A claim such as "≤ 1 % apart" is met when the 95 % interval of at least ten interleaved pairs lies inside the
limit, not by one lucky run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from crewbench import metrics, stats
from crewbench.records import STAGES, Status

LEAST = 10
"""The fewest pairs, or windows, that a claim is judged by."""


class Outcome(StrEnum):
    MET = "met"
    NOT_MET = "NOT MET"
    SHOWN = "shown"  # beside a claim, without a limit of its own
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim and what became of it. `difference_pct`, `low_pct` and `high_pct` are in % of the reference,
    the last two the ends of the 95 % interval; `limit_pct` is how far from 0 they may lie. None: there is
    none. `n` counts pairs, windows, rounds or answers."""

    claim: str
    outcome: Outcome
    what: str
    difference_pct: float | None = None
    low_pct: float | None = None
    high_pct: float | None = None
    limit_pct: float | None = None
    n: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One generation. `seconds` is its inference time: prefill_s + decode_s where both are known, else the
    whole call; `samples` how many the sampler took meanwhile."""

    part: str
    block: int
    place: int
    side: str
    seconds: float
    prefill_s: float | None = None
    decode_s: float | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A GPU's reading: CLOCK_MONOTONIC seconds, W, J since some start, %."""

    at_s: float
    power_w: float | None
    energy_j: float | None
    util_pct: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """Energy between two samples: by the card's counter, and by integrating its power. `gap_s` is the
    longest time between neighbouring samples."""

    start_s: float
    end_s: float
    samples: int
    counter_j: float
    integrated_j: float
    mean_util_pct: float | None
    gap_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The ids of one call in a trial. `work` names what must be equal for the ids to be: the checkpoint's
    hash, its dtype, the engine and the output's length."""

    work: str
    trial_id: str
    mode: str
    attempt: int
    round: int
    agent: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """All answers to the same prompt. `modes` are joined by "|"; `first_difference` says in which trial the
    first answer that differs is, and at which id."""

    agent: str
    prompt_tokens: int
    modes: str
    answers: int
    equal: int
    first_difference: str


def orders(sides: Sequence[str], least: int) -> list[tuple[str, ...]]:
    """The order of the sides in each of `least` blocks or a few more.

    All permutations in turn, in whole turns: every side is as often at each place and as often right after
    each other one, so that what drifts and what a side leaves behind meets all alike. Two sides: ABBA.
    """
    turn = list(itertools.permutations(sides))
    return turn * -(-least // len(turn))


def pairs(rows: Iterable[Measured], ours: str, reference: str) -> list[tuple[Measured, Measured]]:
    """(ours, reference) of every block that has both, in order."""
    blocks: dict[int, dict[str, Measured]] = {}
    for row in rows:
        blocks.setdefault(row.block, {})[row.side] = row
    return [(b[ours], b[reference]) for _, b in sorted(blocks.items()) if ours in b and reference in b]


def ratio(
    claim: str, what: str, limit_pct: float | None, pairs: Iterable[tuple[float, float]], note: str = ""
) -> Verdict:
    """Whether (measured, reference) differ by no more than the limit: the interval on the log of the
    pairs' ratios lies inside it, and there are enough pairs. Without a limit it is only shown."""
    pairs = list(pairs)
    if not pairs:
        return Verdict(claim, Outcome.NOT_MEASURED, what, limit_pct=limit_pct, note=note or "no pair")
    if any(min(pair) <= 0 for pair in pairs):
        note = "; ".join(filter(None, [note, "a value is not positive: it has no ratio"]))
        return Verdict(claim, Outcome.NOT_MET, what, limit_pct=limit_pct, n=len(pairs), note=note)
    found = stats.geometric_mean([measured / reference for measured, reference in pairs])
    difference, low, high = (
        None if x is None else 100 * (x - 1) for x in (found.value, found.low, found.high)
    )
    outcome = Outcome.SHOWN
    if limit_pct is not None:
        inside = found.has_interval and -limit_pct <= low and high <= limit_pct
        outcome = Outcome.MET if inside and found.n >= LEAST else Outcome.NOT_MET
        if found.n < LEAST:
            note = "; ".join(filter(None, [note, f"{found.n} are too few: {LEAST} are needed"]))
    return Verdict(claim, outcome, what, difference, low, high, limit_pct, found.n, note)


def equal_ids(claim: str, what: str, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Verdict:
    """Whether each pair of id lists is the same, and where the first one differs."""
    pairs = list(pairs)
    if not pairs:
        return Verdict(claim, Outcome.NOT_MEASURED, what, note="no pair")
    at = [first_difference(a, b) for a, b in pairs]
    same = at.count(None)
    note = f"{same} of {len(pairs)} equal"
    if same < len(pairs):
        number, place = next((i, d) for i, d in enumerate(at) if d is not None)
        note += f"; pair {number} differs from id {place} on"
    return Verdict(
        claim, Outcome.MET if same == len(pairs) else Outcome.NOT_MET, what, n=len(pairs), note=note
    )


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place, from 0, where two lists of ids differ; one that only ends earlier differs there."""
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def unexplained_pct(row: Mapping[str, str]) -> float:
    """|makespan - Σ stages other than idle| / makespan, in %, of a row of rounds.csv.

    Computed from the stages, not read from `idle_s`: stages that explain more than there was count too."""
    makespan = float(row["makespan_s"])
    explained = sum(float(row[f"{stage}_s"]) for stage in STAGES if stage != "idle")
    return 100 * abs(makespan - explained) / makespan


def stages(claim: str, what: str, limit_pct: float, rounds: Iterable[Mapping[str, str]]) -> Verdict:
    """Whether in every round that worked the stages explain the makespan but for the limit. The difference is
    the worst round's; it has no interval, because every round must hold."""
    worked = [(unexplained_pct(r), r) for r in rounds if r["status"] == Status.OK]
    if not worked:
        return Verdict(claim, Outcome.NOT_MEASURED, what, limit_pct=limit_pct, note="no round that worked")
    worst, row = max(worked, key=lambda found: found[0])
    inside = sum(share <= limit_pct for share, _ in worked)
    note = f"{inside} of {len(worked)} rounds; worst: round {row['round']} of {row['trial_id']}"
    outcome = Outcome.MET if inside == len(worked) else Outcome.NOT_MET
    return Verdict(claim, outcome, what, worst, limit_pct=limit_pct, n=len(worked), note=note)


def windows(samples: Sequence[Sample], start_s: float, end_s: float, length_s: float) -> list[Window]:
    """The samples between two instants cut into windows of at least `length_s` that share their edges.

    The card's counter and its power reading are renewed some ten times a second, each in its own rhythm, so
    an edge may be early or late by such a step. What one window loses by that its neighbour gains. Power is
    integrated by the trapezoidal rule. A window in which a reading is missing is left out.
    """
    inside = [s for s in samples if start_s <= s.at_s <= end_s]
    found, first = [], 0
    for last, sample in enumerate(inside):
        if sample.at_s - inside[first].at_s < length_s:
            continue
        part = inside[first : last + 1]
        first = last
        if all(s.power_w is not None and s.energy_j is not None for s in part):
            found.append(_window(part))
    return found


def _window(part: Sequence[Sample]) -> Window:
    at, power = [s.at_s for s in part], [s.power_w for s in part]
    util = [s.util_pct for s in part if s.util_pct is not None]
    return Window(
        start_s=at[0],
        end_s=at[-1],
        samples=len(part),
        counter_j=part[-1].energy_j - part[0].energy_j,
        integrated_j=metrics.time_mean(at, power) * (at[-1] - at[0]),
        mean_util_pct=sum(util) / len(util) if util else None,
        gap_s=max(b - a for a, b in itertools.pairwise(at)),
    )


def prompts(answers: Iterable[Answer]) -> list[Prompt]:
    """The answers by prompt, for prompts that were answered more than once. The first one of each is what the
    others are compared with."""
    groups: dict[tuple[object, ...], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.work, answer.agent, answer.prompt_ids), []).append(answer)
    found = []
    for (_, agent, prompt_ids), group in groups.items():
        if len(group) < 2:
            continue
        reference = group[0]
        at = [(a, first_difference(reference.output_ids, a.output_ids)) for a in group[1:]]
        differs = [f"round {a.round} of {a.trial_id}, from id {d} on" for a, d in at if d is not None]
        found.append(
            Prompt(
                agent=agent,
                prompt_tokens=len(prompt_ids),
                modes="|".join(sorted({a.mode for a in group})),
                answers=len(group),
                equal=len(group) - len(differs),
                first_difference=differs[0] if differs else "",
            )
        )
    return found


def same_in_modes(claim: str, what: str, found: Sequence[Prompt]) -> Verdict:
    """Whether all answers to a prompt are the same ids, whichever mode gave them. At least one prompt must
    have been answered in two modes, or nothing was compared across modes."""
    modes = sorted({m for p in found if "|" in p.modes for m in p.modes.split("|")})
    if not modes:
        return Verdict(claim, Outcome.NOT_MEASURED, what, note="no prompt was answered in two modes")
    found = [p for p in found if "|" in p.modes]  # others were compared with themselves alone
    compared = sum(p.answers - 1 for p in found)
    equal = sum(p.equal - 1 for p in found)
    note = f"{equal} of {compared} equal; compared across {', '.join(modes)}"
    if equal < compared:
        note += f"; first difference: {next(p.first_difference for p in found if p.first_difference)}"
    return Verdict(claim, Outcome.MET if equal == compared else Outcome.NOT_MET, what, n=compared, note=note)


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as lines of text, each with its note below where it has one."""
    lines = [f"{'claim':<48}{'difference':>11}  {'95 % interval':<21}{'limit':>7}{'n':>5}  verdict"]
    for v in verdicts:
        interval = "" if v.low_pct is None else f"[{v.low_pct:+.2f} %, {v.high_pct:+.2f} %]"
        difference = "" if v.difference_pct is None else f"{v.difference_pct:+.2f} %"
        limit = "" if v.limit_pct is None else f"{v.limit_pct:g} %"
        what = f"  {v.what}" if v.outcome is Outcome.SHOWN else v.what
        lines.append(f"{what:<48}{difference:>11}  {interval:<21}{limit:>7}{v.n:>5}  {v.outcome}")
        if v.note:
            lines.append(f"    {v.note}")
    return "\n".join(lines)
