"""One trial of a mode over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crewbench import cells, drawing
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import BAD, PAPER, QUIET, RULE, STARTING, WAITING, left_in
from crewbench.figures.study import TIMELINE, Drawn, Study
from crewbench.records import Status
from crewbench.words import ended, number, seconds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


def timeline(study: Study, canvas: Canvas, mode: str) -> Drawn:
    """One trial of a mode over time: what every agent did, and each device's memory and utilisation below."""
    name = TIMELINE.format(mode=mode)
    question = f"{cells.mode_title(mode)}: who works, who waits, and what are the devices doing?"
    trial = study.shown[study.shown["mode"] == mode].iloc[0]
    ours = {"trial_id": trial["trial_id"]}
    agents, workers, rounds, samples = (
        cells.only(study.tables[n], ours) for n in ("agents", "workers", "rounds", "samples")
    )
    zero = rounds["started_at_s"].min()
    agents, workers, rounds, samples = (
        f.assign(**{c: f[c] - zero for c in f if c.endswith("_at_s")})
        for f in (agents, workers, rounds, samples)
    )
    people = list(dict.fromkeys(agents["agent"]))
    devices, places = _devices(samples, trial["host"], study.device)
    end = max(rounds["ended_at_s"].max(), agents["ended_at_s"].max() if len(agents) else 0)
    seen = samples[samples["t_at_s"].between(0, end * 1.01)]
    memory = _memory(seen, devices, cells.only(study.tables["devices"], ours))
    top_util = samples["util_pct"].max()
    full = 100.0 * max(1, math.ceil(top_util / 100 - 0.1)) if top_util == top_util else 100.0
    utilisation = _utilisation(seen, devices, full)
    beside = drawing.text_width_in([r.words for r in (*memory, *utilisation)], 7.5)
    if canvas.narrow:
        row, thin = 0.3, 0.2
    else:
        row, thin = 0.24, 0.2
    names = [drawing.plain(str(p).replace("_", " "), 32) for p in people]
    lives = _lives(workers)
    given_up = any(_given_up(step["status"], life) for step, life in _started(agents, lives))
    sheet = Sheet(
        canvas,
        question,
        [row * max(len(people), 1), thin * max(len(devices), 1), thin * max(len(devices), 1)],
        left=0.62 if canvas.narrow else left_in([*names, *places], canvas),
        right=0.15 if canvas.narrow else 0.15 + beside,
        gap=0.4,
        heading=0.24,
        legend=[
            Key("starting", STARTING),
            *([Key("given up", STARTING, hatch="////")] if given_up else []),
            Key("waiting", WAITING),
            Key("answering", canvas.mode(mode)),
            *([Key("failed", BAD, hatch="////")] if (agents["status"] != Status.OK).any() else []),
        ],
        note=study.notes(memory=True),
    )
    top, middle, low = sheet.axes
    _agents_panel(top, people, names, agents, lives, canvas, mode)
    _rounds_marked(sheet.axes, rounds, top)
    budget = "simulated budget" if trial["simulated_budget"] else "whole budget"
    _devices_panel(middle, memory, places, canvas, mode)
    _devices_panel(low, utilisation, places, canvas, mode)
    middle.set_title(f"memory in use: a full row is the {budget}", loc="left", size=8.5, color=QUIET)
    of_core = " of a core" if study.kind == "slot" else ""
    low.set_title(f"utilisation: a full row is {full:.0f} %{of_core}", loc="left", size=8.5, color=QUIET)
    for ax in sheet.axes:
        ax.set_xlim(-0.01 * end, end * 1.01)
        if ax is not low:
            ax.set_xticklabels([])
        ax.grid(axis="x")
    low.set_xlabel("seconds from the first round's start", loc="left")
    setting = study.setting_words(of=trial)
    setting += f", host {trial['host']}" if trial["host"] != study.setting["host"] else ""
    caption = (
        f"One trial, repeat {trial['repeat']} of {study.label(trial)} ({setting}): "
        + (
            "the one with the median cold makespan of those that worked. "
            if trial["status"] == "ok"
            else f"{ended(trial['status'])}. "
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


_Lives = Mapping[tuple, Mapping[str, Any]]


def _lives(workers: pd.DataFrame) -> _Lives:
    """Each life of a worker, by its attempt, name and number: the row of its first device."""
    return {
        (w["attempt"], w["worker"], w["worker_life"]): w
        for w in workers.sort_values("device_index", ascending=False).to_dict("records")
    }


def _started(agents: pd.DataFrame, lives: _Lives) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Steps of round 0 with the life of the worker that they waited for."""
    for step in agents[agents["round"] == 0].to_dict("records"):
        life = lives.get((step["attempt"], step["worker"], step["worker_life"]))
        if life is not None:
            yield step, life


def _agents_panel(
    ax: Axes,
    people: Sequence[str],
    names: Sequence[str],
    agents: pd.DataFrame,
    lives: _Lives,
    canvas: Canvas,
    mode: str,
) -> None:
    for step, life in _started(agents, lives):
        y = people.index(step["agent"])
        _setup_bar(ax, y, life, step["status"], step["step"])
        if life["spawned_at_s"] > step["queued_at_s"]:
            _waiting_bar(ax, y, step["queued_at_s"], life["spawned_at_s"], step["step"])
    place = {p: i for i, p in enumerate(people)}
    for step in agents.to_dict("records"):
        y = place[step["agent"]]
        life = lives.get((step["attempt"], step["worker"], step["worker_life"]))
        begin, end = step["started_at_s"], step["ended_at_s"]
        if math.isnan(begin):
            continue
        since = step["queued_at_s"]
        if life is not None and step["round"] == 0 and not math.isnan(life["ready_at_s"]):
            since = max(since, life["ready_at_s"])
        if begin > since:
            _waiting_bar(ax, y, since, begin, step["step"])
        failed = step["status"] != Status.OK
        (bar,) = ax.barh(
            y,
            (begin if math.isnan(end) else end) - begin,
            left=begin,
            height=0.66,
            linewidth=0.6,
            color=BAD if failed else canvas.mode(mode),
            hatch="////" if failed else "",
            edgecolor=PAPER,
        )
        _lasts(
            bar, step["step"], "failed" if failed else "answering", begin, begin if math.isnan(end) else end
        )
        if failed:
            ax.annotate(
                ended(step["status"]),
                (begin if math.isnan(end) else end, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=BAD,
            )
    ax.set_ylim(len(people) - 0.5, -0.5)
    _row_names(ax, names, canvas)


def _given_up(status: str, life: Mapping[str, Any]) -> bool:
    """Whether another one's failure ended the attempt while this worker started."""
    return status == Status.CANCELLED and math.isnan(life["ready_at_s"])


def _lasts(bar: Artist, step: str, doing: str, begin: float, end: float) -> None:
    """What a bar of a step says when pointed at."""
    said = f"{str(step).replace('_', ' ')}: {doing} {seconds(end - begin)}, from {seconds(begin)}"
    drawing.says(bar, [said])


def _setup_bar(ax: Axes, y: float, life: Mapping[str, Any], status: str, step: str) -> None:
    """The worker's start in the row of its agent; in the colour of failure if it ran out of memory."""
    begin = life["spawned_at_s"]
    end = life["ready_at_s"] if not math.isnan(life["ready_at_s"]) else life["stopped_at_s"]
    if math.isnan(begin) or math.isnan(end):
        return
    oom, given_up = status == Status.OOM, _given_up(status, life)
    (bar,) = ax.barh(
        y,
        end - begin,
        left=begin,
        height=0.42,
        linewidth=0.6,
        edgecolor=PAPER,
        color=BAD if oom else STARTING,
        hatch="////" if oom or given_up else "",
    )
    _lasts(bar, step, "starting, given up," if given_up else "starting", begin, end)


def _waiting_bar(ax: Axes, y: float, begin: float, end: float, step: str) -> None:
    (bar,) = ax.barh(y, end - begin, left=begin, height=0.3, color=WAITING, linewidth=0)
    _lasts(bar, step, "waiting", begin, end)


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
    if len(words) > 1 and words[1].isdigit():
        return " ".join(words[:2])
    return words[0][:8] if words else ""


def _rounds_marked(axes: Sequence[Axes], rounds: pd.DataFrame, top: Axes) -> None:
    """A line where each round or attempt begins, and its name above."""
    several = rounds["attempt"].nunique() > 1
    for r in rounds.to_dict("records"):
        for ax in axes:
            ax.axvline(r["started_at_s"], color=QUIET, lw=0.8, ls=(0, (2, 2)), zorder=0)
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
            color=BAD if r["status"] != Status.OK else QUIET,
        )


def _devices(samples: pd.DataFrame, home: str, noun: str) -> tuple[list[str], list[str]]:
    """The devices of a trial, its own host's first, and what they are called: indices are a host's own."""
    found = samples.drop_duplicates("device_uuid")
    found = found.assign(_away=found["host"] != home).sort_values(["_away", "host", "device_index"])
    names = [f"{noun} {int(index)}" for index in found["device_index"]]
    if found["_away"].any():
        names = [f"{name} of {host}" for name, host in zip(names, found["host"], strict=True)]
    return list(found["device_uuid"]), [drawing.plain(name, 32) for name in names]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read of one device: when, how full its row is then (0 to 1), and that in words. Nothing where
    it was not measured."""

    words: str
    at_s: np.ndarray = field(default_factory=lambda: np.array([]))
    shares: np.ndarray = field(default_factory=lambda: np.array([]))

    @classmethod
    def of(cls, rows: pd.DataFrame, column: str, full: float, words: str) -> _Reading:
        """`words` has places for the `peak` and the `mean` of the column."""
        values = rows[column].to_numpy(dtype=float)
        if len(values) == 0 or np.isnan(values).all():
            return cls("not measured")
        shares = np.clip(np.nan_to_num(values / full), 0, 1)
        said = words.format(peak=number(np.nanmax(values)), mean=np.nanmean(values))
        return cls(said, *_corners(rows["t_at_s"].to_numpy(), shares))


def _memory(samples: pd.DataFrame, devices: Sequence[str], assigned: pd.DataFrame) -> list[_Reading]:
    """Each device's memory in use, as a share of its budget."""
    budgets = assigned.set_index("device_uuid")["budget_mib"].dropna()
    found = []
    for device in devices:
        rows = samples[samples["device_uuid"] == device]
        # For a device whose budget is not known the median of all its memory: while a process goes, a
        # driver may count what it held as used and as free.
        budget = budgets.get(device, (rows["used_mib"] + rows["free_mib"]).median())
        full = budget if budget > 0 else np.nanmax(rows["used_mib"], initial=1.0)
        found.append(_Reading.of(rows, "used_mib", full, f"peak {{peak}} of {number(full)} MiB"))
    return found


def _utilisation(samples: pd.DataFrame, devices: Sequence[str], full: float) -> list[_Reading]:
    """Each device's utilisation, as a share of `full` percent."""
    rows = (samples[samples["device_uuid"] == device] for device in devices)
    return [_Reading.of(of_device, "util_pct", full, "mean {mean:.0f} %") for of_device in rows]


def _devices_panel(
    ax: Axes, readings: Sequence[_Reading], places: Sequence[str], canvas: Canvas, mode: str
) -> None:
    """One row per device: how full it is over time."""
    for i, reading in enumerate(readings):
        ax.axhline(i + 0.5, color=RULE, lw=0.6)
        if len(reading.at_s):
            top = i + 0.5 - 0.92 * reading.shares
            ax.fill_between(reading.at_s, i + 0.5, top, step="post", color=canvas.mode(mode), lw=0)
        if not canvas.narrow:
            ax.annotate(
                reading.words,
                (1, i),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=QUIET,
            )
    ax.set_ylim(len(readings) - 0.5, -0.5)
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
