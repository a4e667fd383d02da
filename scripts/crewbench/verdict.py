"""The answers that the report opens with, in words and numbers, from the tables alone.

Pure functions. A mode is called fastest only against modes that did the same work in the same setting, and
the one after it is named with the ratio between them, so that a reader sees how far apart they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crewbench import cells, metrics, stats
from crewbench.records import Status
from crewbench.stats import SIGNIFICANT_FROM
from crewbench.words import count, ended, estimate, number

_SAME = ", not told apart."


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with its short answer and the sentences that support it."""

    name: str
    question: str
    answer: str
    support: tuple[str, ...] = ()


def answers(tables: Mapping[str, pd.DataFrame]) -> list[Answer]:
    """Fastest cold, fastest warm, devices needed, what failed: in this order."""
    trials = tables["trials"]
    setting = cells.headline_setting(trials)
    here = cells.in_order(cells.only(trials, setting))
    kind = "slot" if set(trials["device_kind"]) == {"slot"} else "gpu"
    return [
        fastest(here, "cold", kind),
        fastest(here, "warm", kind),
        devices_needed(here, cells.only(tables["attempts"], setting), kind),
        what_failed(trials, tables["attempts"], len(tables["skipped"])),
    ]


def fastest(trials: pd.DataFrame, phase: str, kind: str) -> Answer:
    """The cell with the least geometric mean makespan among those of the work that most modes do."""
    question = f"Which mode is fastest {phase}?"
    found = ranked(trials[trials["workload"] == cells.common_workload(trials)], f"{phase}_s")
    if not found:
        return Answer(phase, question, "Not measured: no trial worked.")
    best, key, values = found[0]
    name = cell_name(key, kind)
    support = [f"{estimate(best, 's')}, n = {best.n}."]
    after = found[1:2]  # the next cell, the next other mode, and the usual baseline
    after += [r for r in found[2:] if r[1][0] != key[0]][:1] if after and after[0][1][0] == key[0] else []
    after += [r for r in found[1:] if r[1][0] == cells.baseline() and r not in after]
    for _, other, theirs in after:
        support.append(_against(stats.paired(metrics.speedup, theirs, values), cell_name(other, kind)))
    if after and best.n < SIGNIFICANT_FROM:
        support.append(f"Under {SIGNIFICANT_FROM} repeats no difference is called significant.")
    answer = f"{name}: {number(best.value)} s"
    if any(line.endswith(_SAME) for line in support):
        answer = f"{name} leads, not told apart: {number(best.value)} s"
    return Answer(phase, question, answer, tuple(support))


Ranked = list[tuple[stats.Estimate, tuple[str, int], dict[int, float]]]


def ranked(trials: pd.DataFrame, column: str) -> Ranked:
    """(geometric mean, (mode, GPUs), value by repeat) of each cell that has any, the least first."""
    found = []
    for key, group in trials.groupby(["mode", "gpus"], observed=True, sort=False):
        values = {t["repeat"]: t[column] for t in group.to_dict("records") if _measured(t, column)}
        if values:
            found.append((stats.geometric_mean(values.values()), key, values))
    # By repeats in common first: a mean over other repeats met another state of the machine.
    return sorted(found, key=lambda r: (-sum(_faster(r[2], o[2]) for o in found), r[0].value))


def devices_needed(trials: pd.DataFrame, attempts: pd.DataFrame, kind: str) -> Answer:
    """What a search found, with the attempts that failed as evidence; else where a copy per agent worked."""
    noun = "CPU slots" if kind == "slot" else "GPUs"
    question = f"How many {noun} does a copy per agent need?"
    note = ("The memory budget is simulated.",) if trials["simulated_budget"].any() else ()
    expanded = trials[trials["mode"].map(cells.searches)]
    worked = expanded[expanded["status"] == Status.OK]
    same_work = trials["workload"] == cells.common_workload(trials)
    single = (trials["mode"].map(cells.copies) == "one") & same_work
    shared = trials[single & (trials["status"] == Status.OK)]
    one = (f"One shared copy worked on {cells.devices(1, kind)}.",) if len(shared) else ()
    if len(worked):
        found = sorted({int(g) for g in worked["gpus_used"]})
        failed = attempts[attempts["mode"].map(cells.searches) & (attempts["status"] != Status.OK)]
        tried = [
            f"{cells.devices(int(g), kind)}: {ended(str(s))} in {len(rows)} of {len(expanded)} trials."
            for (g, s), rows in failed.groupby(["gpus_used", "status"])
        ]
        answer = " or ".join(cells.devices(g, kind) for g in found)
        certain = f"Worked in {len(worked)} of {len(expanded)} trials of {_titles(expanded)}."
        return Answer("devices", question, answer, (certain, *tried, *one, *note))
    each = trials["mode"].map(cells.copies) == "each"
    fixed = trials[each & ~trials["mode"].map(cells.searches) & same_work]
    fits = sorted({int(g) for g in fixed[fixed["status"] == Status.OK]["gpus"]})
    if fits:
        said = f"{_titles(fixed)} worked there; fewer were not searched."
        return Answer("devices", question, f"At most {cells.devices(fits[0], kind)}", (said, *one, *note))
    return Answer("devices", question, "Not found: no trial with a copy per agent worked.", (*one, *note))


def what_failed(trials: pd.DataFrame, attempts: pd.DataFrame, skipped: int) -> Answer:
    """How many trials did not work and how, what was tainted, what was skipped."""
    bad = trials[trials["status"] != Status.OK]
    question = "What failed?"
    support = [
        f"{count(len(group), 'trial')} {ended(str(status))}: "
        + ", ".join(f"{m} ×{n}" for m, n in group["mode"].map(cells.mode_title).value_counts().items())
        + "."
        for status, group in bad.groupby("status", sort=False)
    ]
    earlier = attempts[~attempts["last"]]
    if len(earlier):
        support.append(f"{count(len(earlier), 'attempt')} of auto-expansion failed on the way, as meant.")
    tainted = int(trials["tainted"].sum())
    support.append(f"{count(tainted, 'trial')} tainted, {count(skipped, 'cell')} skipped.")
    answer = (
        f"{len(bad)} of {count(len(trials), 'trial')}"
        if len(bad)
        else f"None of {count(len(trials), 'trial')}"
    )
    return Answer("failed", question, answer, tuple(support))


def _titles(trials: pd.DataFrame) -> str:
    return " and ".join(cells.mode_title(m) for m in dict.fromkeys(trials["mode"]))


def _measured(trial: Mapping[str, Any], column: str) -> bool:
    return trial["status"] == Status.OK and trial[column] == trial[column] and trial[column] is not None


def _faster(ours: Mapping[int, float], theirs: Mapping[int, float]) -> bool:
    ratio = stats.paired(metrics.speedup, theirs, ours)
    return ratio.value is not None and ratio.value > 1


def cell_name(key: tuple, kind: str) -> str:
    on = "with" if cells.searches(key[0]) else "on"
    return f"{cells.mode_title(key[0])} {on} {cells.had(key[0], int(key[1]), kind)}"


def _against(ratio: stats.Estimate, name: str) -> str:
    """`8.22 × [8.03, 8.41] as fast as Sequential on 1 GPU`, and whether the interval tells them apart."""
    if ratio.value is None:
        return f"Against {name}: not estimable ({ratio.reason})."
    text = f"{estimate(ratio, '×')} as fast as {name}"
    if ratio.has_interval and ratio.low <= 1 <= ratio.high:
        return text + _SAME
    return text + "."
