"""Wall time of trials against its lower bound: what a study's trials took one after another, or packed.

A session is a stretch of one host's time in which trials followed one another with less than GAP_S between
one's end and the next one's start: usually one call of the workflow. Plain data in and out, nothing heavy:
the table `study` is made from it, and the estimate of what is left to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

GAP_S = 60.0
"""A host that starts no trial for so long is not at work on the study. Between two trials of one call there
are one or two seconds."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One trial as it ran. `start_s` and `end_s` are wall-clock instants in seconds since the epoch,
    `waited_s` how long it waited for devices that another trial held."""

    trial_id: str
    cell: str
    host: str
    gpus: int
    exclusive: bool
    start_s: float
    end_s: float
    waited_s: float

    @property
    def duration_s(self) -> float:
        """What the trial itself took, all of it: its zygote, ballast, rounds and the writing of its files.
        Waiting for devices that others hold is nobody's work."""
        return self.end_s - self.start_s - self.waited_s


@dataclass(frozen=True, slots=True)
class Session:
    """One row of the table `study`: a host's session. `wall_s` is from the first start to the last end,
    `trials_s` the sum of the trials' durations, `out_of_order` how many started at another place than the
    one drawn for them; repeats are those of a cell in this session."""

    host: str
    session: int
    trials: int
    exclusive: bool
    host_gpus: int
    started_wall: str
    ended_wall: str
    wall_s: float
    trials_s: float
    lease_waited_s: float
    bound_s: float
    wall_over_bound: float | None
    out_of_order: int
    cells: int
    repeats_min: int
    repeats_max: int


def ran(record: Mapping[str, Any]) -> Ran | None:
    """What a trial.json says of when the trial ran; None where it does not say it."""
    identity, spec = record.get("identity") or {}, record.get("spec") or {}
    start, end = (record.get("anchor") or {}).get("zero_wall_s"), record.get("finished_wall_s")
    if start is None or end is None or "repeat" not in identity:
        return None
    return Ran(
        trial_id=identity["trial_id"],
        cell=identity["trial_id"].removesuffix(f"__r{identity['repeat']}"),
        host=identity["host"],
        gpus=identity["gpus"],
        exclusive=bool(spec.get("exclusive", True)),
        start_s=start,
        end_s=end,
        waited_s=record.get("lease_waited_s") or 0.0,
    )


def bound_s(pieces: Iterable[tuple[float, float]]) -> float:
    """The least seconds in which pieces of (share of the host, seconds) can be done: the longest of them, or
    the area of all. Both are bounds of packing (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM
    J. Appl. Math. 17(2), 1969); for pieces that take the whole host the area is their sum."""
    pieces = list(pieces)
    longest = max((seconds for _, seconds in pieces), default=0.0)
    return max(longest, sum(share * seconds for share, seconds in pieces))


def sessions(trials: Iterable[Ran]) -> list[list[Ran]]:
    """The trials of one host in the order in which they started, cut where nothing ran for GAP_S."""
    found: list[list[Ran]] = []
    busy_until = 0.0
    for trial in sorted(trials, key=lambda t: (t.start_s, t.end_s)):
        if not found or trial.start_s - busy_until > GAP_S:
            found.append([])
        found[-1].append(trial)
        busy_until = max(busy_until, trial.end_s)
    return found


def summarise(trials: Iterable[Ran], planned: Sequence[str], host_gpus: int | None) -> list[Session]:
    """Every session of every host. `planned` are the trial ids in the order drawn from the seed; `host_gpus`
    is how many devices a host has (None: as many as its largest trial used)."""
    trials = list(trials)
    place = {trial_id: position for position, trial_id in enumerate(planned)}
    found = []
    for host in sorted({t.host for t in trials}):
        here = [t for t in trials if t.host == host]
        gpus = host_gpus or max(t.gpus for t in here)
        found += [_summary(host, n, part, place, gpus) for n, part in enumerate(sessions(here), 1)]
    return found


def _summary(host: str, number: int, part: list[Ran], place: Mapping[str, int], gpus: int) -> Session:
    wall_s = max(t.end_s for t in part) - part[0].start_s
    pieces = [(1.0 if t.exclusive else t.gpus / gpus, t.duration_s) for t in part]
    bound = bound_s(pieces)
    as_started = [place[t.trial_id] for t in part]
    repeats = Counter(t.cell for t in part).values()
    return Session(
        host=host,
        session=number,
        trials=len(part),
        exclusive=all(t.exclusive for t in part),
        host_gpus=gpus,
        started_wall=_utc(part[0].start_s),
        ended_wall=_utc(part[0].start_s + wall_s),
        wall_s=wall_s,
        trials_s=sum(seconds for _, seconds in pieces),
        lease_waited_s=sum(t.waited_s for t in part),
        bound_s=bound,
        wall_over_bound=wall_s / bound if bound else None,
        out_of_order=sum(a != b for a, b in zip(as_started, sorted(as_started), strict=True)),
        cells=len(repeats),
        repeats_min=min(repeats),
        repeats_max=max(repeats),
    )


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
