"""What CrewAI and LangChain cost: warm rounds beside the same calls made without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from crewbench import cells, drawing, metrics, tax
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import (
    BAD,
    INK,
    QUIET,
    each,
    end_of_axis,
    factor,
    left_in,
    reference,
    said_at,
    spread,
)
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing, n_each, outcome
from crewbench.records import Status
from crewbench.words import estimate, number, seconds

Cell = tuple[dict[str, Any], pd.DataFrame]


def framework(study: Study, canvas: Canvas) -> Drawn:
    """Warm and replayed makespans of each cell, and below their ratio against the goal."""
    trials = cells.in_order(study.tables["trials"])
    if trials["warm_over_replay"].isna().all():
        return missing(study, "framework", _why_none(study.tables["tax"]))
    rows = _rows(study, trials)
    varying = cells.varying(pd.DataFrame([cell for cell, _ in rows]), VARYING)
    labels = [study.label(cell) for cell, _ in rows]
    names = [study.label(cell, varying) for cell, _ in rows]
    settings = [study.setting_of(cell, varying) for cell, _ in rows]
    headings = ["" if i and settings[i] == settings[i - 1] else settings[i] for i in range(len(rows))]
    lines = drawing.Rows(labels, canvas, headings, [cell["mode"] for cell, _ in rows])
    goal = study.thresholds.get("framework_ratio", 1.05)
    sheet = Sheet(
        canvas,
        study.question("framework"),
        [1.2 * lines.height_in, lines.height_in],
        left=max(0.22, left_in([*labels, *headings], canvas)),  # half a number at the axis' end
        right=0.8 if canvas.narrow else 2.0,
        gap=0.85,
        legend=[
            Key("warm round", INK, "o"),
            Key("its calls without the framework", INK, "D", hollow=True),
            Key("geometric mean (at the right), line: 95 % interval", INK, "|"),
        ],
        note=study.notes(),
    )
    times, ratios = sheet.axes
    worked = pd.concat([_worked(group) for _, group in rows])
    limit = end_of_axis([*worked["warm_s"], *worked["replay_s"]])
    limit_ratio = max(end_of_axis(worked["warm_over_replay"]), 1.04 * goal)
    said, against = [], []
    for i, (cell, group) in enumerate(rows):
        ok, colour = _worked(group), canvas.mode(cell["mode"])
        for column, y, hollow in (
            ("warm_s", lines.at(i) - 0.17, False),
            ("replay_s", lines.at(i) + 0.17, True),
        ):
            if ok[column].notna().any():
                values = ok[column].dropna()
                words = each(ok, values, "warm" if column == "warm_s" else "replay")
                spread(times, values, y, colour, hollow, limit, words)
        known = ok["warm_over_replay"].dropna()
        if known.empty:
            why, ink = ("not measured", QUIET) if len(ok) else (outcome(group), BAD)
            said_at(ratios, lines.at(i), why, ink)
            if ok["warm_s"].isna().all():
                said_at(times, lines.at(i), why, ink)
            note = _note(study.tables["tax"], group) if len(ok) else why
            said.append(f"{names[i]}: {note}")
            continue
        against.append(lines.at(i))
        ratio = factor(ratios, known, lines.at(i), colour, limit_ratio, labels[i], canvas)
        said.append(
            f"{names[i]}: {estimate(ratio, '×')}, goal {goal:g} {tax.against_goal(ratio, goal)}: "
            f"{_in_words(ok)}"
        )
    for ax in sheet.axes:
        lines.draw(ax)
    times.set_xlim(0, limit)
    ratios.set_xlim(min(0.8, 0.95 * worked["warm_over_replay"].min()), limit_ratio)
    reference(ratios, goal, f"goal: {goal:g} ×", BAD, against)
    drawing.x_grid(times, "makespan of one round, seconds")
    drawing.x_grid(ratios, "warm makespan over replay makespan")
    caption = (
        "Above, the makespan of warm rounds and of replays: the same calls of the model made again straight "
        "through the engine, as many at once as the mode had, after all warm rounds. Below, their ratio "
        f"within each trial; a framework that costs nothing has 1. The goal is at most {goal:g}. "
        f"{n_each(worked)}, every trial a point. "
        f"{study.agreements((cell for cell, _ in rows), 'engine' in varying)}"
    )
    return finish("framework", sheet, caption, "; ".join(said), study.notes())


VARYING = ("agents", "engine", "start", "variant", "compile_cache", "host")
"""What a row's label says besides mode and devices, where rows differ in it."""


def _worked(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["status"] == Status.OK]


def _rows(study: Study, trials: pd.DataFrame) -> list[Cell]:
    """Cells by their settings, the headline's first; of many, those with a replay are kept."""
    here = study.setting
    found = [
        (dict(zip(cells.WHERE, key, strict=True)), group)
        for key, group in trials.groupby(cells.WHERE, observed=True, sort=False)
    ]
    found.sort(key=lambda row: row[1]["warm_over_replay"].isna().all())

    def elsewhere(row: Cell) -> tuple:
        cell = row[0]
        return any(cell[n] != v for n, v in here.items()), *(cell[n] for n in VARYING)

    return sorted(found[:ROWS_MAX], key=elsewhere)


def _why_none(taxes: pd.DataFrame) -> str:
    notes = [note.removeprefix("not measured: ") for note in taxes["note"] if note]
    return drawing.plain(max(set(notes), key=notes.count), 120) if notes else "no trial worked"


def _note(taxes: pd.DataFrame, trials: pd.DataFrame) -> str:
    ours = taxes[taxes["trial_id"].isin(trials["trial_id"])]
    return next((note for note in ours["note"] if note), "not measured")


def _in_words(ok: pd.DataFrame) -> str:
    """What the framework adds, medians over the trials: in a round, its share, and for a step."""
    median: Mapping[str, float | None] = {
        name: metrics.median(ok[name])
        for name in (
            "warm_s",
            "replay_s",
            "added_ms_per_step",
            "added_tokens_per_step",
            "added_calls_per_step",
        )
    }
    added = metrics.median(ok["warm_s"] - ok["replay_s"])
    share = metrics.median(100 * (1 - ok["replay_s"] / ok["warm_s"]))
    return (
        f"warm {seconds(median['warm_s'])}, replay {seconds(median['replay_s'])}, "
        f"{number(added)} s and {number(share)} % of the round, for a step "
        f"{number(median['added_ms_per_step'])} ms, {number(median['added_tokens_per_step'])} tokens and "
        f"{number(median['added_calls_per_step'])} calls more (medians)"
    )
