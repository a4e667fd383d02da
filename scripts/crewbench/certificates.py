"""The fewest devices that fit, with the evidence: the table `certificates`.

A certificate says that a cell worked on g devices in k of k trials, and that it ran out of memory on the next
fewer that its mode can be on. Simulated slot budgets never certify anything: they were never really full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crewbench import cells
from crewbench.engines import ENGINES
from crewbench.matrix import skip_reason
from crewbench.metrics import failure_at_most_pct
from crewbench.modes import MODES
from crewbench.records import Status
from crewbench.trial import Cell
from crewbench.words import ended

GROUP = tuple(name for name in cells.WHERE if name != "gpus")
"""What a certificate is about: all that makes a cell but its devices."""

CERTIFIED, AT_MOST, MORE_THAN, UNSETTLED, SIMULATED = (
    *("certified", "at most", "more than", "not settled", "simulated budget"),
)
OUTCOMES = {
    CERTIFIED: "every trial worked, and on the next fewer devices every one ran out of memory",
    AT_MOST: "every trial worked; fewer devices were not tried",
    MORE_THAN: "every trial ran out of memory on as many as were tried",
    UNSETTLED: "some trials worked where others did not, or failed for another reason than memory",
    SIMULATED: "the memory of CPU slots is an account that is kept: nothing is certified",
}
"""What is claimed, in words."""

COLUMNS = (
    *(*GROUP, "device_name", "memory_mib", "outcome", "gpus", "worked", "trials", "failure_at_most_pct"),
    *("fewer_gpus", "fewer_failed", "fewer_trials", "evidence", "note"),
)


@dataclass(slots=True)
class Seen:
    """What was tried of a group on one number of devices: how each trial ended there, and what the first
    out-of-memory said."""

    statuses: list[str] = field(default_factory=list)
    evidence: str = ""
    note: str = ""

    @property
    def worked(self) -> int:
        return sum(status == Status.OK for status in self.statuses)

    @property
    def ran_out(self) -> int:
        return sum(status == Status.OOM for status in self.statuses)

    @property
    def fits(self) -> bool:
        return bool(self.statuses) and self.worked == len(self.statuses)

    @property
    def too_few(self) -> bool:
        return bool(self.statuses) and self.ran_out == len(self.statuses)


def seen(
    trials: Iterable[Mapping[str, Any]],
    attempts: Iterable[Mapping[str, Any]],
    ooms: Iterable[Mapping[str, Any]],
) -> dict[tuple, dict[int, Seen]]:
    """By GROUP and number of devices, from rows of the tables of these names.

    A mode that searches tried several numbers in one trial: each attempt counts with the devices that it
    had."""
    by_trial = {t["trial_id"]: t for t in trials}  # an out-of-memory may have been on another host
    found: dict[tuple, dict[int, Seen]] = defaultdict(lambda: defaultdict(Seen))
    place: dict[tuple, Seen] = {}
    for attempt in attempts:
        trial = by_trial[attempt["trial_id"]]
        key = tuple(trial[name] for name in GROUP)
        # A trial that was refused its start state used none.
        here = found[key][int(attempt["gpus_used"] or trial["gpus"])]
        here.statuses.append(str(attempt["status"]))
        place[attempt["trial_id"], int(attempt["attempt"])] = here
    for oom in ooms:
        here = place.get((oom["trial_id"], int(oom["attempt"])))
        if here is not None and not here.evidence:
            here.evidence = _said(oom)
    return {key: dict(by_gpus) for key, by_gpus in found.items()}


def certificates(
    trials: Sequence[Mapping[str, Any]],
    attempts: Iterable[Mapping[str, Any]],
    ooms: Iterable[Mapping[str, Any]],
    memory_mib: Mapping[tuple, float],
    options: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row for each group. `memory_mib` is what each group had on a device, `options` those of each
    variant: how many devices fewer a mode can be on depends on them."""
    first: dict[tuple, Mapping[str, Any]] = {}
    for trial in trials:
        first.setdefault(tuple(trial[name] for name in GROUP), trial)
    rows = []
    for key, by_gpus in seen(trials, attempts, ooms).items():
        trial = first[key]
        group = dict(zip(GROUP, key, strict=True))
        about = {
            **group,
            "device_name": trial["device_name"],
            "memory_mib": memory_mib.get(key),
        }
        if trial["simulated_budget"]:
            rows.append({**about, **_empty(SIMULATED)})
        else:
            rows.append({**about, **_judged(group, by_gpus, options.get(group["variant"], {}))})
    return rows


def fewer(group: Mapping[str, Any], gpus: int, options: Mapping[str, Any]) -> int | None:
    """The largest number of devices under `gpus` that the group's mode can be on; None where there is none,
    or mode or engine is not of this version."""
    known = group["mode"] in MODES and group["engine"] in ENGINES
    for count in range(gpus - 1, 0, -1) if known else ():
        cell = Cell(
            group["mode"],
            count,
            int(group["agents"]),
            group["engine"],
            group["start"],
            group["variant"],
            dict(options),
        )
        if skip_reason(cell, "gpu") is None:
            return count
    return None


def _judged(
    group: Mapping[str, Any], by_gpus: Mapping[int, Seen], options: Mapping[str, Any]
) -> dict[str, Any]:
    least = min((gpus for gpus, here in by_gpus.items() if here.fits), default=None)
    if least is None:
        most = max(by_gpus)
        here = by_gpus[most]
        if here.too_few:
            return {**_row(MORE_THAN, most, here), "evidence": here.evidence}
        return {**_row(UNSETTLED, most, here), "note": _endings(here)}
    here, below = by_gpus[least], fewer(group, least, options)
    if below is None:
        return _row(CERTIFIED, least, here)
    under = by_gpus.get(below)
    if under is None:
        tried = [f"on {g}: {_endings(by_gpus[g])}" for g in sorted(by_gpus) if g < least]
        return {**_row(AT_MOST, least, here), "note": "; ".join([f"{below} was not tried", *tried])}
    failed = {
        "fewer_gpus": below,
        "fewer_failed": len(under.statuses) - under.worked,
        "fewer_trials": len(under.statuses),
        "evidence": under.evidence,
    }
    if under.too_few:
        return {**_row(CERTIFIED, least, here), **failed}
    return {**_row(UNSETTLED, least, here), **failed, "note": f"on {below}: {_endings(under)}"}


def _empty(outcome: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS[COLUMNS.index("outcome") :]),
        "outcome": outcome,
        "evidence": "",
        "note": "",
    }


def _row(outcome: str, gpus: int, here: Seen) -> dict[str, Any]:
    bound = failure_at_most_pct(here.worked) if here.fits else None
    return {
        **_empty(outcome),
        **{"gpus": gpus, "worked": here.worked, "trials": len(here.statuses), "failure_at_most_pct": bound},
    }


def _endings(here: Seen) -> str:
    said = dict.fromkeys(here.statuses)
    return ", ".join(f"{here.statuses.count(s)} of {len(here.statuses)} {ended(s)}" for s in said)


def _said(oom: Mapping[str, Any]) -> str:
    """ "asked for 448 MiB with 124 MiB free; worker0: 14,300 MiB; ..."."""
    asked, free = (oom[name] for name in ("requested_mib", "free_mib"))
    said = [
        *([f"asked for {asked:,.0f} MiB"] if asked is not None and asked == asked else []),
        *([f"{free:,.0f} MiB free"] if free is not None and free == free else []),
    ]
    held = str(oom["held_by"] or "")
    return "; ".join(filter(None, [", ".join(said), held]))
