"""How many repeats a study needs: which cells' intervals are still wide, and how far to go next.

Repeats are raised for all cells together, because a repeat is a block in which every cell runs once. Plain
data in and out; scripts/study.py calls the workflow and asks here what comes next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crewbench.matrix import Matrix
from crewbench.stats import SIGNIFICANT_FROM, Estimate, repeats_needed
from crewbench.trial import Cell

METRICS = ("cold_s", "warm_s")
"""What must be narrow: the two makespans that modes are compared by."""

CELL = ("mode", "gpus", "agents", "engine", "start", "variant")
"""What names a cell in a row."""


@dataclass(frozen=True, slots=True)
class Width:
    """How wide the intervals of one cell are: `half_pct` of each metric (None: no interval yet), from `n`
    trials that worked of those that ran."""

    cell: Mapping[str, Any]
    n: int
    half_pct: Mapping[str, float | None] = field(default_factory=dict)

    def wide(self, goal_pct: float) -> bool:
        """Whether more repeats are wanted. Under SIGNIFICANT_FROM a narrow interval is luck; where nothing
        worked there is none to narrow."""
        if not self.n:
            return False
        return self.n < SIGNIFICANT_FROM or any(
            half is None or half > goal_pct for half in self.half_pct.values()
        )


def growing(smaller: Matrix, larger: Matrix) -> set[str]:
    """The cells (as trial ids of repeat 0) that get more trials when the study's `repeats` is raised: those
    of runs without repeats of their own."""
    return {t.cell.trial_id(0) for t in larger if t.trial_id not in smaller.trials}


def begun(matrix: Matrix, done: Collection[str], cells: Collection[str], least: int) -> int:
    """With how many repeats to go on: all that are done of every one of the cells, and the next one if it
    was begun. `least` is what the config asks for."""
    by_repeat: dict[int, list[bool]] = {}
    for trial in matrix:
        if trial.cell.trial_id(0) in cells:
            by_repeat.setdefault(trial.repeat, []).append(trial.trial_id in done)
    repeats = 0
    for repeat in sorted(by_repeat):
        if any(by_repeat[repeat]):
            repeats = repeat
        if not all(by_repeat[repeat]):
            break
    return max(repeats, least)


def widths(summary: Iterable[Mapping[str, Any]], cells: Collection[str]) -> list[Width]:
    """The widths of the cells from rows of the table `summary`. A cell that ran on several hosts, or found
    different things compiled, counts where it has the most trials."""
    groups: dict[str, dict[tuple, dict[str, Mapping[str, Any]]]] = {}
    for row in summary:
        name = trial_id(row)
        if name in cells and row["metric"] in METRICS:
            where = (row["host"], row["compile_cache"])
            groups.setdefault(name, {}).setdefault(where, {})[row["metric"]] = row
    found = []
    for by_place in groups.values():
        rows = max(by_place.values(), key=lambda metrics: max(r["trials"] for r in metrics.values()))
        any_row = next(iter(rows.values()))
        # Without warm rounds there is no warm makespan to narrow.
        half = {name: _half(row) for name, row in rows.items() if row["n"]}
        found.append(Width({n: any_row[n] for n in CELL}, int(any_row["ok"]), half))
    return found


def trial_id(row: Mapping[str, Any]) -> str:
    """A row's cell as `Cell.trial_id(0)` names it."""
    named = {n: row[n] for n in CELL}
    return Cell(**{**named, "gpus": int(named["gpus"]), "agents": int(named["agents"])}).trial_id(0)


def _half(row: Mapping[str, Any]) -> float | None:
    value, low, high = (None if row[n] != row[n] else row[n] for n in ("estimate", "low", "high"))
    return Estimate(value, low, high, int(row["n"])).half_width_pct


def following(repeats: int, wide: Iterable[Width], goal_pct: float, most: int) -> int | None:
    """The next number of repeats, or None where nothing is wide or `most` is reached.

    At least SIGNIFICANT_FROM; then as many as the widest interval needs if its spread stays what it is, at
    most twice as many as now, for a spread that few repeats show is rough."""
    wide = list(wide)
    if not wide or repeats >= most:
        return None
    if repeats < SIGNIFICANT_FROM:
        return min(SIGNIFICANT_FROM, most)
    needed = repeats + 1
    for cell in wide:
        for half in cell.half_pct.values():
            if half is not None and half > goal_pct:
                needed = max(needed, repeats_needed(half, max(cell.n, 2), goal_pct, most))
    return min(needed, 2 * repeats, most)
