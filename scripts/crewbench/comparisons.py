"""Every mode against every other that did the same work in the same setting: the table `comparisons`.

A side is a mode on its number of devices. A family, over which p values are corrected, is all pairs of one
setting, one work and one phase.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from crewbench import cells, stats
from crewbench.records import Status

PHASES = ("cold", "warm")
SIDES = ("a_mode", "a_gpus", "b_mode", "b_gpus")
COLUMNS = (
    *(*cells.SETTING, "workload", "phase", *SIDES, "n", "as_fast", "low", "high"),
    *("p", "p_corrected", "pairs", "significant", "note"),
)


def of_trials(trials: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each pair of modes, setting, work and phase.

    `as_fast` is seconds of b over seconds of a, paired by repeat: 2 where a is twice as fast. `p_corrected`
    is Holm's over the `pairs` of the family that have enough repeats; without one, nothing is significant."""
    families: dict[tuple, dict[tuple[str, int], dict[int, Mapping[str, Any]]]] = defaultdict(dict)
    for trial in trials:
        if trial["status"] == Status.OK:
            family = tuple(trial[name] for name in (*cells.SETTING, "workload"))
            side = (trial["mode"], int(trial["gpus"]))
            families[family].setdefault(side, {})[trial["repeat"]] = trial
    rows = []
    for family, sides in families.items():
        where = dict(zip((*cells.SETTING, "workload"), family, strict=True))
        for phase in PHASES:
            rows += [{**where, "phase": phase, **row} for row in _family(sides, f"{phase}_s")]
    return rows


def _family(
    sides: Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]], column: str
) -> list[dict[str, Any]]:
    """All pairs of sides of different modes, with the p values corrected over them."""
    measured = {
        side: {r: t[column] for r, t in repeats.items() if t[column] is not None}
        for side, repeats in sorted(sides.items(), key=lambda s: (cells.mode_rank(s[0][0]), s[0]))
    }
    pairs = [(a, b) for a, b in combinations(measured, 2) if a[0] != b[0]]
    found = [stats.compare_paired(measured[b], measured[a]) for a, b in pairs]
    corrected = stats.corrected(found)
    family = sum(p is not None for p in corrected)
    return [
        {
            **dict(zip(SIDES, (*a, *b), strict=True)),
            "n": one.ratio.n,
            "as_fast": one.ratio.value,
            "low": one.ratio.low,
            "high": one.ratio.high,
            "p": one.p,
            "p_corrected": p,
            "pairs": family,
            "significant": stats.significant(p),
            "note": one.ratio.reason,
        }
        for (a, b), one, p in zip(pairs, found, corrected, strict=True)
    ]
