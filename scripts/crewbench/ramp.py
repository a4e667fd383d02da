"""Which constraint breaks first as a mode gets more agents or GPUs.

Pure functions from the tables to the tables `constraints` and `verdict`. A ramp is what one mode did with one
engine, start state, variant and host, whatever its numbers of agents and GPUs: its points. It is walked from
few agents to many, and for each number of agents from few GPUs to many. The rules stand in docs/method.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import pandas as pd

from crewbench import cells, metrics, stats
from crewbench.engines import ENGINES
from crewbench.records import Status
from crewbench.stats import Estimate
from crewbench.words import count, estimate, number

RAMP = ["mode", "engine", "start", "variant", "compile_cache", "host"]
"""What the points of one ramp have in common."""

CONSTRAINTS = ("memory", "latency", "parallelism", "orchestration")

OVER_GPUS, OVER_AGENTS, OVER_BOTH = "GPUs", "agents", "agents and GPUs"
"""What grew where parallelism is judged."""


PLACES_MAX = 3
"""Points that a sentence names; it counts the others."""


class Outcome(StrEnum):
    BROKE = "broke"
    NOT_REACHED = "not reached"
    NOT_JUDGED = "not judged"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Limits:
    """The config's thresholds that a verdict is made by, with their defaults there."""

    deadline_s: float | None = None
    scaling_efficiency: float = 0.5
    orchestration_share: float = 0.2

    @classmethod
    def of(cls, thresholds: Mapping[str, Any] | None) -> Limits:
        return cls(**{f.name: thresholds[f.name] for f in fields(cls) if f.name in (thresholds or {})})


Point = tuple[int, int]
"""Agents and GPUs: points in this order are the ramp."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One constraint at one point. `at_least`: the threshold is a floor. `settled`: the whole interval lies
    on one side of it (of memory: every trial says the same). `over`: what grew, where that matters."""

    point: Point
    value: float | None
    threshold: float
    broke: bool
    n: int
    settled: bool
    evidence: str
    at_least: bool = False
    over: str = ""

    @property
    def margin_pct(self) -> float | None:
        """100 · (threshold - value) / threshold, the other way round for a floor: below 0 it broke."""
        if self.value is None or not self.threshold:
            return None
        room = self.value - self.threshold if self.at_least else self.threshold - self.value
        return 100 * room / self.threshold


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one constraint along a ramp: where it broke first, else where it came nearest."""

    constraint: str
    outcome: Outcome
    reading: Reading | None = None
    why: str = ""

    def row(self) -> dict[str, Any]:
        seen = self.reading
        return {
            "constraint": self.constraint,
            "outcome": str(self.outcome),
            "at_agents": seen and seen.point[0],
            "at_gpus": seen and seen.point[1],
            "over": seen.over if seen else "",
            "value": seen and seen.value,
            "threshold": seen and seen.threshold,
            "margin_pct": seen and seen.margin_pct,
            "n": seen.n if seen else 0,
            "settled": bool(seen and seen.settled),
            "evidence": seen.evidence if seen else self.why,
        }


FINDING = (
    *("constraint", "outcome", "at_agents", "at_gpus", "over", "value", "threshold", "margin_pct", "n"),
    *("settled", "evidence"),
)
POINTS = (
    *("points", "agents_from", "agents_to", "gpus_from", "gpus_to"),
    *("points_worked", "worked_agents", "worked_gpus", "unexplained", "simulated_budget", "random_weights"),
)
"""What a ramp's points are: how many were tried and from where to where, at how many a trial worked and which
is the last of these, and in words those where none did and no constraint says why."""
CONSTRAINTS_COLUMNS = (*RAMP, *FINDING)
VERDICT_COLUMNS = (*RAMP, *POINTS, "first", *FINDING[1:])


def tables(found: Mapping[str, pd.DataFrame], limits: Limits) -> dict[str, list[dict[str, Any]]]:
    """Rows of `constraints` (one for each ramp and constraint) and of `verdict` (one for each ramp: the first
    constraint that broke, or the one that came nearest)."""
    rows: dict[str, list[dict[str, Any]]] = {"constraints": [], "verdict": []}
    for ramp, seen in _ramps(found):
        findings = judge(seen, limits)
        rows["constraints"] += ({**ramp, **one.row()} for one in findings)
        rows["verdict"].append(
            {**ramp, **_points(seen, limits), **first(findings, worked=any(one.worked for one in seen))}
        )
    return rows


def judge(seen: Sequence[Seen], limits: Limits) -> list[Finding]:
    """The four constraints along one ramp, in the order of CONSTRAINTS."""
    kind = seen[0].trial["device_kind"]
    latency = (
        Finding("latency", Outcome.NOT_JUDGED, why="the config has no thresholds.deadline_s")
        if limits.deadline_s is None
        else _along("latency", _latency(seen, limits.deadline_s), "no trial worked", kind)
    )
    return [
        _along("memory", _memory(seen, kind), _no_memory(seen), kind),
        latency,
        _along("parallelism", _parallelism(seen, limits.scaling_efficiency, kind), _no_ramp(seen), kind),
        _along("orchestration", _orchestration(seen, limits.orchestration_share), "no trial worked", kind),
    ]


def first(findings: Iterable[Finding], worked: bool = True) -> dict[str, Any]:
    """The finding that a verdict names: of those that broke the earliest on the ramp; at one point memory,
    because nothing else is measured where it breaks, else the one that is furthest beyond its threshold.
    Where none broke, the one with the least room is the evidence. `worked`: whether a trial did."""
    known = [one for one in findings if one.reading is not None]
    broke = [one for one in known if one.outcome is Outcome.BROKE]
    if broke:
        rows = [{**one.row(), "first": one.constraint} for one in broke]
        return min(rows, key=earliest)
    if not known or not worked:
        nothing = Finding("", Outcome.NOT_MEASURED, why="no trial worked").row()
        return {**nothing, "first": str(Outcome.NOT_MEASURED)}
    nearest = min(known, key=lambda f: _room(f.reading))
    row = nearest.row()
    said = f"nearest is {nearest.constraint}, {row['evidence']}"
    return {**row, "first": str(Outcome.NOT_REACHED), "evidence": said}


def earliest(row: Mapping[str, Any]) -> tuple:
    """The order of rows whose `first` constraint broke: by the point, then memory, then furthest beyond."""
    margin = row["margin_pct"]
    room = margin if _known(margin) else float("-inf")
    return row["at_agents"], row["at_gpus"], row["first"] != "memory", room


def place(point: Point, kind: str) -> str:
    """ "8 agents on 2 GPUs"."""
    return f"{count(point[0], 'agent')} on {cells.devices(point[1], kind)}"


def _places(points: Sequence[Point], kind: str) -> str:
    """The first of them by name, how many more there are."""
    named = ", ".join(place(point, kind) for point in points[:PLACES_MAX])
    more = len(points) - PLACES_MAX
    return f"{named} and {more} more" if more > 0 else named


# What was seen ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a trial: the GPUs it had, how it ended, and the memory of its fullest device. `used_mib`
    is a peak as measured, `needed_mib` what its copies were predicted to take or what was refused."""

    gpus: int
    status: str
    used_mib: float | None
    needed_mib: float | None
    budget_mib: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial as the constraints need it. `makespan_s` and `orchestration` are of warm rounds where there are
    any, else of the cold one: `phase`. `replayed`: that share is what the calls alone did not take."""

    trial: Mapping[str, Any]
    attempts: tuple[Attempt, ...]
    phase: str
    makespan_s: float | None
    orchestration: float | None
    replayed: bool = False

    @property
    def point(self) -> Point:
        return int(self.trial["agents"]), int(self.trial["gpus"])

    @property
    def worked(self) -> bool:
        return self.trial["status"] == Status.OK and self.makespan_s is not None


def _ramps(found: Mapping[str, pd.DataFrame]) -> list[tuple[dict[str, Any], list[Seen]]]:
    ramps: dict[tuple, list[Seen]] = defaultdict(list)
    rounds, attempts = _by_trial(cells.last_attempts(found["rounds"])), _by_trial(found["attempts"])
    devices, workers, ooms = (_by_trial(found[name]) for name in ("devices", "workers", "ooms"))
    for trial in cells.in_order(found["trials"]).to_dict("records"):
        key = trial["trial_id"]
        phase = "warm" if _known(trial["warm_s"]) else "cold"
        ran = tuple(
            _attempt(attempt, devices[key], workers[key], ooms[key], alone=len(attempts[key]) == 1)
            for attempt in attempts[key]
            if attempt["gpus_used"] > 0  # none: it failed before it had any
        )
        share = orchestration_share(r for r in rounds[key] if r["phase"] == phase)
        # What the framework does to the calls themselves, by a new thread for each, no stage of its shows.
        beyond = 1 - 1 / trial["warm_over_replay"] if _known(trial["warm_over_replay"]) else None
        replayed = phase == "warm" and beyond is not None and (share is None or beyond > share)
        seconds = trial[f"{phase}_s"] if _known(trial[f"{phase}_s"]) else None
        seen = Seen(trial, ran, phase, seconds, beyond if replayed else share, replayed)
        ramps[tuple(trial[n] for n in RAMP)].append(seen)
    return [(dict(zip(RAMP, key, strict=True)), seen) for key, seen in ramps.items()]


def _by_trial(rows: pd.DataFrame) -> defaultdict[str, list[dict[str, Any]]]:
    """Whatever host a row is of: a trial may have had several."""
    by: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.to_dict("records"):
        by[row["trial_id"]].append(row)
    return by


def orchestration_share(rounds: Iterable[Mapping[str, Any]]) -> float | None:
    """Σ (framework + queue) / Σ makespan over rounds that worked: their part of the critical path."""
    worked = [r for r in rounds if r["status"] == Status.OK]
    whole = sum(r["makespan_s"] for r in worked)
    return sum(r["framework_s"] + r["queue_s"] for r in worked) / whole if whole > 0 else None


def _attempt(
    attempt: Mapping[str, Any],
    devices: Iterable[Mapping[str, Any]],
    workers: Iterable[Mapping[str, Any]],
    ooms: Iterable[Mapping[str, Any]],
    alone: bool,
) -> Attempt:
    """`alone`: the trial had no other attempt, so that its devices' peaks are this one's."""
    budgets = {d["device_uuid"]: d["budget_mib"] for d in devices if d["in_use"]}
    budget = min((b for b in budgets.values() if _known(b)), default=None)
    ours = [w for w in workers if w["attempt"] == attempt["attempt"]]
    peaks = (d["used_peak_mib"] for d in devices if d["in_use"]) if alone else _held(ours, _peak)
    needed = list(_held(ours, lambda w: w["predicted_mib"]))
    if budget is not None:
        needed += (
            budget + o["requested_mib"] - o["free_mib"]
            for o in ooms
            if o["attempt"] == attempt["attempt"] and _known(o["requested_mib"]) and _known(o["free_mib"])
        )
    return Attempt(
        int(attempt["gpus_used"]),
        attempt["status"],
        max(filter(_known, peaks), default=None),
        max(needed, default=None),
        budget,
    )


def _held(workers: Iterable[Mapping[str, Any]], mib: Any) -> Iterable[float]:
    """What each device's workers take together; lives of one worker follow each other."""
    by_device: dict[str, dict[str, float]] = defaultdict(dict)
    for worker in workers:
        held, size = by_device[worker["device_uuid"]], mib(worker)
        if _known(size):
            held[worker["worker"]] = max(held.get(worker["worker"], 0.0), size)
    return [sum(held.values()) for held in by_device.values() if held]


def _peak(worker: Mapping[str, Any]) -> float | None:
    nvml = worker["nvml_process_peak_mib"]
    return nvml if _known(nvml) else worker["allocated_peak_mib"]


def _points(seen: Sequence[Seen], limits: Limits) -> dict[str, Any]:
    tried = {(one.point[0], attempt.gpus) for one in seen for attempt in one.attempts}
    tried = tried or {one.point for one in seen}
    agents, gpus = zip(*tried, strict=True)
    worked = _worked_at(seen)
    last = max(worked, default=(None, None))
    kind = seen[0].trial["device_kind"]
    return {
        "points": len(tried),
        "agents_from": min(agents),
        "agents_to": max(agents),
        "gpus_from": min(gpus),
        "gpus_to": max(gpus),
        "points_worked": len(worked),
        "worked_agents": last[0],
        "worked_gpus": last[1],
        "unexplained": _places(_unexplained(seen, limits), kind),
        "simulated_budget": any(bool(one.trial["simulated_budget"]) for one in seen),
        "random_weights": any(bool(one.trial["random_weights"]) for one in seen),
    }


def _worked_at(seen: Iterable[Seen]) -> set[Point]:
    """The points at which a trial worked, with the GPUs of the attempt that did."""
    return {
        (one.point[0], one.attempts[-1].gpus if one.attempts else one.point[1]) for one in seen if one.worked
    }


def _unexplained(seen: Sequence[Seen], limits: Limits) -> list[Point]:
    """The points at which no trial worked, and neither was memory refused nor a deadline missed."""
    says_why = {Status.OOM} if limits.deadline_s is None else {Status.OOM, Status.TIMEOUT}
    ended: dict[Point, set[str]] = defaultdict(set)
    for one in seen:
        for attempt in one.attempts:
            ended[one.point[0], attempt.gpus].add(attempt.status)
        if not one.attempts:  # it failed before it had a device
            ended[one.point].add(one.trial["status"])
    return sorted(set(point for point, how in ended.items() if not how & says_why) - _worked_at(seen))


# The four constraints -----------------------------------------------------------------------------


def _memory(seen: Sequence[Seen], kind: str) -> Iterable[Reading]:
    """Broke where an attempt ran out of memory, or a device's peak was over its budget."""
    engine = ENGINES.get(seen[0].trial["engine"])
    reserved = engine is not None and engine.reserves
    for point, ran in _grouped((s.point[0], a.gpus, a) for s in seen for a in s.attempts):
        refused = [a for a in ran if a.status == Status.OOM]
        sizes = [(_size(a, bool(refused)), a.budget_mib) for a in (refused or ran)]
        sizes = [(size, budget) for size, budget in sizes if size is not None and budget]
        fullest, budget = max(sizes, key=lambda pair: pair[0] / pair[1], default=(None, None))
        if fullest is None and not refused:
            continue
        value = None if fullest is None else fullest / budget
        over = [a for a in ran if a.used_mib and a.budget_mib and a.used_mib > a.budget_mib]
        if not refused and not over and all(a.status != Status.OK for a in ran):
            continue  # how much it would have taken is not known
        noun = "slot" if kind == "slot" else "GPU"
        said = "" if fullest is None else f"{number(fullest)} of {number(budget)} MiB"
        if refused:
            # What was refused need not be more than the budget: others may hold the rest.
            value = None if value is None or value <= 1 else value
            needed = f", the fullest {noun} would need {said}" if value else ""
            said = f"out of memory in {len(refused)} of {count(len(ran), 'trial')}{needed}"
        else:
            said = f"{said} on the fullest {noun}"
            if reserved:  # how much of it is needed is not known, so there is no margin to speak of
                value, said = None, f"{said}, taken in advance by the engine"
        settled = len(refused) in (0, len(ran))
        yield Reading(point, value, 1.0, bool(refused or over), len(ran), settled, said)


def _size(attempt: Attempt, refused: bool) -> float | None:
    return attempt.needed_mib if refused else attempt.used_mib


def _no_memory(seen: Iterable[Seen]) -> str:
    worked = any(one.worked for one in seen)
    return "no device said how much memory was in use" if worked else "no trial worked"


def _latency(seen: Sequence[Seen], deadline_s: float) -> Iterable[Reading]:
    """Broke where the geometric mean makespan is over the deadline, or where trials timed out and none
    worked."""
    for point, ran in _grouped((*s.point, s) for s in seen):
        worked = [s for s in ran if s.worked]
        late = sum(s.trial["status"] == Status.TIMEOUT for s in ran)
        timed_out = f"timed out in {late} of {count(len(ran), 'trial')}"
        if late and not worked:
            said = f"{timed_out}, the deadline is {number(deadline_s)} s"
            settled = 1 < late == len(ran)
            yield Reading(point, None, deadline_s, True, len(ran), settled, said)
        found = stats.geometric_mean(s.makespan_s for s in worked)
        if not worked or found.value is None:
            continue
        said = (
            f"a {worked[0].phase} round takes {estimate(found, 's')}, the deadline is {number(deadline_s)} s"
        )
        broke, settled = found.value > deadline_s, _settled(found, deadline_s)
        if late:  # the mean is of those that were quick enough
            said, settled = f"{said}; {timed_out}", settled and broke
        yield Reading(point, found.value, deadline_s, broke, found.n, settled, said)


def _orchestration(seen: Sequence[Seen], limit: float) -> Iterable[Reading]:
    """Broke where framework and queue, or what the calls alone do not take, are more than their share of the
    makespan."""
    for point, ran in _grouped((*s.point, s) for s in seen if s.worked and s.orchestration is not None):
        found = stats.arithmetic_mean([s.orchestration for s in ran])
        if found.has_interval:  # a share lies between 0 and 1, whatever so few trials allow
            found = replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
        what = "CrewAI takes" if any(s.replayed for s in ran) else "framework and queue take"
        how = ", by its calls made again without it" if any(s.replayed for s in ran) else ""
        said = f"{what} {_percent(found)} of a {ran[0].phase} round{how}"
        yield Reading(point, found.value, limit, found.value > limit, found.n, _settled(found, limit), said)


def _percent(share: Estimate) -> str:
    """A share in words: "17.7 % [11.6, 26.8]"."""
    low, high = (None if x is None else 100 * x for x in (share.low, share.high))
    return estimate(replace(share, value=100 * share.value, low=low, high=high), "%")


def _parallelism(seen: Sequence[Seen], limit: float, kind: str) -> Iterable[Reading]:
    """Broke where the efficiency against the least point of the same ramp is under the limit.

    Over GPUs with the same agents it is speed-up / ideal = (g0 · T0) / (g · T); over agents on the same GPUs,
    where the ideal is that a agents take no longer than a0, T0 / T; and T0 / T too where agents and GPUs grew
    alike. Of several, the least. Modes that choose their number of GPUs have no ramp over it."""
    if cells.searches(seen[0].trial["mode"]):
        return
    by_point = {p: {s.trial["repeat"]: s.makespan_s for s in ran} for p, ran in _grouped(
        (*s.point, s) for s in seen if s.worked
    )}  # fmt: skip
    phase = {s.point: s.phase for s in seen if s.worked}
    for point, ours in by_point.items():
        agents, gpus = point
        over_gpus = [p for p in by_point if p[0] == agents and p[1] < gpus]
        over_agents = [p for p in by_point if p[1] == gpus and p[0] < agents]
        alike = [p for p in by_point if p[0] * gpus == agents * p[1] and p < point]
        bases = [(min(over_gpus), OVER_GPUS)] if over_gpus else []
        bases += [(min(over_agents), OVER_AGENTS)] if over_agents else []
        bases += [(min(alike), OVER_BOTH)] if alike else []
        readings = []
        for base, over in bases:
            if phase[base] != phase[point]:
                continue
            # Where agents grew the ideal is that they take no longer, whatever they run on.
            few, many = (base[1], gpus) if over == OVER_GPUS else (1, 1)
            ideal = gpus / base[1] if over == OVER_GPUS else agents / base[0]
            found = efficiency_over_gpus(few, many, by_point[base], ours)
            if found.value is None:
                continue
            said = (
                f"speed-up {number(found.value * ideal)} of an ideal {number(ideal)} against "
                f"{place(base, kind)}, {phase[point]}: efficiency {_percent(found)}"
            )
            settled = _settled(found, limit)
            readings.append(
                Reading(point, found.value, limit, found.value < limit, found.n, settled, said, True, over)
            )
        if readings:
            yield min(readings, key=lambda r: r.value)


def efficiency_over_gpus(
    few: int, many: int, few_s: Mapping[int, float], many_s: Mapping[int, float]
) -> Estimate:
    """(g0 · T0) / (g · T) of the same agents on `few` and on `many` GPUs, from makespans in s by repeat."""
    return stats.paired(
        lambda before, after: metrics.scaling_efficiency(few, before, many, after), few_s, many_s
    )


def _no_ramp(seen: Sequence[Seen]) -> str:
    if cells.searches(seen[0].trial["mode"]):
        return "the mode finds its number of GPUs itself"
    worked = {s.point for s in seen if s.worked}
    if not worked:
        return "no trial worked"
    return "it worked with one number of agents and GPUs only: no ramp" if len(worked) == 1 else (
        "no two points share agents, GPUs or their ratio, or a repeat"
    )  # fmt: skip


def _along(constraint: str, readings: Iterable[Reading], without: str, kind: str) -> Finding:
    """The first reading that broke, with the others that did and where it held; else the nearest one."""
    ramp = sorted(readings, key=lambda r: r.point)
    if not ramp:
        return Finding(constraint, Outcome.NOT_MEASURED, why=without)
    broke = [r for r in ramp if r.broke]
    if not broke:
        return Finding(constraint, Outcome.NOT_REACHED, min(ramp, key=_room))
    chosen, more = broke[0], [r.point for r in broke[1:]]
    held = [r for r in ramp if not r.broke and r.point > chosen.point]
    said = [chosen.evidence]
    if more:
        said.append(f"also with {_places(more, kind)}")
    if held:
        said.append(f"not with {place(held[-1].point, kind)}")
    return Finding(constraint, Outcome.BROKE, replace(chosen, evidence="; ".join(said)))


def _room(reading: Reading) -> float:
    """How much is left. Without a number what broke is as far beyond as can be, and what held has it all."""
    margin = reading.margin_pct
    return margin if margin is not None else float("-inf" if reading.broke else "inf")


def _settled(found: Estimate, threshold: float) -> bool:
    return found.has_interval and (found.high <= threshold or found.low >= threshold)


def _grouped(rows: Iterable[tuple[int, int, Any]]) -> list[tuple[Point, list[Any]]]:
    by_point: dict[Point, list[Any]] = defaultdict(list)
    for agents, gpus, what in rows:
        by_point[agents, gpus].append(what)
    return sorted(by_point.items())


def _known(value: float | None) -> bool:
    return value is not None and value == value
