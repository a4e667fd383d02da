"""How near each engine comes to what memory allows, and what compiling costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from crewbench import cells, drawing, metrics
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.engines import ENGINES
from crewbench.figures.marks import BAD, INK, end_of_axis, left_in, points, valued
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing, n_each
from crewbench.records import Status
from crewbench.words import number, seconds


def engines(study: Study, canvas: Canvas) -> Drawn:
    """Each engine's decode rate against what the memory bandwidth measured in the same trial allows, and
    below what compiling costs before its first token."""
    trials = study.tables["trials"]
    known = trials[(trials["status"] == Status.OK) & trials["bandwidth_share"].notna()]
    if known.empty:
        notes = sorted(set(study.tables["devices"]["bandwidth_note"]) - {""})
        why = f": {drawing.plain(notes[0], 120)}" if notes else ""
        return missing(study, "engines", f"no device's memory bandwidth is known{why}")
    rows = _engine_rows(known)
    varying = cells.varying(pd.DataFrame([cell for cell, _ in rows]), ("agents", "variant", "host"))
    labels = [f"{study.engine(cell)}: {study.label(cell, varying)}" for cell, _ in rows]
    alone = [_alone(group) for _, group in rows]
    headings = ["" if i and alone[i] == alone[i - 1] else _SHARING[alone[i]] for i in range(len(rows))]
    lines = drawing.Rows(labels, canvas, headings, [cell["mode"] for cell, _ in rows])
    compiled = _compiled_rows(trials, [cell for cell, _ in rows])
    below = drawing.Rows([label for label, _ in compiled], canvas)
    sheet = Sheet(
        canvas,
        study.question("engines"),
        [lines.height_in, *([below.height_in] if compiled else [])],
        left=left_in([*labels, *below.labels, *headings], canvas),
        right=0.95,
        gap=0.7,
        legend=[
            Key("one trial", INK, "o"),
            Key("median, and its share of the limit (at the right)", INK, "|"),
            Key("the limit", BAD, "|"),
        ],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    for i, (cell, group) in enumerate(rows):
        y, rates = lines.at(i), group["decode_tokens_per_s"]
        words = [f"{number(v)} tokens/s" for v in rates.dropna()]
        points(ax, rates, y, canvas.mode(cell["mode"]), hollow=False, words=words)
        rate, limit, share = (
            metrics.median(group[name])
            for name in ("decode_tokens_per_s", "decode_limit_tokens_per_s", "bandwidth_share")
        )
        ax.plot([rate] * 2, [y - 0.2, y + 0.2], color=INK, lw=1.6, zorder=4)
        ax.plot([limit] * 2, [y - 0.3, y + 0.3], color=BAD, lw=1.8)
        valued(ax, y, f"{number(rate)} ({100 * share:.0f} %)")
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
            points(ax, values, below.at(i), INK, hollow=False, words=[seconds(v) for v in values.dropna()])
            median = metrics.median(values)
            ax.plot([median] * 2, [below.at(i) - 0.2, below.at(i) + 0.2], color=INK, lw=1.6, zorder=4)
            valued(ax, below.at(i), seconds(median))
            said.append(f"{label}: compiling {seconds(median)} (median, n = {len(values)})")
        below.draw(ax)
        ax.set_xlim(0, end_of_axis(v for _, values in compiled for v in values))
        drawing.x_grid(ax, "compiling in a worker's start, seconds")
    caption = (
        "Decode rate of one agent in warm rounds beside what memory allows: copy bandwidth of the trial's "
        "own devices, bytes read and written, over the bytes of weights that a token reads; reads of the KV "
        f"cache are left out. {study.agreements(cell for cell, _ in rows)} "
        + ("Below: what compiling costs, by what the trial found compiled on disk. " if compiled else "")
        + f"Each engine in the setting it was run in most; {n_each(pd.concat([g for _, g in rows]))}, every "
        "trial a point."
    )
    return finish("engines", sheet, caption, "; ".join(said))


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
