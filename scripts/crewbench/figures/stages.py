"""Where a round's time goes: its stages along the critical path, in a figure for each start state.

The stages are disjoint and add up to the makespan. What they leave is idle; more of it than the threshold is
marked beside the bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from crewbench import cells, drawing, palette
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import BAD, INK, PAPER, left_in, mean, work_headings
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing, n_each
from crewbench.records import STAGES, Status
from crewbench.start import STARTS
from crewbench.words import number, seconds

RESIDENT = "resident"
"""The start state of warm rounds, whatever the trial's own."""

VARYING = ("agents", "engine", "start", "variant", "compile_cache", "host")
OF_LABEL = ("variant", "compile_cache")
"""Those that stand in a row's label, not in the heading above it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One cell's rounds of one start state: seconds by stage, which add up to the makespan that the tables
    give, each trial's makespan with its repeat, and the worst round's share of its makespan that no stage
    explains (or that the stages claim beyond it), in %."""

    cell: dict[str, Any]
    seconds: dict[str, float]
    makespans_s: list[float]
    repeats: list[int]
    unexplained_pct: float

    @property
    def makespan_s(self) -> float:
        return sum(self.seconds.values())


def names(trials: pd.DataFrame) -> list[str]:
    """The start states that a study has figures for: those of its trials, then resident."""
    return [s for s in STARTS if s in set(trials["start"])] + [RESIDENT]


def stages(study: Study, canvas: Canvas, start: str) -> Drawn:
    """The stages of every cell's round from one start state, stacked to the makespan; each trial a point."""
    name, question = f"stages_{start}", study.question("stages").format(start=_title(start))
    trials = cells.in_order(study.tables["trials"])
    bars = _bars(study, trials if start == RESIDENT else trials[trials["start"] == start], start)
    if not bars:
        return missing(study, name, "no trial worked" if start != RESIDENT else "no warm round", question)
    limit = 100 * study.thresholds.get("idle_share", 0.02)
    shown = [bar.cell for bar in bars]
    varying = cells.varying(pd.DataFrame(shown), VARYING)
    labels, headings = _names(study, shown, varying)
    lines = drawing.Rows(labels, canvas, headings, [cell["mode"] for cell in shown])
    present = [s for s in ("failed", *STAGES) if any(bar.seconds[s] > 0 for bar in bars)]
    marked = any(bar.unexplained_pct > limit for bar in bars)
    legend = [
        Key("failed attempts" if s == "failed" else s, canvas.stages[s], hatch=palette.hatch(s))
        for s in present
    ]
    sheet = Sheet(
        canvas,
        question,
        [lines.height_in],
        left=left_in([*labels, *headings], canvas),
        right=1.4 if marked else 0.65,
        legend=[*legend, Key("makespan of a trial", INK, "o", hollow=True)],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    furthest = max(max(bar.makespans_s) for bar in bars)
    for i, bar in enumerate(bars):
        over = bar.unexplained_pct > limit
        _stack(ax, lines.at(i), bar, present, canvas)
        reach = max(bar.makespan_s, *bar.makespans_s) + 0.012 * furthest
        beside = seconds(bar.makespan_s) + (f", {number(bar.unexplained_pct)} % idle" if over else "")
        ax.annotate(
            beside,
            (reach, lines.at(i)),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=BAD if over else INK,
        )
        said.append(_in_words(study, bar, varying, over))
    lines.draw(ax)
    ax.set_xlim(0, 1.03 * furthest)
    drawing.x_grid(ax, "seconds")
    marks = (
        f"More than {number(limit)} % unexplained is marked."
        if marked
        else f"No trial has more than {number(limit)} % unexplained."
    )
    ran = pd.DataFrame([t for bar in bars for t in _of(trials, bar.cell).to_dict("records")])
    where = _where(study, bars[0].cell, varying, start)
    caption = (
        f"Seconds in each stage along the critical path of {_rounds(start)}: its share over the trials that "
        "worked, of their geometric mean makespan, which the tables give. What no stage explains is idle. "
        f"{marks} {'; '.join(filter(None, [where, n_each(ran)]))}, every trial a point. "
        f"{study.agreements(shown) if 'engine' in varying else ''}"
    )
    return finish(name, sheet, caption, "; ".join(said), study.notes())


def _title(start: str) -> str:
    return "on loaded workers" if start == RESIDENT else f"from a {STARTS[start].title}"


def _rounds(start: str) -> str:
    return "each trial's median warm round" if start == RESIDENT else "round 0"


def _where(study: Study, cell: dict[str, Any], varying: list[str], start: str) -> str:
    without = [*varying, *(["start"] if start != RESIDENT else [])]
    return study.setting_words(*without, of=cell)


def _bars(study: Study, trials: pd.DataFrame, start: str) -> list[Bar]:
    """The cells with such a round that worked, those of the headline setting first, the common work first."""
    worked = trials[trials["status"] == Status.OK]
    phase = "warm" if start == RESIDENT else "cold"
    rounds = cells.last_attempts(study.tables["rounds"])
    rounds = rounds[(rounds["phase"] == phase) & (rounds["status"] == Status.OK)]
    groups = [
        (dict(zip(cells.WHERE, key, strict=True)), group)
        for key, group in worked.groupby(cells.WHERE, observed=True, sort=False)
    ]
    groups.sort(key=lambda pair: _elsewhere(study, pair[0]))
    bars = (_bar(cell, group, rounds, phase) for cell, group in groups[:ROWS_MAX])
    return [bar for bar in bars if bar is not None]


def _elsewhere(study: Study, cell: dict[str, Any]) -> tuple:
    differs = {n: cell[n] != value for n, value in study.setting.items()}
    away = any(differs[n] for n in differs if n != "start")
    where = [(differs[n], cell[n]) for n in VARYING]
    return away, *where, cell["workload"] != study.workload


def _bar(cell: dict[str, Any], trials: pd.DataFrame, rounds: pd.DataFrame, phase: str) -> Bar | None:
    ours = rounds[rounds["trial_id"].isin(trials["trial_id"])]
    if ours.empty:
        return None
    # What a round's stages leave of its makespan is idle too; what they claim beyond it cannot be shown.
    left = ours["makespan_s"] - ours[[f"{stage}_s" for stage in STAGES]].sum(axis=1)
    unexplained = 100 * (ours["idle_s"] + left.abs()) / ours["makespan_s"]
    ours = ours.assign(idle_s=ours["idle_s"] + left.clip(lower=0))
    middle = pd.concat([_middle(of_trial) for _, of_trial in ours.groupby("trial_id")])
    by_trial = middle.groupby("trial_id")[[f"{stage}_s" for stage in STAGES]].mean()
    sums = {stage: float(by_trial[f"{stage}_s"].mean()) for stage in STAGES}
    before = trials["failed_attempts_s"].fillna(0) if phase == "cold" else pd.Series([0.0])
    sums["failed"] = float(before.mean())
    made = trials.set_index("repeat")[f"{phase}_s"].dropna()
    scale = mean(made).value / sum(sums.values())
    parts = {stage: scale * total for stage, total in sums.items()}
    return Bar(cell, parts, [float(s) for s in made], [int(r) for r in made.index], float(unexplained.max()))


def _middle(rounds: pd.DataFrame) -> pd.DataFrame:
    """A trial's round whose makespan is the median, the two of an even number: what `warm_s` is made of."""
    ranked = rounds.sort_values("makespan_s", kind="stable")
    return ranked.iloc[(len(rounds) - 1) // 2 : len(rounds) // 2 + 1]


def _stack(ax: Any, y: float, bar: Bar, present: list[str], canvas: Canvas) -> None:
    left = 0.0
    for stage in present:
        (part,) = ax.barh(
            y,
            bar.seconds[stage],
            left=left,
            height=0.5,
            color=canvas.stages[stage],
            hatch=palette.hatch(stage),
            edgecolor=PAPER,
            linewidth=0.7,
        )
        drawing.says(part, [f"{stage} {seconds(bar.seconds[stage])}"])
        left += bar.seconds[stage]
    sns.scatterplot(
        x=bar.makespans_s,
        y=np.full(len(bar.makespans_s), y),
        ax=ax,
        s=20,
        facecolor=PAPER,
        edgecolor=INK,
        linewidth=1.0,
        zorder=4,
        legend=False,
        rasterized=len(bar.makespans_s) > 500,
    )
    if len(bar.makespans_s) <= 500:
        words = [f"{seconds(s)}, repeat {r}" for s, r in zip(bar.makespans_s, bar.repeats, strict=True)]
        drawing.says(ax.collections[-1], words)


def _names(study: Study, shown: list[dict[str, Any]], varying: list[str]) -> tuple[list[str], list[str]]:
    """Labels of the rows, and a heading before each that begins another setting; where all have one setting,
    before each that begins work of another kind."""
    labels = [study.label(cell, [n for n in varying if n in OF_LABEL]) for cell in shown]
    settings = [study.setting_of(cell, [n for n in varying if n not in OF_LABEL]) for cell in shown]
    if len(set(settings)) == 1:
        return labels, work_headings(study, [(cell,) for cell in shown])
    same = [cell["workload"] == study.workload for cell in shown]
    labels = [text if of else f"{text} (other work)" for text, of in zip(labels, same, strict=True)]
    return labels, ["" if i and s == settings[i - 1] else s for i, s in enumerate(settings)]


def _in_words(study: Study, bar: Bar, varying: list[str], over: bool) -> str:
    largest = sorted(bar.seconds, key=bar.seconds.__getitem__, reverse=True)[:3]
    parts = ", ".join(f"{s} {seconds(bar.seconds[s])}" for s in largest if bar.seconds[s] > 0)
    more = f", {number(bar.unexplained_pct)} % unexplained at worst" if over else ""
    return f"{study.label(bar.cell, varying)}: {seconds(bar.makespan_s)}, most of it {parts}{more}"


def _of(trials: pd.DataFrame, cell: dict[str, Any]) -> pd.DataFrame:
    ours = cells.only(trials, cell)
    return ours[ours["status"] == Status.OK]
