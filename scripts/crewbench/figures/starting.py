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
    points,
    said_at,
    signed,
    valued,
)
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing
from crewbench.records import Status
from crewbench.start import STARTS
from crewbench.words import ended, number, seconds


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
    caption = (
        f"The number in a bar is how many {study.device}s that attempt had. "
        + (f"On average {'; '.join(per_count)}. " if per_count else "No attempt failed. ")
        + f"{study.setting_words(*varying, of=rows.iloc[0])}; n = {len(trials)} trials. "
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
    sheet = Sheet(
        canvas,
        study.question("starts"),
        [lines.height_in] * len(panels),
        left=left_in([*labels, *names], canvas),
        right=0.8 if canvas.narrow else 2.9,
        gap=0.7,
        legend=[
            Key("round 0", INK, "o"),
            Key("round on resident workers", INK, "D", hollow=True),
            Key("median (at the right)", INK, "|"),
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
            words = [f"{rung.name}: {seconds(v)}" for v in values.values()]
            points(ax, pd.Series(values), y, colour, rung.start == ladder.RESIDENT, words)
            median = rung.median(measure)
            ax.plot([median] * 2, [y - 0.2, y + 0.2], color=INK, lw=1.6, zorder=4)
            ax.plot(rung.zygote_s, [y] * len(rung.zygote_s), ls="", marker="x", ms=5, color=QUIET, zorder=3)
            valued(ax, y, seconds(median))
            words = (
                f"{name}, {axis.split(',')[0]} from {rung.name}: {seconds(median)} "
                f"(median, n = {len(values)})"
            )
            lower = one.below(rung, measure)
            if lower is not None:
                more = list(ladder.difference(rung, lower, measure).values())
                beside_value(ax, y, _more(rung, lower, metrics.median(more)), rung.name, canvas)
                words += (
                    f", {signed(metrics.median(more))} s over {lower.name} (paired by repeat: "
                    f"{signed(min(more))} to {signed(max(more))}, n = {len(more)})"
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
        f"{study.setting_words(*varying, 'start', of=found[0].cell)}; every trial a point. "
        f"{study.agreements(one.cell for one in found) if 'engine' in varying else ''}"
    )
    return finish("starts", sheet, caption, "; ".join(said))


def _more(rung: ladder.Rung, lower: ladder.Rung, seconds_more: float) -> str:
    """ "+6.05 s over zygote"; what lay compiled is said where that differs too."""
    differs = lower.compile_cache not in ("none", rung.compile_cache)
    return f"{signed(seconds_more)} s over {lower.start}" + (
        f" (cache {lower.compile_cache})" if differs else ""
    )
