"""How much agents slow each other, by what they share."""

from __future__ import annotations

import pandas as pd

from crewbench import cells, drawing, metrics
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.framework import VARYING
from crewbench.figures.marks import INK, QUIET, end_of_axis, factor, left_in, reference, said_at
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing, n_each
from crewbench.interference import RELATIONS
from crewbench.words import estimate, number


def interference(study: Study, canvas: Canvas) -> Drawn:
    """An agent's seconds per token beside others over those of an agent alone, by the nearest neighbour."""
    beside = cells.in_order(study.tables["interference"])
    beside = beside[beside["agents"] > 1]
    if beside["slowdown"].isna().all():
        return missing(study, "interference", _why_none(beside))
    rows = [
        (dict(zip(cells.WHERE, key, strict=True)), relation, group)
        for relation in RELATIONS
        for key, group in beside[beside["relation"] == relation].groupby(
            cells.WHERE, observed=True, sort=False
        )
    ]
    rows.sort(key=lambda row: row[2]["slowdown"].isna().all())  # what was not measured is cut first
    rank = list(RELATIONS)
    rows = sorted(rows[:ROWS_MAX], key=lambda row: (rank.index(row[1]), *(row[0][n] for n in VARYING)))
    varying = cells.varying(pd.DataFrame([cell for cell, *_ in rows]), VARYING)
    labels = [study.label(cell) for cell, *_ in rows]
    names = [f"{RELATIONS[relation]}, {study.label(cell, varying)}" for cell, relation, _ in rows]
    under = [": ".join(filter(None, (_SHORT[r], study.setting_of(cell, varying)))) for cell, r, _ in rows]
    headings = ["" if i and under[i] == under[i - 1] else under[i] for i in range(len(rows))]
    lines = drawing.Rows(labels, canvas, headings, [cell["mode"] for cell, *_ in rows])
    sheet = Sheet(
        canvas,
        study.question("interference"),
        [lines.height_in],
        left=left_in([*labels, *headings], canvas),
        right=0.8 if canvas.narrow else 2.0,
        heading=0.2,
        legend=[
            Key("one trial", INK, "o"),
            Key("geometric mean (at the right), line: 95 % interval", INK, "|"),
        ],
        note=study.notes(),
    )
    ax, said, against = sheet.axes[0], [], []
    known = pd.concat([group for *_, group in rows]).dropna(subset=["slowdown"])
    limit = max(1.1, end_of_axis(known["slowdown"]))
    for i, (cell, _, group) in enumerate(rows):
        values = group["slowdown"].dropna()
        if values.empty:
            said_at(ax, lines.at(i), "not measured", QUIET)
            said.append(f"{names[i]}: {group['note'].iloc[0]}")
            continue
        against.append(lines.at(i))
        ratio = factor(ax, values, lines.at(i), canvas.mode(cell["mode"]), limit, labels[i], canvas)
        said.append(
            f"{names[i]}: {estimate(ratio, '×')} of {group['alone'].iloc[0]} "
            f"({number(1000 * metrics.median(group['s_per_token']))} ms a token, alone "
            f"{number(1000 * metrics.median(group['alone_s_per_token']))}, "
            f"{number(metrics.median(group['others']))} others at once, n = {len(values)})"
        )
    lines.draw(ax)
    ax.set_xlim(0, limit)
    reference(ax, 1.0, "alone", QUIET, against)
    drawing.x_grid(ax, "time for a token, over that of an agent alone")
    caption = (
        "The engine's time for a token (prefill and decode over output tokens, warm rounds) beside others, "
        "over that of the one agent of a cell that had a worker and its devices to itself: same engine, "
        "start, variant, tokens and host, paired by repeat. An agent counts by its nearest neighbour at the "
        f"time: on its worker, else on its device, else on its host. {n_each(known)}, every trial a point. "
        f"{study.agreements((cell for cell, *_ in rows), 'engine' in varying)}"
    )
    return finish("interference", sheet, caption, "; ".join(said), study.notes())


_SHORT = {name: words.removeprefix("others on the ") for name, words in RELATIONS.items()}
"""RELATIONS as a heading has room for them: "same worker"."""


def _why_none(beside: pd.DataFrame) -> str:
    if beside.empty:
        return "no trial with several agents worked"
    notes = list(dict.fromkeys(note.removeprefix("not measured: ") for note in beside["note"]))
    if len(notes) > 1:  # each names its own engine, start and variant
        notes = list(dict.fromkeys(note.split(" (")[0] for note in notes))
    return drawing.plain("; ".join(notes), 150)
