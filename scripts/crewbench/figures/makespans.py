"""How long the crew takes, and what more devices bring."""

from __future__ import annotations

import numpy as np
import seaborn as sns

from crewbench import cells, drawing
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
from crewbench.records import Status
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
