"""How long the crew takes, where the time goes, and what more devices bring."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from crewbench import cells, drawing, palette
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import (
    BAD,
    INK,
    PAPER,
    QUIET,
    each,
    end_of_axis,
    left_in,
    mean,
    said_at,
    spread,
    work_headings,
)
from crewbench.figures.study import Drawn, Study, finish, missing, n_each, outcome
from crewbench.records import STAGES, Status
from crewbench.words import seconds


def cold_warm(study: Study, canvas: Canvas) -> Drawn:
    """Cold and warm makespan of each cell in the headline setting, every trial a point."""
    rows = study.cells(study.trials)
    if not rows:
        return missing(study, "cold_warm", "no trial ran")
    labels = [study.label(cell) for cell, _ in rows]
    lines = drawing.Rows(labels, canvas, work_headings(study, rows), [cell["mode"] for cell, _ in rows])
    sheet = Sheet(
        canvas,
        study.question("cold_warm"),
        [1.2 * lines.height_in],
        left=left_in(labels, canvas),
        right=0.75,
        legend=[
            Key("cold", INK, "o"),
            Key("warm", INK, "D", hollow=True),
            Key("geometric mean (at the right), line: 95 % interval", INK, "|"),
        ],
        note=study.notes(),
    )
    ax, said = sheet.axes[0], []
    worked = study.trials[study.trials["status"] == Status.OK]
    limit = end_of_axis([*worked["cold_s"], *worked["warm_s"]])
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
            estimate = spread(
                ax, values, y, canvas.mode(cell["mode"]), hollow, limit, each(ok, values, column[:4])
            )
            words.append(f"{column[:4]} {seconds(estimate.value)}")
        if not words:
            words = [outcome(trials)]
            said_at(ax, lines.at(i), words[0], BAD)
        said.append(f"{labels[i]}: {', '.join(words)}")
    lines.draw(ax)
    ax.set_xlim(0, limit)
    drawing.x_grid(ax, "makespan of one round, seconds")
    caption = (
        "Makespan of one round of the crew in seconds: cold (round 0, from the first process started to the "
        f"last answer, failed attempts included) and warm (on loaded workers). {study.setting_words()}; "
        f"{n_each(study.trials)}, every trial a point."
    )
    return finish("cold_warm", sheet, caption, "; ".join(said), study.notes())


def stages(study: Study, canvas: Canvas) -> Drawn:
    """The stages along the critical path, stacked to the makespan: mean over a cell's trials that worked."""
    rows = study.cells(study.trials)
    found = [(cell, *(_stage_means(study, trials, p) for p in ("cold", "warm"))) for cell, trials in rows]
    found = [row for row in found if row[1] is not None or row[2] is not None]
    if not found:
        return missing(study, "stages", "no trial worked")
    labels = [study.label(cell) for cell, *_ in found]
    present = [s for s in ("failed", *STAGES) if any(m and m[s] > 0 for _, *both in found for m in both)]
    lines = drawing.Rows(labels, canvas, work_headings(study, found), [cell["mode"] for cell, *_ in found])
    sheet = Sheet(
        canvas,
        study.question("stages"),
        [lines.height_in] * 2,
        left=left_in(labels, canvas),
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
                    color=QUIET,
                )
                continue
            left = 0.0
            for stage in present:
                (bar,) = ax.barh(
                    lines.at(i),
                    means[stage],
                    left=left,
                    height=0.5,
                    color=canvas.stages[stage],
                    hatch=palette.hatch(stage),
                    edgecolor=PAPER,
                    linewidth=0.7,
                )
                drawing.says(bar, [f"{stage} {seconds(means[stage])}"])
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
        f"{study.setting_words()}; {n_each(study.trials)}."
    )
    return finish("stages", sheet, caption, "; ".join(said))


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
        return missing(
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
            Key("cold", INK, "o"),
            Key("warm", INK, "D", hollow=True),
            Key("failed", BAD, "X"),
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
                    failed_at.add((int(gpus), outcome(group)))
                    continue
                x = place[int(gpus)] + (0.06 if hollow else -0.06)
                sns.scatterplot(
                    x=np.full(len(values), x),
                    y=values.to_numpy(),
                    ax=time,
                    s=34,
                    marker="D" if hollow else "o",
                    facecolor=PAPER if hollow else colour,
                    edgecolor=colour,
                    linewidth=1.2,
                    zorder=3,
                    legend=False,
                )
                drawing.says(time.collections[-1], each(group, values, column[:4]), mode)
                line.append((x, mean(values).value))
                said.append(
                    f"{cells.mode_title(mode)} on {cells.devices(int(gpus), study.kind)}, {column[:4]}: "
                    f"{seconds(line[-1][1])}"
                )
            if line:
                (drawn,) = time.plot(
                    *zip(*line, strict=True), color=colour, lw=1.4, ls="--" if hollow else "-"
                )
                drawing.says(drawn, [], mode)
        for phase, hollow in (("cold", False), ("warm", True)):
            rows = cells.only(summary, study.setting)
            rows = rows[(rows["mode"] == mode) & (rows["metric"] == f"efficiency_{phase}")].dropna(
                subset=["estimate"]
            )
            if rows.empty:
                continue
            first = int(rows["baseline"].iloc[0].split()[0])
            xs = [place[g] + (0.06 if hollow else -0.06) for g in (first, *rows["gpus"].astype(int))]
            (drawn,) = share.plot(
                xs,
                [100.0, *(100 * rows["estimate"])],
                marker="D" if hollow else "o",
                ms=6,
                mfc=PAPER if hollow else colour,
                mec=colour,
                color=colour,
                lw=1.4,
                ls="--" if hollow else "-",
            )
            drawing.says(drawn, [], mode)
    top = 1.12 * time.get_ylim()[1]
    for gpus, why in sorted(failed_at):
        time.plot([place[gpus]], [top * 0.93], marker="X", color=BAD, ms=8, ls="")
        time.annotate(
            why.split(" (")[0],
            (place[gpus], top * 0.93),
            xytext=(0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            size=8,
            color=BAD,
        )
        said.append(f"{cells.devices(gpus, study.kind)}: {why}")
    time.set_ylim(0, top)
    share.set_ylim(0, max(105.0, share.get_ylim()[1]))
    share.axhline(100 * limit, color=QUIET, lw=1, ls=(0, (3, 2)))
    share.annotate(
        f"threshold {100 * limit:g} %",
        (0, 100 * limit),
        xycoords=("axes fraction", "data"),
        xytext=(2, 3),
        textcoords="offset points",
        ha="left",
        size=8,
        color=QUIET,
    )
    for ax, label in ((time, "makespan, seconds"), (share, "efficiency, %")):
        ax.set_xlim(-0.5, len(counts) - 0.5)
        ax.set_xticks(range(len(counts)), [cells.devices(g, study.kind) for g in counts])
        ax.set_xlabel("")
        ax.set_ylabel(label)
        ax.tick_params(axis="y", labelcolor=QUIET)
        ax.grid(axis="y")
    caption = (
        f"Above: makespan in seconds over the number of {study.device}s, every trial a point. Below: scaling "
        f"efficiency, {study.device}-seconds on the fewest {study.device}s that worked over "
        f"{study.device}-seconds here, paired by repeat; 100 % is perfect. {study.setting_words()}; "
        f"{n_each(chosen)}."
    )
    return finish("scaling", sheet, caption, "; ".join(said))
