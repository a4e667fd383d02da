"""The ladder of start states: what the first round costs from each, down to workers that are resident.

Start states are never pooled. A difference is between two rungs by name, and paired by repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from crewbench import cells, stats
from crewbench.records import Status
from crewbench.start import STARTS
from crewbench.words import ended

RESIDENT = "resident"
"""The last rung: a warm round, on workers that are loaded."""

SAME = [name for name in cells.WHERE if name not in ("start", "compile_cache")]
"""What the rungs of one ladder have in common."""

MEASURES = {
    "ttft_s": ("cold_ttft_s", "warm_ttft_s"),
    "makespan_s": ("cold_s", "warm_s"),
}
"""What a rung says, and the columns of `trials` that say it for a start state and for resident workers."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One start state of a cell, with what lay compiled. `values` are seconds by measure and repeat, of the
    trials that worked; where none did, `outcome` says so. `zygote_s` is what the zygotes themselves took."""

    start: str
    compile_cache: str = "none"
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    zygote_s: tuple[float, ...] = ()
    outcome: str = ""

    @property
    def name(self) -> str:
        said = cells.compile_cache({"compile_cache": self.compile_cache})
        return f"{self.start}, {said}" if said else self.start

    def mean(self, measure: str) -> stats.Estimate | None:
        """Its geometric mean with its interval; None where no trial says."""
        values = self.values.get(measure)
        return stats.geometric_mean(values.values()) if values else None


@dataclass(frozen=True, slots=True)
class Ladder:
    """A cell's rungs from the dearest start state, as far as they are known, to resident workers."""

    cell: Mapping[str, Any]
    rungs: tuple[Rung, ...]

    def below(self, rung: Rung, measure: str) -> Rung | None:
        """The next cheaper start state that has a repeat in common: with the same compiled code on disk if
        there is one, as only then one thing differs. None for the last."""
        place = self.rungs.index(rung)
        order = [r.start for r in self.rungs]
        for start in dict.fromkeys(s for s in order[place + 1 :] if s != rung.start):
            found = [r for r in self.rungs if r.start == start and difference(rung, r, measure)]
            found.sort(key=lambda r: r.compile_cache != rung.compile_cache)
            if found:
                return found[0]
        return None


def difference(rung: Rung, lower: Rung, measure: str) -> dict[int, float]:
    """What `rung` took more than `lower`, in seconds, for each repeat that both have."""
    return stats.differences(rung.values.get(measure, {}), lower.values.get(measure, {}))


def more(rung: Rung, lower: Rung, measure: str) -> stats.Estimate:
    """The mean of what `rung` took more than `lower`, paired by repeat, with its interval."""
    return stats.arithmetic_mean(difference(rung, lower, measure).values())


def ladders(trials: pd.DataFrame) -> list[Ladder]:
    """A ladder for each cell that worked from several start states, those with the most trials first."""
    found = []
    for key, group in cells.in_order(trials).groupby(SAME, observed=True, sort=False):
        rungs = [rung for start in STARTS for rung in _rungs(group[group["start"] == start], start)]
        known = [rung for rung in rungs if rung.values]
        if len({rung.start for rung in known}) < 2:
            continue
        # The warm rounds of the last start state's own trials: every other start's would pool them.
        rungs.append(_rung(_worked(_of(group, known[-1])), RESIDENT, "none", phase=1))
        found.append((len(group), Ladder(dict(zip(SAME, key, strict=True)), tuple(rungs))))
    return [ladder for _, ladder in sorted(found, key=lambda pair: -pair[0])]


def _rungs(trials: pd.DataFrame, start: str) -> list[Rung]:
    if trials.empty:
        return [Rung(start, outcome="not run")]
    return [
        _rung(group, start, str(state), phase=0)
        for state, group in trials.groupby("compile_cache", sort=True)
    ]


def _rung(trials: pd.DataFrame, start: str, state: str, phase: int) -> Rung:
    worked = _worked(trials)
    if worked.empty:
        status = Status.worst(trials["status"])
        count = int((trials["status"] == status).sum())
        return Rung(start, state, outcome=f"{ended(status)} ({count} of {len(trials)})")
    values = {
        measure: worked.set_index("repeat")[columns[phase]].dropna().to_dict()
        for measure, columns in MEASURES.items()
    }
    zygotes = () if phase else tuple(pd.to_numeric(worked["zygote_s"], errors="coerce").dropna())
    return Rung(start, state, values, zygotes)


def _worked(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["status"] == Status.OK]


def _of(trials: pd.DataFrame, rung: Rung) -> pd.DataFrame:
    return cells.only(trials, {"start": rung.start, "compile_cache": rung.compile_cache})
