"""What a figure is made from and what it becomes: the tables of a study, and a drawing with its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from crewbench import cells
from crewbench.drawing import Sheet
from crewbench.records import Status
from crewbench.words import count, ended

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTIONS = {
    "cold_warm": "How long does the crew take, cold and warm?",
    "stages": "Where does the time go {start}?",
    "chain": "What does a chain's growing context cost?",
    "scaling": "Is another {device} worth its cost?",
    "attempts": "How many {device}s until nothing runs out of memory, and what does finding out cost?",
    "starts": "What does a cold start cost?",
    "engines": "How near does each engine come to the memory-bandwidth limit?",
    "memory": "How full does each device get?",
    "framework": "What does the agents' framework cost?",
    "interference": "How much do agents slow each other?",
    "breakeven": "After how many calls is a dearer start repaid?",
}
"""What each figure answers, in the report's order: `stages` is a figure for each start state. Then follows
a timeline of each mode."""

TIMELINE = "timeline_{mode}"

ROWS_MAX = 24
"""Cells in one figure; the tables have them all."""


def setting_words(setting: Mapping[str, Any], without: Iterable[str], agreement: str) -> str:
    """ "8 agents, eager engine (agrees with float32), zygote start, variant base"; `without`: what is said
    elsewhere."""
    words = {
        "engine": f"{{}} engine ({agreement})",
        "start": "{} start",
        "variant": "variant {}",
    }
    agents = "agents" in setting and "agents" not in without
    said = [count(int(setting["agents"]), "agent")] if agents else []
    said += [
        text.format(setting[name]) for name, text in words.items() if name not in without and name in setting
    ]
    compiled = cells.compile_cache(setting) if {"start", "compile_cache"}.isdisjoint(without) else ""
    return ", ".join([*said, compiled] if compiled else said)


@dataclass(frozen=True)
class Study:
    """The tables, and what the figures show of them: the headline setting first."""

    tables: Mapping[str, pd.DataFrame]
    thresholds: Mapping[str, float]

    @cached_property
    def setting(self) -> dict[str, Any]:
        return cells.headline_setting(self.tables["trials"])

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The trials in the headline setting, in the order of the modes."""
        return cells.in_order(cells.only(self.tables["trials"], self.setting))

    @cached_property
    def workload(self) -> str | None:
        return cells.common_workload(self.trials)

    @cached_property
    def shown(self) -> pd.DataFrame:
        return cells.shown(self.tables["trials"])

    @property
    def kind(self) -> str:
        kinds = self.tables["trials"]["device_kind"].unique()
        return "slot" if list(kinds) == ["slot"] else "gpu"

    @property
    def device(self) -> str:
        return "slot" if self.kind == "slot" else "GPU"

    def cells(self, trials: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        """(cell, its trials), those of the common workload first, at most ROWS_MAX."""
        found = [
            (dict(zip(cells.WHERE, key, strict=True)), group)
            for key, group in trials.groupby(cells.WHERE, observed=True, sort=False)
        ]
        found.sort(key=lambda pair: pair[0]["workload"] != self.workload)
        return found[:ROWS_MAX]

    def label(self, cell: Mapping[str, Any], varying: Iterable[str] = ()) -> str:
        if "engine" in varying:
            cell = cells.told(self.tables["trials"], cell)
        return cells.label(cell, varying, self.kind)

    def setting_of(self, cell: Mapping[str, Any], varying: Iterable[str]) -> str:
        """What a cell's label says besides mode and devices: "3 agents, eager, process start"."""
        return self.label(cell, varying).removeprefix(self.label(cell)).removeprefix(", ")

    def engine(self, cell: Mapping[str, Any]) -> str:
        """ "compiled (agrees)"; what is not known of an engine is said by `agreements`, once a figure."""
        return cells.told(self.tables["trials"], cell)["engine"]

    def agreements(self, shown: Iterable[Mapping[str, Any]], labelled: bool = True) -> str:
        """What a caption says of the agreement of these cells' engines: no speed stands without it."""
        trials = self.tables["trials"]
        return cells.untold(((c["engine"], cells.agreement(trials, c)) for c in shown), labelled)

    def setting_words(self, *without: str, of: Mapping[str, Any] | None = None) -> str:
        """The headline setting, or that `of` a row, in words."""
        setting = self.setting if of is None else of
        return setting_words(setting, without, cells.agreement(self.tables["trials"], setting).words)

    def question(self, name: str) -> str:
        return QUESTIONS[name].format(device=self.device, start="{start}")

    def budget_note(self) -> str:
        """What stands wherever the memory of slots shows."""
        simulated = self.tables["trials"]["simulated_budget"].any()
        return "Memory of CPU slots is a simulated budget." if simulated else ""

    def notes(self, memory: bool = False) -> str:
        """What a figure that stands alone must say of this study's data."""
        random = self.tables["trials"]["random_weights"].any()
        words = "Random weights: measures speed and memory, not language." if random else ""
        return f"{self.budget_note() if memory else ''} {words}".strip()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with its words. Without a `figure`, `missing` says why there is none."""

    name: str
    question: str
    caption: str = ""
    description: str = ""
    figure: Figure | None = None
    missing: str = ""


def finish(name: str, sheet: Sheet, caption: str, description: str, notes: str = "") -> Drawn:
    """The figure of a sheet, with its words and the study's notes."""
    caption = " ".join(f"{caption} {notes}".split())
    return Drawn(name, sheet.title, caption, description, sheet.figure)


def missing(study: Study, name: str, why: str, question: str = "") -> Drawn:
    """In place of a figure, why there is none."""
    return Drawn(name, question or study.question(name), missing=why, description=f"Not measured: {why}")


def n_each(trials: pd.DataFrame) -> str:
    """ "n = 3 trials a cell" or "n = 1 to 3 trials a cell"."""
    sizes = trials.groupby(cells.WHERE, observed=True).size()
    if sizes.empty:
        return "n = 0"
    low, high = int(sizes.min()), int(sizes.max())
    return (
        f"n = {low} trial{'s' * (low != 1)} a cell" if low == high else f"n = {low} to {high} trials a cell"
    )


def outcome(trials: pd.DataFrame) -> str:
    """How a cell without a trial that worked ended: "out of memory (3 of 3)"."""
    statuses = trials["status"].value_counts()
    status = Status.worst(statuses.index)
    return f"{ended(status)} ({int(statuses[status])} of {len(trials)})"
