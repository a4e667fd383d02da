"""The answers that the report opens with, in words and numbers, from the tables alone.

Pure functions. A mode is called fastest only against modes that did the same work in the same setting, and
the one after it is named with the ratio between them, so that a reader sees how far apart they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from crewbench import cells, metrics, stats
from crewbench.records import Status
from crewbench.stats import SIGNIFICANT_FROM
from crewbench.words import count, ended, estimate, number

_SAME = ": these trials cannot tell them apart."


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with its short answer and the sentences that support it. `choice`: values of cells.CHOICE
    that it names, if it names one."""

    name: str
    question: str
    answer: str
    support: tuple[str, ...] = ()
    choice: tuple[Any, ...] | None = None


def answers(tables: Mapping[str, pd.DataFrame]) -> list[Answer]:
    """Fastest cold, fastest warm, devices needed, what failed: in this order."""
    trials = tables["trials"]
    setting = cells.headline_setting(trials)
    here = cells.in_order(cells.comparable(trials))
    kind = "slot" if set(trials["device_kind"]) == {"slot"} else "gpu"
    return [
        fastest(here, "cold", kind),
        fastest(here, "warm", kind),
        devices_needed(
            cells.in_order(cells.only(trials, setting)), cells.only(tables["attempts"], setting), kind
        ),
        what_failed(trials, tables["attempts"], len(tables["skipped"])),
    ]


def fastest(trials: pd.DataFrame, phase: str, kind: str) -> Answer:
    """The choice with the least geometric mean makespan among those of the work that most modes do. One that
    worked in every trial goes before one that did not."""
    question = f"Which mode is fastest {phase}?"
    same = trials[trials["workload"] == cells.common_workload(trials)]
    found = ranked(same, f"{phase}_s")
    if not found:
        return Answer(phase, question, "Not measured: no trial worked.")
    named = cells.varying(same, cells.CHOICE[2:])
    of = by_choice(same)
    failures = {key: int((group["status"] != Status.OK).sum()) for key, group in of.items()}
    found.sort(key=lambda one: failures[one[1]] > 0)
    best, key, values = found[0]
    name = cells.choice(key, kind, named)
    support = [f"{estimate(best, 's')}, n = {best.n}."]
    if failed := failures[key]:
        support.append(
            f"It failed in {failed} of {count(failed + best.n, 'trial')}; none worked in all of its own."
        )
    for mean, other, _ in found:
        if mean.value < best.value and (failed := failures[other]):
            where = f"{number(mean.value)} s where it worked"
            all_of_it = count(len(of[other]), "trial")
            support.append(
                f"{cells.choice(other, kind, named)}: {where}, but it failed in {failed} of {all_of_it}."
            )
    if once := zygote(of[key]) if phase == "cold" else "":
        support.append(f"Not in it: {once}.")
    rivals = [r for r in found[1:] if not alike(phase, r[1], key)]
    after = rivals[:1]  # the next cell, the next other mode, and the usual baseline
    after += [r for r in rivals[1:] if r[1][0] != key[0]][:1] if after and after[0][1][0] == key[0] else []
    after += [r for r in rivals if r[1][0] == cells.baseline() and r not in after][:1]
    for _, other, theirs in after:
        ratio = stats.paired(metrics.speedup, theirs, values)
        support.append(_against(ratio, cells.choice(other, kind, named)))
    if not after:
        support.append("Nothing else was measured on the same work, so there is nothing to compare it with.")
    elif best.n < SIGNIFICANT_FROM:
        support.append(f"Under {SIGNIFICANT_FROM} repeats no difference is called significant.")
    answer = f"{name}: {number(best.value)} s"
    if any(line.endswith(_SAME) for line in support):
        answer = f"{name}, so far: {number(best.value)} s"
    return Answer(phase, question, answer, tuple(support))


Key = tuple[str, int, str, str, str, str]
"""Values of cells.CHOICE."""

Ranked = list[tuple[stats.Estimate, Key, dict[int, float]]]


def ranked(trials: pd.DataFrame, column: str) -> Ranked:
    """(geometric mean, key, value by repeat) of each choice that has any, the least first."""
    worked = trials.loc[
        (trials["status"] == Status.OK) & trials[column].notna(), [*cells.CHOICE, "repeat", column]
    ]
    found = []
    for key, group in by_choice(worked).items():
        values = dict(zip(group["repeat"], group[column].astype(float), strict=True))
        found.append((stats.geometric_mean(values.values()), key, values))
    if not found:
        return []
    # By repeats in common first: a mean over other repeats met another state of the machine.
    wins = _wins([values for _, _, values in found])
    order = sorted(range(len(found)), key=lambda i: (-wins[i], found[i][0].value))
    return [found[i] for i in order]


def devices_needed(trials: pd.DataFrame, attempts: pd.DataFrame, kind: str) -> Answer:
    """What a search found, with the attempts that failed as evidence; else where a copy per agent worked."""
    noun = "CPU slots" if kind == "slot" else "GPUs"
    question = f"How many {noun} does a copy per agent need?"
    note = ("The memory budget is simulated.",) if trials["simulated_budget"].any() else ()
    expanded = trials[trials["mode"].map(cells.searches)]
    worked = expanded[expanded["status"] == Status.OK]
    same_work = trials["workload"] == cells.common_workload(trials)
    # On one device a mode with one copy has no room for replicas of it.
    single = (trials["mode"].map(cells.copies) == "one") & (trials["gpus"] == 1) & same_work
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
    ok = (fixed["status"] == Status.OK).groupby(fixed["gpus"]).agg(["sum", "size"])
    support = [
        f"{_titles(cells.only(fixed, {'gpus': g}))} worked on {cells.devices(int(g), kind)} in {k} of "
        f"{count(n, 'trial')}."
        for g, k, n in ok.itertuples()
    ]
    always = [int(g) for g, k, n in ok.itertuples() if k == n]
    if always:
        answer = cells.devices(always[0], kind)
        if always[0] > 1 and always[0] == ok.index.min():
            answer, support = f"At most {answer}", [*support, "Fewer were not tried."]
        return Answer("devices", question, answer, (*support, *one, *note))
    answer = (
        "Not found: no number of them worked in every trial"
        if len(fixed)
        else ("Not measured: no mode with a copy per agent was run here")
    )
    return Answer("devices", question, answer, (*support, *one, *note))


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


def _wins(of: Sequence[Mapping[int, float]]) -> list[int]:
    """Of how many others each is faster: the geometric mean of the ratios in common repeats is over one."""
    repeats = sorted(set().union(*of))
    logs = np.log([[values.get(repeat, np.nan) for repeat in repeats] for values in of])
    known = ~np.isnan(logs)
    logs = np.where(known, logs, 0.0)
    # One row at a time: thousands of choices at once would take gigabytes.
    return [
        int((((logs - one) * (known & has)).sum(axis=1) > 0).sum())
        for one, has in zip(logs, known, strict=True)
    ]


def alike(phase: str, one: Key, other: Key) -> bool:
    """Whether two choices differ in the start alone, which warm rounds do not see."""
    starts = {cells.CHOICE.index("start"), cells.CHOICE.index("compile_cache")}
    return phase == "warm" and all(one[i] == other[i] for i in range(len(one)) if i not in starts)


def zygote(group: pd.DataFrame) -> str:
    """What a choice's cold rounds do not count, or "": its workers are forked from a process that was started
    before."""
    took = metrics.median(group["zygote_s"].dropna())
    return "" if took is None else f"{number(took)} s, once, for the process that its workers are forked from"


def by_choice(trials: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """The trials of each choice."""
    return dict(iter(trials.groupby(cells.CHOICE, observed=True, sort=False)))


def _against(ratio: stats.Estimate, name: str) -> str:
    """`8.22 × [8.03, 8.41] as fast as Sequential on 1 GPU`, and whether the interval tells them apart."""
    if ratio.value is None:
        return f"Against {name}: not estimable ({ratio.reason})."
    text = f"{estimate(ratio, '×')} as fast as {name}"
    if ratio.has_interval and ratio.low <= 1 <= ratio.high:
        return text + _SAME
    return text + "."
