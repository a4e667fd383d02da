"""After how many calls what starts later is ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from crewbench import cells, drawing
from crewbench.breakeven import AT_ONCE, BASE, COMPARISONS, ENGINE, RESIDENT, SIDES, WITHOUT
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import INK, QUIET, beside_value, end_of_axis, left_in, points, said_at, valued
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing
from crewbench.quality import Agreement
from crewbench.stats import Estimate
from crewbench.words import count, interval, number, seconds

WIDE_RANGE = 30
"""How many times the largest may be the smallest before the axis is logarithmic."""


def breakeven(study: Study, canvas: Canvas) -> Drawn:
    """Calls until a dearer start is repaid, of every pair of cells that makes sense, or a word."""
    found = ordered(study.tables["breakeven"])
    if found.empty:
        return missing(study, "breakeven", "no trial had a warm round to compare")
    # Of many, those that stay are of two cells: a resident worker is repaid about as soon everywhere.
    kept = found.sort_values("comparison", key=lambda kinds: kinds == RESIDENT, kind="stable").head(ROWS_MAX)
    rows = found.loc[kept.index.sort_values()].to_dict("records")
    named = varying(pd.DataFrame(rows))
    labels = [label(row, named, study.kind) for row in rows]
    under = [heading(row) for row in rows]
    headings = ["" if i and under[i] == under[i - 1] else under[i] for i in range(len(rows))]
    lines = drawing.Rows(labels, canvas, headings, [row["b_mode"] for row in rows])
    sheet = Sheet(
        canvas,
        study.question("breakeven"),
        [lines.height_in],
        left=max(0.22, left_in([*labels, *headings], canvas)),  # half a number at the axis' end
        right=0.8 if canvas.narrow else 2.0,
        legend=[
            Key("one repeat", INK, "o"),
            Key("ratio of means (at the right), line: 95 % interval", INK, "|"),
        ],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    repeats = study.tables["breakeven_repeats"]
    shown = [
        _repeats(repeats, row)["calls"].dropna() if row["outcome"] not in WITHOUT else [] for row in rows
    ]
    every = [value for values in shown for value in values]
    every += [row["calls"] for row in rows if row["outcome"] not in WITHOUT]
    limit = end_of_axis(every)
    positive = [value for value in every if value > 0]
    floor = 0.8 * min(positive, default=1.0)
    logarithmic = bool(positive) and limit > WIDE_RANGE * min(positive)
    for i, (row, values) in enumerate(zip(rows, shown, strict=True)):
        y, calls = lines.at(i), estimate_of(row)
        if row["outcome"] in WITHOUT:
            said_at(ax, y, row["outcome"], QUIET)
            said.append(f"{heading(row)}, {labels[i]}: {row['outcome']}, {row['note']} ({_in_words(row)})")
            continue
        low, high = (calls.low, calls.high) if calls.has_interval else (calls.value, calls.value)
        at = max(calls.value, floor) if logarithmic else calls.value
        low = max(low, floor) if logarithmic else low
        colour = canvas.mode(row["b_mode"])
        at_points = values.clip(lower=floor) if logarithmic else values
        points(ax, at_points, y, colour, hollow=False, words=[f"{number(v)} calls" for v in values])
        ax.plot([low, min(max(high, low), limit)], [y, y], color=colour, lw=1.6, zorder=2)
        if high > limit:
            ax.plot([limit], [y], marker=">", ms=5, color=colour, clip_on=False)
        ax.plot([at] * 2, [y - 0.2, y + 0.2], color=INK, lw=1.6, zorder=4)
        valued(ax, y, AT_ONCE if row["outcome"] == AT_ONCE else number(calls.value))
        if calls.has_interval:
            beside_value(ax, y, interval(calls), labels[i], canvas)
        said.append(
            f"{heading(row)}, {labels[i]}: {number(calls.value)} calls {interval(calls)}, "
            f"{number(calls.value / row['calls_per_round'])} rounds ({_in_words(row)})"
        )
    lines.draw(ax)
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.minorticks_off()
        ax.grid(axis="x")
        ax.set_xlabel("calls of the crew until it is repaid (logarithmic)", loc="left")
        ax.set_xlim(0.8 * floor, limit)
    else:
        ax.set_xlim(-0.015 * limit, limit)
        drawing.x_grid(ax, "calls of the crew until it is repaid")
    zygotes = "A zygote's own start is not counted, and is named where there was one. "
    caption = (
        "What starts later and calls faster is ahead after (start of b - start of a) / (call of a - call of "
        "b) calls. A start is round 0's critical path from spawn to compile, a call the crew's warm makespan "
        "over its tasks. A fresh worker for each call has no start, and its calls take as long as round 0. "
        "Interval: Fieller's, paired by repeat; never: a call is not cheaper; not shown: the interval of "
        "what it saves includes 0. "
        f"{zygotes if any(row['zygote_s'] == row['zygote_s'] for row in rows) else ''}"
        f"{_n(rows)}; every trial a point. {cells.untold(agreements(rows), labelled=True)}"
    )
    return finish("breakeven", sheet, caption, "; ".join(said), study.notes())


def ordered(found: pd.DataFrame) -> pd.DataFrame:
    """The pairs as they are shown: what is compared, then engines, then modes in their order."""
    rank = list(COMPARISONS)
    keys = found.assign(
        _kind=found["comparison"].map(rank.index),
        _a=found["a_mode"].map(cells.mode_rank),
        _b=found["b_mode"].map(cells.mode_rank),
        _not=found["a_mode"] != cells.baseline(),
    )
    by = [
        "_kind",
        "b_engine",
        "a_engine",
        "_not",
        "_a",
        "_b",
        "agents",
        "gpus",
        "b_start",
        "b_variant",
        "host",
    ]
    keys = keys.sort_values(by, kind="stable", ignore_index=True)
    return keys.drop(columns=["_kind", "_a", "_b", "_not"])


def heading(row: Mapping[str, Any]) -> str:
    """ "resident instead of fresh, eager (agrees)", "compiled (differs) instead of eager (agrees)"."""
    a, b = (f"{engine}{agreement.beside}" for engine, agreement in agreements([row]))
    return f"resident instead of fresh, {b}" if row["comparison"] == RESIDENT else f"{b} instead of {a}"


def agreements(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Agreement]]:
    """(engine, agreement) of a and b of each pair."""
    return [(row[f"{side}_engine"], Agreement(row[f"{side}_agreement"])) for row in rows for side in "ab"]


def varying(pairs: pd.DataFrame) -> list[str]:
    """What tells the pairs apart besides modes and engines; `a_variant` and `b_variant` among pairs of a
    server or an actor with processes."""
    starts = {start for side in "ab" for start in pairs[f"{side}_start"]}
    alike = pairs["comparison"].isin((RESIDENT, ENGINE))
    names = {"start": len(starts) > 1, "variant": pairs[alike]["b_variant"].nunique() > 1}
    names |= {f"{side}_variant": pairs[~alike][f"{side}_variant"].nunique() > 1 for side in "ab"}
    names |= {name: pairs[name].nunique() > 1 for name in ("agents", "host")}
    return [n for n in ("agents", "start", "variant", "a_variant", "b_variant", "host") if names[n]]


def label(row: Mapping[str, Any], named: Sequence[str], kind: str) -> str:
    """The cells of a pair in words: one where both are the same mode's; else b's mode, in brackets what is
    b's alone, and a."""
    cached = {side: cells.compile_cache({"compile_cache": row[f"{side}_compile_cache"]}) for side in "ab"}
    a = {**row, **{name: row[f"a_{name}"] for name in ("mode", "start", "variant")}}
    if row["comparison"] in (RESIDENT, ENGINE):
        told = [name for name in named if not name.endswith("_variant")]
        return ", ".join(filter(None, [cells.label(a, told, kind), cached["b"]]))
    start, variant = (row[f"a_{name}"] != row[f"b_{name}"] for name in ("start", "variant"))
    of_b = {
        f"{row['b_start']} start": start,
        row["b_variant"]: "b_variant" in named or (variant and row["b_variant"] != BASE),
        cached["b"]: bool(cached["b"]),
    }
    of_a = {
        "agents": "agents" in named,
        "start": start or "start" in named,
        "variant": variant or "a_variant" in named,
        "host": "host" in named,
    }
    said = ", ".join(words for words, told in of_b.items() if told)
    beside = cells.label(a, [name for name, told in of_a.items() if told], kind)
    return (
        f"{cells.mode_title(row['b_mode'])}{f' ({said})' if said else ''} instead of "
        f"{', '.join(filter(None, [beside, cached['a']]))}"
    )


def estimate_of(row: Mapping[str, Any]) -> Estimate:
    """n* of a row of the table `breakeven`."""
    value, low, high = (None if row[n] != row[n] else row[n] for n in ("calls", "low", "high"))
    return Estimate(value, low, high, int(row["n"]), str(row["note"]))


def _repeats(repeats: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    return cells.only(repeats, {name: row[name] for name in SIDES})


def _in_words(row: Mapping[str, Any]) -> str:
    zygote = f", the zygote {seconds(row['zygote_s'])}" if row["zygote_s"] == row["zygote_s"] else ""
    return (
        f"start {seconds(row['start_b_s'])} against {seconds(row['start_a_s'])}, call "
        f"{seconds(row['call_b_s'])} against {seconds(row['call_a_s'])}{zygote}, n = {int(row['n'])}"
    )


def _n(rows: list[dict[str, Any]]) -> str:
    low, high = (pick(int(row["n"]) for row in rows) for pick in (min, max))
    return f"n = {count(high, 'repeat')} a pair" if low == high else f"n = {low} to {high} repeats a pair"
