"""What it costs until the first round is done: attempts that failed, and the start states."""

from __future__ import annotations

import pandas as pd

from crewbench import cells, drawing, ladder, metrics
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import (
    BAD,
    INK,
    PAPER,
    QUIET,
    beside_value,
    end_of_axis,
    left_in,
    said_at,
    signed,
    spread,
)
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing
from crewbench.records import Status
from crewbench.start import STARTS
from crewbench.stats import Estimate
from crewbench.words import ended, estimate, number, seconds


def attempts(study: Study, canvas: Canvas) -> Drawn:
    """Every attempt of the modes that search, in every setting: one row per trial, each with its status."""
    rows = study.tables["attempts"]
    rows = rows[rows["mode"].map(cells.searches)]
    if rows.empty:
        return missing(study, "attempts", "no mode that searches was run")
    varying = [n for n in cells.varying(rows, (*cells.SETTING, "mode", "gpus")) if n != "host"]
    trials = [(key, g) for key, g in rows.groupby([*varying, "repeat"], sort=True)][:ROWS_MAX]
    named = [(dict(zip(varying, key, strict=False)), group.iloc[0]) for key, group in trials]
    labels = [
        ", ".join(
            [
                *(study.engine(row) if name == "engine" else str(value) for name, value in key.items()),
                f"repeat {row['repeat']}",
            ]
        )
        for key, row in named
    ]
    colour = canvas.mode(rows["mode"].iloc[0])
    lines = drawing.Rows(labels, canvas, modes=[group["mode"].iloc[0] for _, group in trials])
    sheet = Sheet(
        canvas,
        study.question("attempts"),
        [lines.height_in],
        left=left_in(labels, canvas),
        right=0.85,
        legend=[Key("ran out of memory", BAD, hatch="////"), Key("worked", colour)],
        note=study.notes(memory=True),
    )
    ax, said = sheet.axes[0], []
    for i, (_, group) in enumerate(trials):
        zero = group["started_at_s"].min()
        words = []
        for a in group.sort_values("attempt").to_dict("records"):
            worked = a["status"] == Status.OK
            (bar,) = ax.barh(
                lines.at(i),
                a["duration_s"],
                left=a["started_at_s"] - zero,
                height=0.55,
                linewidth=0.7,
                color=colour if worked else BAD,
                hatch="" if worked else "////",
                edgecolor=PAPER,
            )
            tried = f"{cells.devices(a['gpus_used'], study.kind)} {ended(a['status'])} after"
            drawing.says(bar, [f"{tried} {seconds(a['duration_s'])}"])
            ax.annotate(
                str(a["gpus_used"]),
                (a["started_at_s"] - zero + a["duration_s"] / 2, lines.at(i)),
                ha="center",
                va="center",
                size=9,
                weight="bold",
                color=PAPER if worked else INK,
                bbox=None if worked else {"boxstyle": "circle,pad=0.15", "fc": PAPER, "ec": "none"},
            )
            words.append(f"{tried} {seconds(a['duration_s'])}")
        end = group["ended_at_s"].max() - zero
        ax.annotate(
            seconds(end), (end, lines.at(i)), xytext=(5, 0), textcoords="offset points", va="center", size=8.5
        )
        said.append(f"{labels[i]}: {', '.join(words)}; {seconds(end)} in all")
    lines.draw(ax)
    ax.set_xlim(left=0)
    drawing.x_grid(ax, "seconds from the first attempt's start (cold round)")
    failed = rows[rows["status"] != Status.OK]
    tried_with = rows["gpus_used"].value_counts()
    per_count = [
        f"{cells.devices(int(g), study.kind)} failed {len(x)} of {tried_with[g]} times at "
        f"{seconds(x['duration_s'].mean())} and {number(x['gpu_s'].mean())} {study.device}-seconds"
        for g, x in failed.groupby("gpus_used")
    ]
    setting = study.setting_words(*varying, of=rows.iloc[0])
    caption = (
        f"The number in a bar is how many {study.device}s that attempt had. "
        + (f"On average {'; '.join(per_count)}. " if per_count else "No attempt failed. ")
        + f"{setting + '; ' if setting else ''}n = {len(trials)} trials. "
        f"{study.agreements(row for _, row in named) if 'engine' in varying else ''}"
    )
    return finish("attempts", sheet, caption, "; ".join(said), study.budget_note())


def starts(study: Study, canvas: Canvas) -> Drawn:
    """The ladder of start states: first token and makespan of round 0 from each, down to resident workers,
    with what each costs more than the next."""
    trials = study.tables["trials"]
    here = {k: v for k, v in study.setting.items() if k not in ("start", "compile_cache")}
    found = ladder.ladders(trials)
    if not found:
        return missing(study, "starts", "no cell was run from several start states")
    found.sort(key=lambda one: any(one.cell[name] != value for name, value in here.items()))
    found = found[: ROWS_MAX // (len(STARTS) + 1)]
    varying = cells.varying(
        pd.DataFrame([one.cell for one in found]), ("agents", "engine", "variant", "host")
    )
    rows = [(one, study.label(one.cell, varying), rung) for one in found for rung in one.rungs]
    labels, names = [rung.name for *_, rung in rows], [name for _, name, _ in rows]
    headings = [name if rung is one.rungs[0] else "" for one, name, rung in rows]
    lines = drawing.Rows(labels, canvas, headings, [one.cell["mode"] for one, *_ in rows])
    panels = {"ttft_s": "time to first token, seconds", "makespan_s": "makespan of one round, seconds"}
    zygotes = [value for *_, rung in rows for value in rung.zygote_s]
    beside = {
        (measure, i): (lower, ladder.more(rung, lower, measure))
        for measure in panels
        for i, (one, _, rung) in enumerate(rows)
        if (lower := one.below(rung, measure)) is not None
    }
    words = [_more(rows[i][2], *found) for (_, i), found in beside.items()]
    sheet = Sheet(
        canvas,
        study.question("starts"),
        [lines.height_in] * len(panels),
        left=left_in([*labels, *names], canvas),
        right=0.8 if canvas.narrow else 1.0 + drawing.text_width_in(words, 8),
        gap=0.7,
        legend=[
            Key("round 0", INK, "o"),
            Key("round on resident workers", INK, "D", hollow=True),
            Key("geometric mean (at the right), line: 95 % interval", INK, "|"),
            *([Key("the zygote's own start, not counted", QUIET, "x")] if zygotes else []),
        ],
        note=study.notes(),
    )
    said = []
    for ax, (measure, axis) in zip(sheet.axes, panels.items(), strict=True):
        limit = end_of_axis(
            [*(v for *_, rung in rows for v in rung.values.get(measure, {}).values()), *zygotes]
        )
        for i, (one, name, rung) in enumerate(rows):
            y, values = lines.at(i), rung.values.get(measure, {})
            if not values:
                said_at(ax, y, rung.outcome or "not measured", QUIET if rung.outcome == "not run" else BAD)
                continue
            colour = canvas.mode(one.cell["mode"])
            each = [f"{rung.name}: {seconds(v)}" for v in values.values()]
            spread(ax, pd.Series(values), y, colour, rung.start == ladder.RESIDENT, limit, each)
            ax.plot(rung.zygote_s, [y] * len(rung.zygote_s), ls="", marker="x", ms=5, color=QUIET, zorder=3)
            line = (
                f"{name}, {axis.split(',')[0]} from {rung.name}: {estimate(rung.mean(measure), 's')}, "
                f"n = {len(values)}"
            )
            if (measure, i) in beside:
                lower, more = beside[measure, i]
                beside_value(ax, y, _more(rung, lower, more), rung.name, canvas)
                line += f", {_difference(more)} over {lower.name} (paired by repeat, n = {more.n})"
            said.append(line)
        lines.draw(ax)
        ax.set_xlim(-0.015 * limit, limit)  # a point at a tenth of a second is seen whole
        drawing.x_grid(ax, axis)
    compiled = any(rung.compile_cache != "none" for *_, rung in rows)
    setting = study.setting_words(*varying, "start", of=found[0].cell)
    own = f"The zygote's own start took {seconds(metrics.median(zygotes))} (median) and is not counted. "
    caption = (
        "Round 0 from each start state: disk (weights evicted from the page cache"
        f"{', nothing compiled on disk' if compiled else ''}), process (new process, weights cached), zygote "
        "(forked from a process with the imports done), and a warm round on resident workers, of the trials "
        "of the row above it. Above, the time to the first token, median over the crew; below, the makespan. "
        "Values are geometric means with their 95 % intervals; beside each its cost over the next start "
        "state: the mean of the differences paired by repeat, in brackets its 95 % interval, which one "
        f"repeat does not have. Start states are never pooled. {own if zygotes else ''}"
        f"{setting + '; every' if setting else 'Every'} trial a point. "
        f"{study.agreements(one.cell for one in found) if 'engine' in varying else ''}"
    )
    return finish("starts", sheet, caption, "; ".join(said))


def _more(rung: ladder.Rung, lower: ladder.Rung, more: Estimate) -> str:
    """ "+6.05 s [5.80, 6.30] over zygote"; what lay compiled is said where that differs too."""
    differs = lower.compile_cache not in ("none", rung.compile_cache)
    return f"{_difference(more)} over {lower.start}" + (f" (cache {lower.compile_cache})" if differs else "")


def _difference(more: Estimate) -> str:
    """ "+6.05 s [5.80, 6.30]", or that one repeat has no interval. A difference may be near 0 at one end, so
    an interval is never only called very wide."""
    ends = f"[{number(more.low)}, {number(more.high)}]" if more.has_interval else "(one repeat, no interval)"
    return f"{signed(more.value)} s {ends}"
