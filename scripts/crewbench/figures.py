"""The figures: one function each, from the tables to a drawing that answers the question in its title.

Latency is compared only between cells that do the same work; cells that do other work stand apart. Every
trial is a point. A figure whose data are not there says why instead of being left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns

from crewbench import cells, drawing, ladder, metrics, palette, stats
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.engines import ENGINES
from crewbench.records import STAGES, Status
from crewbench.start import STARTS
from crewbench.words import ended, number, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTIONS = {
    "cold_warm": "How long does the crew take, cold and warm?",
    "stages": "Where does the time go?",
    "scaling": "Is another {device} worth its cost?",
    "attempts": "How many {device}s until nothing runs out of memory, and what does finding out cost?",
    "starts": "What does a cold start cost?",
    "engines": "How near does each engine come to the memory-bandwidth limit?",
    "memory": "How full does each device get?",
}
"""What each figure answers, in the report's order. Then follows a timeline of each mode."""

TIMELINE = "timeline_{mode}"

ROWS_MAX = 24
"""Cells in one figure; the tables have them all."""

_INK, _QUIET, _RULE, _PAPER = (c.light for c in (palette.INK, palette.QUIET, palette.RULE, palette.PAPER))
_BAD, _STARTING, _WAITING = (c.light for c in (palette.BAD, palette.STARTING, palette.WAITING))


def _setting_words(setting: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    words = {"agents": "{} agents", "engine": "{} engine", "start": "{} start", "variant": "variant {}"}
    said = [
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
        return cells.label(cell, varying, self.kind)

    def setting_words(self, *without: str) -> str:
        """ "8 agents, eager engine, zygote start, variant base"."""
        return _setting_words(self.setting, without)

    def question(self, name: str) -> str:
        return QUESTIONS[name].format(device=self.device)

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


def _drawn(name: str, sheet: Sheet, caption: str, description: str, notes: str = "") -> Drawn:
    caption = f"{caption} {notes}".strip()
    return Drawn(name, sheet.title, caption, description, sheet.figure)


def _missing(study: Study, name: str, why: str, question: str = "") -> Drawn:
    return Drawn(name, question or study.question(name), missing=why, description=f"Not measured: {why}")


def _count(trials: pd.DataFrame) -> str:
    """ "n = 3 trials a cell" or "n = 1 to 3 trials a cell"."""
    sizes = trials.groupby(cells.WHERE, observed=True).size()
    if sizes.empty:
        return "n = 0"
    low, high = int(sizes.min()), int(sizes.max())
    return (
        f"n = {low} trial{'s' * (low != 1)} a cell" if low == high else f"n = {low} to {high} trials a cell"
    )


def _outcome(trials: pd.DataFrame) -> str:
    """How a cell without a trial that worked ended: "out of memory (3 of 3)"."""
    statuses = trials["status"].value_counts()
    status = Status.worst(statuses.index)
    return f"{ended(status)} ({int(statuses[status])} of {len(trials)})"


def _estimate(values: Iterable[float]) -> stats.Estimate:
    return stats.geometric_mean([v for v in values if not math.isnan(v)])


def _groups(study: Study, rows: Sequence[tuple]) -> list[str]:
    """A heading before each row that begins work of another kind, else ""."""
    headings, before = [], None
    for cell, *_ in rows:
        same = cell["workload"] == study.workload
        headings.append("" if same == before else "the same work" if same else "other work, not compared")
        before = same
    return headings if len(set(headings) - {""}) > 1 else [""] * len(rows)


def _left(labels: Sequence[str], canvas: Canvas) -> float:
    return 0.12 if canvas.narrow else 0.25 + min(3.4, drawing.text_width_in(labels, 9))


def _spread(ax: Axes, values: pd.Series, y: float, colour: str, hollow: bool, limit: float) -> stats.Estimate:
    """Every trial as a point, their geometric mean as a bar across, its interval as a line, its value at the
    end of the row.

    `limit` is where the axis ends: two trials can have an interval of a factor of thousands."""
    estimate = _estimate(values)
    _points(ax, values, y, colour, hollow)
    if estimate.has_interval:
        ax.plot([estimate.low, min(estimate.high, limit)], [y, y], color=colour, lw=1.6, zorder=2)
        if estimate.high > limit:
            ax.plot([limit], [y], marker=">", ms=5, color=colour, clip_on=False)
    ax.plot([estimate.value] * 2, [y - 0.13, y + 0.13], color=_INK, lw=1.6, zorder=4)
    ax.annotate(
        seconds(estimate.value),
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(46, 0),
        textcoords="offset points",
        va="center",
        ha="right",
        size=8.5,
        color=_INK,
    )
    return estimate


def _end_of_axis(values: Iterable[float]) -> float:
    """A little beyond the largest value: intervals that reach further are cut there."""
    return 1.12 * max((v for v in values if not math.isnan(v)), default=1.0)


def _points(ax: Axes, values: pd.Series, y: float, colour: str, hollow: bool) -> None:
    """Every trial as a point."""
    sns.scatterplot(
        x=values.to_numpy(),
        y=np.full(len(values), y),
        ax=ax,
        s=34,
        marker="D" if hollow else "o",
        facecolor=_PAPER if hollow else colour,
        edgecolor=colour,
        linewidth=1.2,
        zorder=3,
        legend=False,
        rasterized=len(values) > 500,
    )


# The figures -------------------------------------------------------------------------------------


def cold_warm(study: Study, canvas: Canvas) -> Drawn:
    """Cold and warm makespan of each cell in the headline setting, every trial a point."""
    rows = study.cells(study.trials)
    if not rows:
        return _missing(study, "cold_warm", "no trial ran")
    labels = [study.label(cell) for cell, _ in rows]
    lines = drawing.Rows(labels, canvas, _groups(study, rows))
    sheet = Sheet(
        canvas,
        study.question("cold_warm"),
        [1.2 * lines.height_in],
        left=_left(labels, canvas),
        right=0.75,
        legend=[
            Key("cold", _INK, "o"),
            Key("warm", _INK, "D", hollow=True),
            Key("geometric mean (at the right), line: 95 % interval", _INK, "|"),
        ],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    worked = study.trials[study.trials["status"] == Status.OK]
    limit = _end_of_axis([*worked["cold_s"], *worked["warm_s"]])
    for i, (cell, trials) in enumerate(rows):
        ok = trials[trials["status"] == Status.OK]
        words = []
        for column, y, hollow in (
            ("cold_s", lines.at(i) - 0.17, False),
            ("warm_s", lines.at(i) + 0.17, True),
        ):
            values = ok[column].dropna()
            if values.empty:
                continue
            estimate = _spread(ax, values, y, canvas.mode(cell["mode"]), hollow, limit)
            words.append(f"{column[:4]} {seconds(estimate.value)}")
        if not words:
            words = [_outcome(trials)]
            _said_at(ax, lines.at(i), words[0], _BAD)
        said.append(f"{labels[i]}: {', '.join(words)}")
    lines.draw(ax)
    ax.set_xlim(0, limit)
    drawing.x_grid(ax, "makespan of one round, seconds")
    caption = (
        "Makespan of one round of the crew in seconds: cold (round 0, from the first process started to the "
        f"last answer, failed attempts included) and warm (on loaded workers). {study.setting_words()}; "
        f"{_count(study.trials)}, every trial a point."
    )
    return _drawn("cold_warm", sheet, caption, "; ".join(said), study.notes())


def stages(study: Study, canvas: Canvas) -> Drawn:
    """The stages along the critical path, stacked to the makespan: mean over a cell's trials that worked."""
    rows = study.cells(study.trials)
    found = [(cell, *(_stage_means(study, trials, p) for p in ("cold", "warm"))) for cell, trials in rows]
    found = [row for row in found if row[1] is not None or row[2] is not None]
    if not found:
        return _missing(study, "stages", "no trial worked")
    labels = [study.label(cell) for cell, *_ in found]
    present = [s for s in ("failed", *STAGES) if any(m and m[s] > 0 for _, *both in found for m in both)]
    lines = drawing.Rows(labels, canvas, _groups(study, found))
    sheet = Sheet(
        canvas,
        study.question("stages"),
        [lines.height_in] * 2,
        left=_left(labels, canvas),
        right=0.65,
        gap=0.78,
        heading=0.24,
        legend=[
            Key("failed attempts" if s == "failed" else s, canvas.stages[s], hatch=palette.hatch(s))
            for s in present
        ],
        note=study.notes(),
    )
    said = []
    for ax, phase, column in zip(sheet.axes, ("cold", "warm"), (1, 2), strict=True):
        for i, row in enumerate(found):
            means = row[column]
            if means is None:
                ax.annotate(
                    "not measured",
                    (0, lines.at(i)),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    size=8,
                    color=_QUIET,
                )
                continue
            left = 0.0
            for stage in present:
                ax.barh(
                    lines.at(i),
                    means[stage],
                    left=left,
                    height=0.5,
                    color=canvas.stages[stage],
                    hatch=palette.hatch(stage),
                    edgecolor=_PAPER,
                    linewidth=0.7,
                )
                left += means[stage]
            ax.annotate(
                seconds(left),
                (left, lines.at(i)),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8.5,
            )
            largest = sorted((s for s in present), key=means.__getitem__, reverse=True)[:3]
            said.append(
                f"{labels[i]}, {phase}: {seconds(left)}, most of it "
                + ", ".join(f"{s} {seconds(means[s])}" for s in largest if means[s] > 0)
            )
        lines.draw(ax)
        ax.set_xlim(left=0)
        drawing.x_grid(ax, "seconds")
        ax.set_title(
            f"{phase.capitalize()} round" + ("s" if phase == "warm" else ""),
            loc="left",
            weight="bold",
            x=0 if canvas.narrow else -(sheet.left - 0.1) / (canvas.width_in - sheet.left - sheet.right),
        )
    caption = (
        "Seconds in each stage along the critical path, so that they add up to the makespan; what no stage "
        "explains is idle. Arithmetic means over the trials that worked; "
        f"{study.setting_words()}; {_count(study.trials)}."
    )
    return _drawn("stages", sheet, caption, "; ".join(said))


def _stage_means(study: Study, trials: pd.DataFrame, phase: str) -> dict[str, float] | None:
    """Mean seconds per stage of the attempt that worked, and of what came before it."""
    ok = trials[trials["status"] == Status.OK]
    rounds = study.tables["rounds"]
    rounds = rounds[rounds["trial_id"].isin(ok["trial_id"]) & (rounds["host"].isin(ok["host"]))]
    rounds = rounds[(rounds["phase"] == phase) & (rounds["status"] == Status.OK)]
    if rounds.empty:
        return None
    means = {stage: float(rounds[f"{stage}_s"].mean()) for stage in STAGES}
    means["failed"] = float(ok["failed_attempts_s"].fillna(0).mean()) if phase == "cold" else 0.0
    return means


def scaling(study: Study, canvas: Canvas) -> Drawn:
    """Makespan and efficiency over GPU counts, for the modes that were run on several."""
    trials = study.trials
    fixed = trials[~trials["mode"].map(cells.searches)]  # there `gpus` is a limit, not what was used
    several = [m for m, g in fixed.groupby("mode", observed=True, sort=False) if g["gpus"].nunique() > 1]
    if not several:
        return _missing(
            study, "scaling", f"no mode was run on several numbers of {study.device}s in this setting"
        )
    chosen = fixed[fixed["mode"].isin(several)]
    counts = sorted(int(g) for g in chosen["gpus"].unique())
    place = {g: i for i, g in enumerate(counts)}
    limit = study.thresholds.get("scaling_efficiency", 0.5)
    sheet = Sheet(
        canvas,
        study.question("scaling"),
        [2.3, 1.4],
        left=0.62,
        right=0.3,
        gap=0.62,
        legend=[
            *(Key(cells.mode_title(m), canvas.mode(m)) for m in several),
            Key("cold", _INK, "o"),
            Key("warm", _INK, "D", hollow=True),
            Key("failed", _BAD, "X"),
        ],
        note=study.notes(),
    )
    time, share = sheet.axes
    said, failed_at = [], set()
    summary = study.tables["summary"]
    for mode in several:
        colour = canvas.mode(mode)
        of_mode = chosen[chosen["mode"] == mode]
        for column, hollow in (("cold_s", False), ("warm_s", True)):
            line = []
            for gpus, group in of_mode.groupby("gpus"):
                values = group[group["status"] == Status.OK][column].dropna()
                if values.empty:
                    failed_at.add((int(gpus), _outcome(group)))
                    continue
                x = place[int(gpus)] + (0.06 if hollow else -0.06)
                sns.scatterplot(
                    x=np.full(len(values), x),
                    y=values.to_numpy(),
                    ax=time,
                    s=34,
                    marker="D" if hollow else "o",
                    facecolor=_PAPER if hollow else colour,
                    edgecolor=colour,
                    linewidth=1.2,
                    zorder=3,
                    legend=False,
                )
                line.append((x, _estimate(values).value))
                said.append(
                    f"{cells.mode_title(mode)} on {cells.devices(int(gpus), study.kind)}, {column[:4]}: "
                    f"{seconds(line[-1][1])}"
                )
            time.plot(
                *zip(*line, strict=True), color=colour, lw=1.4, ls="--" if hollow else "-"
            ) if line else None
        for phase, hollow in (("cold", False), ("warm", True)):
            rows = cells.only(summary, study.setting)
            rows = rows[(rows["mode"] == mode) & (rows["metric"] == f"efficiency_{phase}")].dropna(
                subset=["estimate"]
            )
            if rows.empty:
                continue
            first = int(rows["baseline"].iloc[0].split()[0])
            xs = [place[g] + (0.06 if hollow else -0.06) for g in (first, *rows["gpus"].astype(int))]
            share.plot(
                xs,
                [100.0, *(100 * rows["estimate"])],
                marker="D" if hollow else "o",
                ms=6,
                mfc=_PAPER if hollow else colour,
                mec=colour,
                color=colour,
                lw=1.4,
                ls="--" if hollow else "-",
            )
    top = 1.12 * time.get_ylim()[1]
    for gpus, why in sorted(failed_at):
        time.plot([place[gpus]], [top * 0.93], marker="X", color=_BAD, ms=8, ls="")
        time.annotate(
            why.split(" (")[0],
            (place[gpus], top * 0.93),
            xytext=(0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            size=8,
            color=_BAD,
        )
        said.append(f"{cells.devices(gpus, study.kind)}: {why}")
    time.set_ylim(0, top)
    share.set_ylim(0, max(105.0, share.get_ylim()[1]))
    share.axhline(100 * limit, color=_QUIET, lw=1, ls=(0, (3, 2)))
    share.annotate(
        f"threshold {100 * limit:g} %",
        (0, 100 * limit),
        xycoords=("axes fraction", "data"),
        xytext=(2, 3),
        textcoords="offset points",
        ha="left",
        size=8,
        color=_QUIET,
    )
    for ax, label in ((time, "makespan, seconds"), (share, "efficiency, %")):
        ax.set_xlim(-0.5, len(counts) - 0.5)
        ax.set_xticks(range(len(counts)), [cells.devices(g, study.kind) for g in counts])
        ax.set_xlabel("")
        ax.set_ylabel(label)
        ax.tick_params(axis="y", labelcolor=_QUIET)
        ax.grid(axis="y")
    caption = (
        f"Above: makespan in seconds over the number of {study.device}s, every trial a point. Below: scaling "
        f"efficiency, {study.device}-seconds on the fewest {study.device}s that worked over "
        f"{study.device}-seconds here, paired by repeat; 100 % is perfect. {study.setting_words()}; "
        f"{_count(chosen)}."
    )
    return _drawn("scaling", sheet, caption, "; ".join(said))


def attempts(study: Study, canvas: Canvas) -> Drawn:
    """Every attempt of the modes that search, in every setting: one row per trial, each with its status."""
    rows = study.tables["attempts"]
    rows = rows[rows["mode"].map(cells.searches)]
    if rows.empty:
        return _missing(study, "attempts", "no mode that searches was run")
    varying = [n for n in cells.varying(rows, (*cells.SETTING, "mode", "gpus")) if n != "host"]
    trials = [(key, g) for key, g in rows.groupby([*varying, "repeat"], sort=True)][:ROWS_MAX]
    labels = [", ".join([*map(str, key[:-1]), f"repeat {key[-1]}"]) for key, _ in trials]
    colour = canvas.mode(rows["mode"].iloc[0])
    lines = drawing.Rows(labels, canvas)
    sheet = Sheet(
        canvas,
        study.question("attempts"),
        [lines.height_in],
        left=_left(labels, canvas),
        right=0.85,
        legend=[Key("ran out of memory", _BAD, hatch="////"), Key("worked", colour)],
        note=study.notes(memory=True),
    )
    ax, said = sheet.axes[0], []
    for i, (_, group) in enumerate(trials):
        zero = group["started_at_s"].min()
        words = []
        for a in group.sort_values("attempt").to_dict("records"):
            worked = a["status"] == Status.OK
            ax.barh(
                lines.at(i),
                a["duration_s"],
                left=a["started_at_s"] - zero,
                height=0.55,
                linewidth=0.7,
                color=colour if worked else _BAD,
                hatch="" if worked else "////",
                edgecolor=_PAPER,
            )
            ax.annotate(
                str(a["gpus_used"]),
                (a["started_at_s"] - zero + a["duration_s"] / 2, lines.at(i)),
                ha="center",
                va="center",
                size=9,
                weight="bold",
                color=_PAPER if worked else _INK,
                bbox=None if worked else {"boxstyle": "circle,pad=0.15", "fc": _PAPER, "ec": "none"},
            )
            words.append(
                f"{cells.devices(a['gpus_used'], study.kind)} {ended(a['status'])} after "
                f"{seconds(a['duration_s'])}"
            )
        end = group["ended_at_s"].max() - zero
        ax.annotate(
            seconds(end), (end, lines.at(i)), xytext=(5, 0), textcoords="offset points", va="center", size=8.5
        )
        said.append(f"{labels[i]}: {', '.join(words)}; {seconds(end)} in all")
    lines.draw(ax)
    ax.set_xlim(left=0)
    drawing.x_grid(ax, "seconds from the first attempt's start (cold round)")
    failed = rows[rows["status"] != Status.OK]
    per_count = [
        f"{cells.devices(int(g), study.kind)} failed {len(x)} of {len(x)} times at "
        f"{seconds(x['duration_s'].mean())} and {number(x['gpu_s'].mean())} {study.device}-seconds"
        for g, x in failed.groupby("gpus_used")
    ]
    caption = (
        f"The number in a bar is how many {study.device}s that attempt had. "
        + (f"On average {'; '.join(per_count)}. " if per_count else "No attempt failed. ")
        + f"{_setting_words(rows.iloc[0], varying)}; n = {len(trials)} trials."
    )
    return _drawn("attempts", sheet, caption, "; ".join(said), study.budget_note())


def starts(study: Study, canvas: Canvas) -> Drawn:
    """The ladder of start states: first token and makespan of round 0 from each, down to resident workers,
    with what each costs more than the next."""
    trials = study.tables["trials"]
    here = {k: v for k, v in study.setting.items() if k not in ("start", "compile_cache")}
    found = ladder.ladders(trials)
    if not found:
        return _missing(study, "starts", "no cell was run from several start states")
    found.sort(key=lambda one: any(one.cell[name] != value for name, value in here.items()))
    found = found[: ROWS_MAX // (len(STARTS) + 1)]
    varying = cells.varying(
        pd.DataFrame([one.cell for one in found]), ("agents", "engine", "variant", "host")
    )
    rows = [(one, study.label(one.cell, varying), rung) for one in found for rung in one.rungs]
    labels, names = [rung.name for *_, rung in rows], [name for _, name, _ in rows]
    headings = [name if rung is one.rungs[0] else "" for one, name, rung in rows]
    lines = drawing.Rows(labels, canvas, headings)
    panels = {"ttft_s": "time to first token, seconds", "makespan_s": "makespan of one round, seconds"}
    zygotes = [value for *_, rung in rows for value in rung.zygote_s]
    sheet = Sheet(
        canvas,
        study.question("starts"),
        [lines.height_in] * len(panels),
        left=_left([*labels, *names], canvas),
        right=0.8 if canvas.narrow else 2.9,
        gap=0.7,
        legend=[
            Key("round 0", _INK, "o"),
            Key("round on resident workers", _INK, "D", hollow=True),
            Key("median (at the right)", _INK, "|"),
            *([Key("the zygote's own start, not counted", _QUIET, "x")] if zygotes else []),
        ],
        note=study.notes(),
    )
    said = []
    for ax, (measure, axis) in zip(sheet.axes, panels.items(), strict=True):
        limit = _end_of_axis(
            [*(v for *_, rung in rows for v in rung.values.get(measure, {}).values()), *zygotes]
        )
        for i, (one, name, rung) in enumerate(rows):
            y, values = lines.at(i), rung.values.get(measure, {})
            if not values:
                _said_at(ax, y, rung.outcome or "not measured", _QUIET if rung.outcome == "not run" else _BAD)
                continue
            colour = canvas.mode(one.cell["mode"])
            _points(ax, pd.Series(values), y, colour, hollow=rung.start == ladder.RESIDENT)
            median = rung.median(measure)
            ax.plot([median] * 2, [y - 0.2, y + 0.2], color=_INK, lw=1.6, zorder=4)
            ax.plot(rung.zygote_s, [y] * len(rung.zygote_s), ls="", marker="x", ms=5, color=_QUIET, zorder=3)
            _valued(ax, y, seconds(median))
            words = (
                f"{name}, {axis.split(',')[0]} from {rung.name}: {seconds(median)} "
                f"(median, n = {len(values)})"
            )
            lower = one.below(rung, measure)
            if lower is not None:
                more = list(ladder.difference(rung, lower, measure).values())
                _beside_value(ax, y, _more(rung, lower, metrics.median(more)), rung.name, canvas)
                words += (
                    f", {_signed(metrics.median(more))} s over {lower.name} (paired by repeat: "
                    f"{_signed(min(more))} to {_signed(max(more))}, n = {len(more)})"
                )
            said.append(words)
        lines.draw(ax)
        ax.set_xlim(-0.015 * limit, limit)  # a point at a tenth of a second is seen whole
        drawing.x_grid(ax, axis)
    compiled = any(rung.compile_cache != "none" for *_, rung in rows)
    own = f"The zygote's own start took {seconds(metrics.median(zygotes))} (median) and is not counted. "
    caption = (
        "Round 0 from each start state: disk (weights evicted from the page cache"
        f"{', nothing compiled on disk' if compiled else ''}), process (new process, weights cached), zygote "
        "(forked from a process with the imports done), and a warm round on resident workers, of the trials "
        "of the row above it. Above, the time to the first token, median over the crew; below, the makespan. "
        "Beside each median, its cost over the next start state: median of the differences paired by repeat. "
        f"Start states are never pooled. {own if zygotes else ''}"
        f"{_setting_words(found[0].cell, (*varying, 'start'))}; every trial a point."
    )
    return _drawn("starts", sheet, caption, "; ".join(said))


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{number(abs(value))}"


def _more(rung: ladder.Rung, lower: ladder.Rung, seconds_more: float) -> str:
    """ "+6.05 s over zygote"; what lay compiled is said where that differs too."""
    differs = lower.compile_cache not in ("none", rung.compile_cache)
    return f"{_signed(seconds_more)} s over {lower.start}" + (
        f" (cache {lower.compile_cache})" if differs else ""
    )


def _said_at(ax: Axes, y: float, text: str, colour: str) -> None:
    """Words in place of a row's points."""
    ax.annotate(text, (0, y), xytext=(4, 0), textcoords="offset points", va="center", color=colour, size=8.5)


def _valued(ax: Axes, y: float, text: str) -> None:
    """A row's value, to the right of it."""
    ax.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(50, 0),
        textcoords="offset points",
        va="center",
        ha="right",
        size=8.5,
        color=_INK,
    )


def _beside_value(ax: Axes, y: float, text: str, label: str, canvas: Canvas) -> None:
    """More about a row, beside its value; on a phone above it, where its label leaves room."""
    if canvas.narrow and drawing.text_width_in([label]) + drawing.text_width_in([text]) > canvas.width_in:
        return
    ax.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(50, 14) if canvas.narrow else (60, 0),
        textcoords="offset points",
        va="center",
        ha="right" if canvas.narrow else "left",
        size=8,
        color=_QUIET,
    )


def engines(study: Study, canvas: Canvas) -> Drawn:
    """Each engine's decode rate against what the memory bandwidth measured in the same trial allows, and
    below what compiling costs before its first token."""
    trials = study.tables["trials"]
    known = trials[(trials["status"] == Status.OK) & trials["bandwidth_share"].notna()]
    if known.empty:
        notes = sorted(set(study.tables["devices"]["bandwidth_note"]) - {""})
        why = f": {drawing.plain(notes[0], 120)}" if notes else ""
        return _missing(study, "engines", f"no device's memory bandwidth is known{why}")
    rows = _engine_rows(known)
    varying = cells.varying(pd.DataFrame([cell for cell, _ in rows]), ("agents", "variant", "host"))
    labels = [f"{cell['engine']}: {study.label(cell, varying)}" for cell, _ in rows]
    alone = [_alone(group) for _, group in rows]
    headings = ["" if i and alone[i] == alone[i - 1] else _SHARING[alone[i]] for i in range(len(rows))]
    lines = drawing.Rows(labels, canvas, headings)
    compiled = _compiled_rows(trials, [cell for cell, _ in rows])
    below = drawing.Rows([label for label, _ in compiled], canvas)
    sheet = Sheet(
        canvas,
        study.question("engines"),
        [lines.height_in, *([below.height_in] if compiled else [])],
        left=_left([*labels, *below.labels, *headings], canvas),
        right=0.95,
        gap=0.7,
        legend=[
            Key("one trial", _INK, "o"),
            Key("median, and its share of the limit (at the right)", _INK, "|"),
            Key("the limit", _BAD, "|"),
        ],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    for i, (cell, group) in enumerate(rows):
        y, rates = lines.at(i), group["decode_tokens_per_s"]
        _points(ax, rates, y, canvas.mode(cell["mode"]), hollow=False)
        rate, limit, share = (
            metrics.median(group[name])
            for name in ("decode_tokens_per_s", "decode_limit_tokens_per_s", "bandwidth_share")
        )
        ax.plot([rate] * 2, [y - 0.2, y + 0.2], color=_INK, lw=1.6, zorder=4)
        ax.plot([limit] * 2, [y - 0.3, y + 0.3], color=_BAD, lw=1.8)
        _valued(ax, y, f"{number(rate)} ({100 * share:.0f} %)")
        shares = group["bandwidth_share"]
        said.append(
            f"{labels[i]}: {number(rate)} of {number(limit)} tokens/s, {100 * share:.1f} % "
            f"(median, {100 * shares.min():.1f} to {100 * shares.max():.1f} %, n = {len(group)})"
        )
    lines.draw(ax)
    ax.set_xlim(0, 1.04 * max(group["decode_limit_tokens_per_s"].max() for _, group in rows))
    drawing.x_grid(ax, "tokens a second of one agent, warm rounds")
    if compiled:
        ax = sheet.axes[1]
        for i, (label, values) in enumerate(compiled):
            _points(ax, values, below.at(i), _INK, hollow=False)
            median = metrics.median(values)
            ax.plot([median] * 2, [below.at(i) - 0.2, below.at(i) + 0.2], color=_INK, lw=1.6, zorder=4)
            _valued(ax, below.at(i), seconds(median))
            said.append(f"{label}: compiling {seconds(median)} (median, n = {len(values)})")
        below.draw(ax)
        ax.set_xlim(0, _end_of_axis(v for _, values in compiled for v in values))
        drawing.x_grid(ax, "compiling in a worker's start, seconds")
    caption = (
        "Decode rate of one agent in warm rounds beside what memory allows: copy bandwidth of the trial's "
        "own devices, bytes read and written, over the bytes of weights that a token reads; reads of the KV "
        "cache are left out. "
        + ("Below: what compiling costs, by what the trial found compiled on disk. " if compiled else "")
        + f"Each engine in the setting it was run in most; {_count(pd.concat([g for _, g in rows]))}, every "
        "trial a point."
    )
    return _drawn("engines", sheet, caption, "; ".join(said))


_SHARING = {True: "an agent has its device alone", False: "agents share a device, and its bandwidth"}


def _engine_rows(trials: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(cell, its trials) of each engine and variant in the setting that it was run in most: first those whose
    agents have a device alone, engines in the order of their declarations."""
    rows = []
    for _, of_engine in trials.groupby(["engine", "variant"], observed=True):
        setting = cells.headline_setting(of_engine)
        for key, group in cells.in_order(cells.only(of_engine, setting)).groupby(
            cells.WHERE, observed=True, sort=False
        ):
            rows.append((dict(zip(cells.WHERE, key, strict=True)), group))
    rank = [*ENGINES]
    rows.sort(
        key=lambda row: (
            not _alone(row[1]),
            rank.index(row[0]["engine"]) if row[0]["engine"] in rank else len(rank),
        )
    )
    return rows[:ROWS_MAX]


def _alone(trials: pd.DataFrame) -> bool:
    return bool((trials["agents_per_device"] <= 1).all())


def _compiled_rows(trials: pd.DataFrame, shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, pd.Series]]:
    """(what was compiled from which start state, seconds by trial) for the engines that are shown."""
    engines_shown = {(cell["engine"], cell["variant"]) for cell in shown}
    variants = len({variant for _, variant in engines_shown}) > 1
    rows = []
    known = trials[(trials["status"] == Status.OK) & trials["compile_s"].notna()]
    for key, group in known.groupby(["engine", "variant", "start", "compile_cache"], observed=True):
        engine, variant, start, state = key
        if (engine, variant) in engines_shown:
            name = f"{engine}, {variant}" if variants else engine
            said = cells.compile_cache({"compile_cache": state})
            rows.append((", ".join(filter(None, [f"{name}: {start} start", said])), group["compile_s"]))
    return rows[:ROWS_MAX]


def memory(study: Study, canvas: Canvas) -> Drawn:
    """Peak memory of every assigned device against its budget: one point per trial and device, no sums."""
    devices = cells.in_order(cells.only(study.tables["devices"], study.setting))
    devices = devices.dropna(subset=["used_peak_mib"])
    devices = devices[devices["in_use"]]
    if devices.empty:
        return _missing(study, "memory", "no device reported its memory")
    groups = [
        (mode, int(gpus), g)
        for (mode, gpus), g in devices.groupby(["mode", "gpus"], observed=True, sort=False)
    ][:ROWS_MAX]
    labels = [cells.label({"mode": m, "gpus": g}, (), study.kind) for m, g, _ in groups]
    lines = drawing.Rows(labels, canvas)
    simulated = bool(devices["simulated_budget"].any())
    sheet = Sheet(
        canvas,
        study.question("memory"),
        [lines.height_in],
        left=_left(labels, canvas),
        right=0.35,
        legend=[
            Key("peak of one device in one trial", _INK, "o"),
            Key("its budget" + (" (simulated)" if simulated else ""), _BAD, "|"),
        ],
        note=study.notes(memory=True),
    )
    ax, said = sheet.axes[0], []
    worked = study.trials[study.trials["status"] == Status.OK]
    for i, (mode, gpus, group) in enumerate(groups):
        spread = (group["device_index"] - group["device_index"].min()) / max(1, group["device_index"].max())
        sns.scatterplot(
            x=group["used_peak_mib"].to_numpy(),
            y=(lines.at(i) + 0.34 * (spread - 0.5)).to_numpy(),
            ax=ax,
            s=26,
            facecolor=canvas.mode(mode),
            edgecolor=_PAPER,
            linewidth=0.6,
            zorder=3,
            legend=False,
            rasterized=len(group) > 500,
        )
        for budget in group["budget_mib"].dropna().unique():
            ax.plot([budget] * 2, [lines.at(i) - 0.3, lines.at(i) + 0.3], color=_BAD, lw=1.8)
        said.append(
            f"{labels[i]}: at most {number(group['used_peak_mib'].max())} of "
            f"{number(group['budget_mib'].max())} MiB on one device"
        )
        if worked[(worked["mode"] == mode) & (worked["gpus"] == gpus)].empty:
            ax.annotate(
                "no trial worked",
                (0, lines.at(i)),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8.5,
                color=_BAD,
            )
            said[-1] += ", and no trial worked"
    lines.draw(ax)
    ax.set_xlim(left=0)
    ax.set_ylabel("")
    drawing.x_grid(ax, "peak memory of one device, MiB" + (", simulated budget" if simulated else ""))
    caption = (
        f"Peak memory in use on each {study.device} that held a worker, in MiB, a point per trial and "
        f"{study.device}: peaks are never added up. {study.setting_words()}; {_count(study.trials)}."
    )
    return _drawn("memory", sheet, caption, "; ".join(said), study.budget_note())


# Timelines ---------------------------------------------------------------------------------------


def timeline(study: Study, canvas: Canvas, mode: str) -> Drawn:
    """One trial of a mode over time: what every agent did, and each device's memory and utilisation below."""
    name = TIMELINE.format(mode=mode)
    question = f"{cells.mode_title(mode)}: who works, who waits, and what are the devices doing?"
    chosen = study.shown[study.shown["mode"] == mode]
    if chosen.empty:
        return _missing(study, name, f"{mode} was not run in the headline setting", question)
    trial = chosen.iloc[0]
    ours = {"trial_id": trial["trial_id"], "host": trial["host"]}
    agents, workers, rounds, samples = (
        cells.only(study.tables[n], ours) for n in ("agents", "workers", "rounds", "samples")
    )
    zero = rounds["started_at_s"].min()
    agents, workers, rounds, samples = (
        f.assign(**{c: f[c] - zero for c in f if c.endswith("_at_s")})
        for f in (agents, workers, rounds, samples)
    )
    people = list(dict.fromkeys(agents["agent"]))
    devices = sorted(samples["device_index"].unique())
    if canvas.narrow:
        row, thin = 0.3, 0.2
    else:
        row, thin = 0.24, 0.2
    names = [drawing.plain(str(p).replace("_", " "), 32) for p in people]
    places = [f"{study.device} {int(d)}" for d in devices]
    sheet = Sheet(
        canvas,
        question,
        [row * max(len(people), 1), thin * max(len(devices), 1), thin * max(len(devices), 1)],
        left=0.62 if canvas.narrow else _left([*names, *places], canvas),
        right=0.15 if canvas.narrow else 1.35,
        gap=0.4,
        heading=0.24,
        legend=[
            Key("starting", _STARTING),
            Key("waiting", _WAITING),
            Key("answering", canvas.mode(mode)),
            *([Key("failed", _BAD, hatch="////")] if (agents["status"] != Status.OK).any() else []),
        ],
        note=study.notes(memory=True),
    )
    top, middle, low = sheet.axes
    _agents_panel(top, people, names, agents, workers, canvas, mode)
    end = max(rounds["ended_at_s"].max(), agents["ended_at_s"].max() if len(agents) else 0)
    _rounds_marked(sheet.axes, rounds, top)
    budget = "simulated budget" if trial["simulated_budget"] else "whole budget"
    _devices_panel(middle, samples, devices, places, "used_mib", canvas, mode, end)
    top_util = samples["util_pct"].max()
    full = 100.0 * max(1, math.ceil(top_util / 100 - 0.1)) if top_util == top_util else 100.0
    _devices_panel(low, samples, devices, places, "util_pct", canvas, mode, end, full)
    middle.set_title(f"memory in use: a full row is the {budget}", loc="left", size=8.5, color=_QUIET)
    of_core = " of a core" if study.kind == "slot" else ""
    low.set_title(f"utilisation: a full row is {full:.0f} %{of_core}", loc="left", size=8.5, color=_QUIET)
    for ax in sheet.axes:
        ax.set_xlim(-0.01 * end, end * 1.01)
        if ax is not low:
            ax.set_xticklabels([])
        ax.grid(axis="x")
    low.set_xlabel("seconds from the first round's start", loc="left")
    caption = (
        f"One trial, repeat {trial['repeat']} of {study.label(trial)} ({study.setting_words()}): "
        + (
            "the one with the median cold makespan of those that worked. "
            if trial["status"] == "ok"
            else f"it {ended(trial['status'])}. "
        )
        + f"Above, each agent; below, memory and utilisation of each {study.device} on the same time axis."
    )
    return Drawn(
        name,
        question,
        f"{caption} {study.budget_note()}".strip(),
        _timeline_words(agents, rounds),
        sheet.figure,
    )


def _agents_panel(
    ax: Axes,
    people: Sequence[str],
    names: Sequence[str],
    agents: pd.DataFrame,
    workers: pd.DataFrame,
    canvas: Canvas,
    mode: str,
) -> None:
    lives = {
        (w["attempt"], w["worker"], w["worker_life"]): w
        for w in workers.sort_values("device_index", ascending=False).to_dict("records")
    }
    place = {p: i for i, p in enumerate(people)}
    for step in agents.to_dict("records"):
        y = place[step["agent"]]
        life = lives.get((step["attempt"], step["worker"], step["worker_life"]))
        if step["round"] == 0 and life is not None:
            _setup_bar(ax, y, life, step["status"])
            if life["spawned_at_s"] > step["queued_at_s"]:
                _waiting_bar(ax, y, step["queued_at_s"], life["spawned_at_s"])
        begin, end = step["started_at_s"], step["ended_at_s"]
        if math.isnan(begin):
            continue
        since = step["queued_at_s"]
        if life is not None and step["round"] == 0 and not math.isnan(life["ready_at_s"]):
            since = max(since, life["ready_at_s"])
        if begin > since:
            _waiting_bar(ax, y, since, begin)
        failed = step["status"] != Status.OK
        ax.barh(
            y,
            (begin if math.isnan(end) else end) - begin,
            left=begin,
            height=0.66,
            linewidth=0.6,
            color=_BAD if failed else canvas.mode(mode),
            hatch="////" if failed else "",
            edgecolor=_PAPER,
        )
        if failed:
            ax.annotate(
                ended(step["status"]),
                (begin if math.isnan(end) else end, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=_BAD,
            )
    ax.set_ylim(len(people) - 0.5, -0.5)
    _row_names(ax, names, canvas)


def _setup_bar(ax: Axes, y: float, life: Mapping[str, Any], status: str) -> None:
    """The worker's start in the row of its agent; in the colour of failure if it ran out of memory."""
    begin = life["spawned_at_s"]
    end = life["ready_at_s"] if not math.isnan(life["ready_at_s"]) else life["stopped_at_s"]
    if math.isnan(begin) or math.isnan(end):
        return
    oom = status == Status.OOM
    ax.barh(
        y,
        end - begin,
        left=begin,
        height=0.42,
        linewidth=0.6,
        edgecolor=_PAPER,
        color=_BAD if oom else _STARTING,
        hatch="////" if oom else "",
        alpha=None if status != "cancelled" else 0.5,
    )


def _waiting_bar(ax: Axes, y: float, begin: float, end: float) -> None:
    ax.barh(y, end - begin, left=begin, height=0.3, color=_WAITING, linewidth=0)


def _row_names(ax: Axes, names: Sequence[str], canvas: Canvas) -> None:
    ax.set_yticks([])
    for i, text in enumerate(names):
        short = drawing.plain(_initials(text) if canvas.narrow else text, 32)
        ax.annotate(
            short,
            (0, i),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 0),
            textcoords="offset points",
            va="center",
            ha="right",
            size=8 if canvas.narrow else 8.5,
        )


def _initials(name: str) -> str:
    """A name that fits beside a phone's plot: its first word, cut to eight letters."""
    words = name.split()
    if len(words) == 2 and words[1].isdigit():
        return name
    return words[0][:8] if words else ""


def _rounds_marked(axes: Sequence[Axes], rounds: pd.DataFrame, top: Axes) -> None:
    """A line where each round or attempt begins, and its name above."""
    several = rounds["attempt"].nunique() > 1
    for r in rounds.to_dict("records"):
        for ax in axes:
            ax.axvline(r["started_at_s"], color=_QUIET, lw=0.8, ls=(0, (2, 2)), zorder=0)
        texts = [f"warm {r['round']}", str(r["round"])]
        if r["round"] == 0:
            failed = "" if r["status"] == Status.OK else f": {ended(r['status'])}"
            mine = r["attempt"]
            texts = [f"attempt {mine}{failed}", f"attempt {mine}", f"{mine}"] if several else []
            texts += [f"cold{failed}", "cold"]
        share = r["makespan_s"] / (rounds["ended_at_s"].max() - rounds["started_at_s"].min())
        room = share * (top.get_position().width * top.figure.get_figwidth()) / 0.062
        text = next((t for t in texts if len(t) < room), "")
        top.annotate(
            text,
            (r["started_at_s"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 3),
            textcoords="offset points",
            size=8,
            color=_BAD if r["status"] != Status.OK else _QUIET,
        )


def _devices_panel(
    ax: Axes,
    samples: pd.DataFrame,
    devices: Sequence[int],
    places: Sequence[str],
    column: str,
    canvas: Canvas,
    mode: str,
    end: float,
    full: float = 100.0,
) -> None:
    """One row per device: how full it is over time, as a share of its budget or of 100 %."""
    for i, device in enumerate(devices):
        rows = samples[(samples["device_index"] == device) & samples["t_at_s"].between(0, end * 1.01)]
        values = rows[column].to_numpy(dtype=float)
        if column == "used_mib":
            # The median: while a process goes, a driver may count its memory as used and as free.
            budget = (rows["used_mib"] + rows["free_mib"]).median()
            full = budget if budget > 0 else np.nanmax(values, initial=1.0)
        ax.axhline(i + 0.5, color=_RULE, lw=0.6)
        if len(values) == 0 or np.isnan(values).all():
            words = "not measured"
        else:
            at, heights = _corners(rows["t_at_s"].to_numpy(), np.clip(np.nan_to_num(values / full), 0, 1))
            ax.fill_between(at, i + 0.5, i + 0.5 - 0.92 * heights, step="post", color=canvas.mode(mode), lw=0)
            words = (
                f"peak {number(np.nanmax(values))} of {number(full)} MiB"
                if column == "used_mib"
                else f"mean {np.nanmean(values):.0f} %"
            )
        if not canvas.narrow:
            ax.annotate(
                words,
                (1, i),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=_QUIET,
            )
    ax.set_ylim(len(devices) - 0.5, -0.5)
    _row_names(ax, places, canvas)


def _corners(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only the samples where the value changes, and the last: the same drawing from fewer points."""
    rounded = np.round(values, 2)
    keep = np.ones(len(values), dtype=bool)
    keep[1:] = rounded[1:] != rounded[:-1]
    keep[-1] = True
    return at[keep], rounded[keep]


def _timeline_words(agents: pd.DataFrame, rounds: pd.DataFrame) -> str:
    said = [
        f"{'warm round ' + str(r['round']) if r['round'] else 'cold round'}"
        f"{', attempt ' + str(r['attempt']) if rounds['attempt'].nunique() > 1 else ''}: "
        f"{'worked' if r['status'] == Status.OK else ended(r['status'])}, "
        f"{seconds(r['makespan_s'])}"
        for r in rounds.to_dict("records")
    ]
    failed = agents[~agents["status"].isin([Status.OK, Status.CANCELLED])]
    said += [
        f"{a['agent']} {ended(a['status'])} in round {a['round']}" for a in failed.to_dict("records")[:12]
    ]
    return "; ".join(said)


# Writing -----------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Study, Canvas], Drawn]] = {
    "cold_warm": cold_warm,
    "stages": stages,
    "scaling": scaling,
    "attempts": attempts,
    "starts": starts,
    "engines": engines,
    "memory": memory,
}


def write(study: Study, out: Path, palette_name: str = "colorblind", png_dpi: int = 120) -> list[str]:
    """Every figure as NAME.svg, NAME-narrow.svg (for phones) and NAME.png, and figures.json with their words.

    Gives the names. A figure without data is written too: it says why it is empty."""
    out.mkdir(parents=True, exist_ok=True)
    drawings = dict(FIGURES)
    for mode in dict.fromkeys(cells.in_order(study.tables["trials"])["mode"]):
        drawings[TIMELINE.format(mode=mode)] = lambda s, c, mode=mode: timeline(s, c, mode)
    index = []
    for name, draw in drawings.items():
        for canvas in (Canvas(False, palette_name), Canvas(True, palette_name)):
            drawn = draw(study, canvas)
            figure = drawn.figure or _empty(drawn, canvas)
            svg = drawing.to_svg(figure, canvas.colours, drawn.question, drawn.description)
            (out / f"{name}{'-narrow' * canvas.narrow}.svg").write_text(svg, encoding="utf-8")
            if not canvas.narrow:
                drawing.to_png(figure, out / f"{name}.png", png_dpi)
                index.append(words(drawn))
            drawing.close(figure)
    (out / "figures.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return list(drawings)


def words(drawn: Drawn) -> dict[str, str]:
    """The words of a figure: what figures.json holds of it."""
    return {n: getattr(drawn, n) for n in ("name", "question", "caption", "description", "missing")}


def _empty(drawn: Drawn, canvas: Canvas) -> Figure:
    sheet = Sheet(canvas, drawn.question, [0.3], bottom=0.1)
    sheet.axes[0].set_axis_off()
    sheet.axes[0].text(0, 0.5, drawing.plain(f"Not measured: {drawn.missing}."), va="center", color=_QUIET)
    return sheet.figure
