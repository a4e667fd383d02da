"""What the rows of several figures are drawn with: points, estimates, and words beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns

from crewbench import drawing, palette, stats
from crewbench.drawing import Canvas
from crewbench.figures.study import Study
from crewbench.words import interval, number, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET, RULE, PAPER = (c.light for c in (palette.INK, palette.QUIET, palette.RULE, palette.PAPER))
BAD, STARTING, WAITING = (c.light for c in (palette.BAD, palette.STARTING, palette.WAITING))


def mean(values: Iterable[float]) -> stats.Estimate:
    """Their geometric mean with its interval, without those that were not measured."""
    return stats.geometric_mean([v for v in values if not math.isnan(v)])


def work_headings(study: Study, rows: Sequence[tuple]) -> list[str]:
    """A heading before each row that begins work of another kind, else ""."""
    headings, before = [], None
    for cell, *_ in rows:
        same = cell["workload"] == study.workload
        headings.append("" if same == before else "the same work" if same else "other work, not compared")
        before = same
    return headings if len(set(headings) - {""}) > 1 else [""] * len(rows)


def left_in(labels: Sequence[str], canvas: Canvas) -> float:
    """Inches that labels and headings beside their rows take; on a phone they stand above them."""
    if canvas.narrow:
        return 0.12
    lines = (line for text in labels for line in drawing.label_lines(text, canvas))
    return 0.25 + drawing.text_width_in(lines, 9)


def spread(
    ax: Axes,
    values: pd.Series,
    y: float,
    colour: str,
    hollow: bool,
    limit: float,
    words: Sequence[str] | None = None,
) -> stats.Estimate:
    """Every trial as a point, their geometric mean as a bar across, its interval as a line, its value at the
    end of the row.

    `limit` is where the axis ends: two trials can have an interval of a factor of thousands."""
    estimate = mean(values)
    points(ax, values, y, colour, hollow, words)
    if estimate.has_interval:
        ax.plot([estimate.low, min(estimate.high, limit)], [y, y], color=colour, lw=1.6, zorder=2)
        if estimate.high > limit:
            ax.plot([limit], [y], marker=">", ms=5, color=colour, clip_on=False)
    ax.plot([estimate.value] * 2, [y - 0.13, y + 0.13], color=INK, lw=1.6, zorder=4)
    ax.annotate(
        seconds(estimate.value),
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(46, 0),
        textcoords="offset points",
        va="center",
        ha="right",
        size=8.5,
        color=INK,
    )
    return estimate


def end_of_axis(values: Iterable[float]) -> float:
    """A little beyond the largest value: intervals that reach further are cut there."""
    return 1.12 * max((v for v in values if not math.isnan(v)), default=1.0)


def each(trials: pd.DataFrame, values: pd.Series, what: str) -> list[str]:
    """What the point of each trial says: "cold 8.33 s, repeat 2"."""
    return [
        f"{what} {seconds(v)}, repeat {r}"
        for v, r in zip(values, trials.loc[values.index, "repeat"], strict=True)
    ]


def points(
    ax: Axes, values: pd.Series, y: float, colour: str, hollow: bool, words: Sequence[str] | None = None
) -> None:
    """Every trial as a point. `words` are what each says when pointed at; its number without."""
    values = values.dropna()
    if values.empty:
        return
    sns.scatterplot(
        x=values.to_numpy(),
        y=np.full(len(values), y),
        ax=ax,
        s=34,
        marker="D" if hollow else "o",
        facecolor=PAPER if hollow else colour,
        edgecolor=colour,
        linewidth=1.2,
        zorder=3,
        legend=False,
        rasterized=len(values) > 500,
    )
    if len(values) <= 500:
        drawing.says(ax.collections[-1], [number(v) for v in values] if words is None else words)


def said_at(ax: Axes, y: float, text: str, colour: str) -> None:
    """Words in place of a row's points."""
    ax.annotate(
        text,
        (0, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        size=8.5,
    )


def valued(ax: Axes, y: float, text: str) -> None:
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
        color=INK,
    )


def beside_value(ax: Axes, y: float, text: str, label: str, canvas: Canvas) -> None:
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
        color=QUIET,
    )


def signed(value: float) -> str:
    """ "+6.05", "-0.2"."""
    return f"{'-' if value < 0 else '+'}{number(abs(value))}"


def factor(
    ax: Axes, values: pd.Series, y: float, colour: str, limit: float, label: str, canvas: Canvas
) -> stats.Estimate:
    """A row of ratios: every trial as a point, their geometric mean, its interval as a line and in words.

    `label` is the row's, which on a phone may leave no room for the interval's words."""
    estimate = mean(values)
    points(ax, values, y, colour, hollow=False)
    if estimate.has_interval:
        ax.plot([estimate.low, min(estimate.high, limit)], [y, y], color=colour, lw=1.6, zorder=2)
        if estimate.high > limit:
            ax.plot([limit], [y], marker=">", ms=5, color=colour, clip_on=False)
    ax.plot([estimate.value] * 2, [y - 0.2, y + 0.2], color=INK, lw=1.6, zorder=4)
    valued(ax, y, f"{number(estimate.value)} ×")
    if estimate.has_interval:
        beside_value(ax, y, interval(estimate), label, canvas)
    return estimate


def reference(ax: Axes, x: float, text: str, colour: str, rows: Iterable[float]) -> None:
    """A value to compare with: a line through each row that has points, and its name above the axis."""
    for y in rows:
        ax.plot([x, x], [y - 0.3, y + 0.3], color=colour, lw=1.4, zorder=1)
    ax.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        size=8,
        color=colour,
    )
