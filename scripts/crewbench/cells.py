"""Cells in tables: what makes one, how it is named in print, and which of many are shown first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from crewbench.deployment import Deployment
from crewbench.modes import MODES
from crewbench.quality import Agreement
from crewbench.trial import Cell

CELL = ["mode", "gpus", "agents", "engine", "start", "variant"]
"""The columns that make a cell."""

WHERE = [*CELL, "compile_cache", "workload", "host"]
"""What one estimate is about: a cell's work on one host. Hosts differ too much to be pooled; what lay
compiled on disk is a part of the start state, and start states are never pooled."""

SETTING = ["agents", "engine", "start", "variant", "compile_cache", "host"]
"""What two modes must have in common to be compared."""

CHOICE = ["mode", "gpus", "engine", "start", "compile_cache", "variant"]
"""What a reader chooses for a crew at hand."""

COMPARED = ["agents", "conditions", "host"]
"""What two choices must have in common: `conditions` are the variant's options that set task or machine."""

Row = Mapping[str, Any]


def mode_title(mode: str) -> str:
    """The mode's title, or its name where the results come from a mode that this version has not."""
    return MODES[mode].title if mode in MODES else mode


def mode_rank(mode: str) -> int:
    return list(MODES).index(mode) if mode in MODES else len(MODES)


def devices(count: int, kind: str = "gpu") -> str:
    """ "1 GPU", "8 slots"."""
    noun = "slot" if kind == "slot" else "GPU"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def had(mode: str, gpus: int, kind: str = "gpu") -> str:
    """What a mode's cell may use: "4 GPUs", or "up to 8 GPUs" where its attempts find out how many."""
    return f"up to {devices(gpus, kind)}" if searches(mode) and gpus > 1 else devices(gpus, kind)


@cache
def _attempts(mode: str) -> tuple[Deployment, ...]:
    """What the mode makes of two agents and two GPUs; nothing for a mode that this version has not."""
    if mode not in MODES:
        return ()
    return tuple(MODES[mode].attempts(Cell(mode, gpus=2, agents=2, engine="eager", start="zygote")))


def searches(mode: str) -> bool:
    """Whether the mode has more than one attempt."""
    return len(_attempts(mode)) > 1


def deployment(cell: Cell) -> Deployment | None:
    """A cell's last attempt; None for a mode that this version has not."""
    return list(MODES[cell.mode].attempts(cell))[-1] if cell.mode in MODES else None


def agents_per_device(cell: Cell) -> int | None:
    """How many agents at most decode on one device at once; None for a mode that this version has not."""
    deployed = deployment(cell)
    if deployed is None:
        return None
    at_once = dict.fromkeys(deployed.devices, 0)
    for worker in deployed.workers:
        steps = sum(worker.name in step.workers for step in deployed.steps)
        for device in worker.devices:
            at_once[device] += min(worker.concurrency, steps)
    return max(at_once.values())


def copies(mode: str) -> str:
    """ "each": a model copy for each agent, all resident at once; "one": a single resident copy; else ""."""
    for deployment in _attempts(mode)[-1:]:
        if deployment.lifetime == "trial":
            return {1: "one", 2: "each"}[len(deployment.workers)]
    return ""


def baseline() -> str | None:
    """The mode that speed-ups are against."""
    return next((m.name for m in MODES.values() if m.baseline), None)


def label(row: Row, varying: Iterable[str] = (), kind: str = "gpu") -> str:
    """A cell in words: its mode, its devices, and those of its other properties that are `varying`."""
    parts = [mode_title(row["mode"]), had(row["mode"], int(row["gpus"]), kind)]
    for name in varying:
        if name == "agents":
            parts.append(f"{row['agents']} agent{'s' * (row['agents'] != 1)}")
        elif name == "compile_cache":
            parts += [compile_cache(row)] if compile_cache(row) else []
        elif name not in ("mode", "gpus"):
            parts.append(f"{row[name]} start" if name == "start" else str(row[name]))
    return ", ".join(parts)


def compile_cache(row: Row) -> str:
    """ "compile cache empty", or nothing where the engine compiles nothing."""
    return "" if row["compile_cache"] == "none" else f"compile cache {row['compile_cache']}"


def agreement(trials: pd.DataFrame, where: Mapping[str, Any]) -> Agreement:
    """Whether the engine of these trials that have `where`'s engine, variant, host and GPUs, as far as it
    names them, agrees with float32: what stands beside its speed."""
    named = {name: where[name] for name in ("engine", "variant", "host", "gpus") if name in where}
    return Agreement.worst(only(trials, named)["agreement"].unique())


def told(trials: pd.DataFrame, cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with its engine's agreement beside its engine's name, for a label: "eager (agrees)"; the name
    alone where nothing is known of it."""
    return {**cell, "engine": f"{cell['engine']}{agreement(trials, cell).beside}"}


def untold(found: Iterable[tuple[str, Agreement]], labelled: bool) -> str:
    """What is to be said of the agreement of (engine, agreement) pairs besides their labels: "Engine vllm:
    agreement with float32 not measured." `labelled`: whether labels name engines, as `told` makes them."""
    pairs = list(dict.fromkeys(found))
    names = [engine for engine, _ in pairs]
    if len({state for _, state in pairs}) == 1 and not pairs[0][1].beside:
        words = pairs[0][1].words
        return f"{words[0].upper()}{words[1:]}."
    told_some = labelled and any(state.beside for _, state in pairs)
    said = ["In brackets, whether an engine agrees with float32."] if told_some else []
    for state in Agreement:
        engines = [f"{e}{' in some cells' * (names.count(e) > 1)}" for e, of in pairs if of == state]
        if engines and not (labelled and state.beside):
            said.append(f"Engine{'s' * (len(engines) > 1)} {', '.join(engines)}: {state.words}.")
    return " ".join(said)


def varying(rows: pd.DataFrame, names: Iterable[str] = (*CELL, "host")) -> list[str]:
    """Those of the columns that have more than one value."""
    return [n for n in names if rows[n].nunique() > 1]


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the modes, then by everything else that makes a cell."""
    by = [c for c in (*CELL[1:], "host", "repeat", "attempt", "round") if c in rows]
    ranked = rows.assign(_rank=rows["mode"].map(mode_rank))
    return ranked.sort_values(["_rank", "mode", *by], kind="stable").drop(columns="_rank")


def headline_setting(trials: pd.DataFrame) -> dict[str, Any]:
    """The agents, engine, start (with what lay compiled), variant and host under which most modes were run:
    what is shown first.

    Ties go to more trials, then to more agents, then to the first in order."""
    if trials.empty:
        return {}
    found = (
        trials.groupby(SETTING, observed=True)
        .agg(modes=("mode", "nunique"), trials=("mode", "size"))
        .reset_index()
        .sort_values(["modes", "trials", "agents"], ascending=False, kind="stable")
    )
    return {name: found.iloc[0][name] for name in SETTING}


def only(rows: pd.DataFrame, setting: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these values."""
    keep = np.ones(len(rows), bool)
    for name, value in setting.items():
        keep &= (rows[name] == value).to_numpy(bool, na_value=False)
    return rows[keep]


def comparable(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of every choice for the headline setting's crew, under its conditions, on its host."""
    at = only(trials, headline_setting(trials))
    return trials if at.empty else only(trials, {name: at.iloc[0][name] for name in COMPARED})


def choice(key: tuple, kind: str, named: Iterable[str] = ()) -> str:
    """A key of CHOICE in words, with those of its properties that are `named`: "Served on 1 GPU, vllm"."""
    row = dict(zip(CHOICE, key, strict=True))
    words = {"engine": "{}", "start": "{} start", "variant": "variant {}"}
    told = [words[n].format(row[n]) for n in named if n in words and (n, row[n]) != ("variant", "base")]
    told += [compile_cache(row)] if "compile_cache" in named and compile_cache(row) else []
    on = "with" if searches(row["mode"]) else "on"
    return ", ".join([f"{mode_title(row['mode'])} {on} {had(row['mode'], int(row['gpus']), kind)}", *told])


def last_attempts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each trial's last attempt. What one did that was given up, even in a warm round, is no part
    of how the crew works."""
    return rows[rows["attempt"] == rows.groupby("trial_id")["attempt"].transform("max")]


def common_workload(trials: pd.DataFrame) -> str | None:
    """The work that most modes do: latency is compared between cells of this workload alone."""
    if trials.empty:
        return None
    counts = trials.groupby("workload", observed=True).agg(modes=("mode", "nunique"), trials=("mode", "size"))
    return str(counts.sort_values(["modes", "trials"], ascending=False, kind="stable").index[0])


def representative(trials: pd.DataFrame) -> pd.Series | None:
    """The trial that stands for its cell in a timeline: of those that worked the one with the (lower) median
    cold makespan, else the first."""
    if trials.empty:
        return None
    worked = trials[(trials["status"] == "ok") & trials["cold_s"].notna()]
    if worked.empty:
        return trials.sort_values("repeat").iloc[0]
    return worked.sort_values(["cold_s", "repeat"]).iloc[(len(worked) - 1) // 2]


def shown(trials: pd.DataFrame) -> pd.DataFrame:
    """One trial per mode to draw over time: the representative one of the mode's cell in the headline
    setting, of the cell with the most GPUs where there are several; of a mode that was not run there in the
    setting in which most of its trials worked."""
    chosen, setting = [], headline_setting(trials)
    for _, of_mode in trials.groupby("mode", observed=True, sort=False):
        here = only(of_mode, setting)
        ours = here if len(here) else of_mode
        worked = ours[ours["status"] == "ok"]
        pool = worked if len(worked) else ours
        pool = only(pool, headline_setting(pool))
        chosen.append(representative(pool[pool["gpus"] == pool["gpus"].max()]))
    return in_order(pd.DataFrame(chosen)) if chosen else trials.iloc[:0]
