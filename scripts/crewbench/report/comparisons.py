"""The report's table of modes against each other: rows of short texts from the table `comparisons`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from crewbench import cells, stats
from crewbench.comparisons import PHASES, SIDES
from crewbench.stats import Estimate
from crewbench.words import interval, number, p_value

Rows = list[dict[str, Any]]


def compared(rows: pd.DataFrame, setting: Mapping[str, Any], workload: str | None, kind: str) -> Rows:
    """A row for each pair of modes in one setting that do its common work: the faster one first (in cold
    rounds, where both are known), and what each phase says."""
    here = cells.only(rows, {**setting, "workload": workload})
    found = []
    for sides, pair in here.groupby(list(SIDES), sort=False):
        a, b = sides[:2], sides[2:]
        by_phase = {row["phase"]: row for row in pair.to_dict("records")}
        lead = next((by_phase[p]["as_fast"] for p in PHASES if _known(by_phase[p]["as_fast"])), 1.0)
        turned = lead < 1
        first, second = (b, a) if turned else (a, b)
        found.append(
            {
                "mode": first[0],
                "name": _side(first, kind),
                "other": _side(second, kind),
                "phases": [_said(by_phase[phase], turned) for phase in PHASES],
                "n": int(max(row["n"] for row in by_phase.values())),
            }
        )
    return found


def family(rows: pd.DataFrame, setting: Mapping[str, Any], workload: str | None) -> int:
    """Over how many pairs the p values of one phase are corrected."""
    here = cells.only(rows, {**setting, "workload": workload})
    return int(here["pairs"].max()) if len(here) else 0


def _known(value: float | None) -> bool:
    return value is not None and value == value


def _side(side: tuple[str, int], kind: str) -> str:
    return cells.label({"mode": side[0], "gpus": side[1]}, (), kind)


def _said(row: Mapping[str, Any], turned: bool) -> tuple[str, str]:
    """ "1.93 ×" and "[1.85, 2.01] significant, p 0.004": what may be said is said in words."""
    value, low, high = (row[name] if _known(row[name]) else None for name in ("as_fast", "low", "high"))
    if value is None:
        return "–", row["note"]
    if turned:
        value, low, high = 1 / value, high and 1 / high, low and 1 / low
    found = Estimate(value, low, high, int(row["n"]), row["note"])
    told = {stats.YES: "significant", stats.NO: "not told apart"}.get(row["significant"], row["significant"])
    if _known(row["p_corrected"]):
        told += f", p {p_value(row['p_corrected'])}"
    return f"{number(found.value)} ×", f"{interval(found)} {told}"
